"""Python functions of a user, `./rewards.py:polite`: found and checked without running them, imported, called."""
