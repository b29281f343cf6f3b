"""The model in memory and what is put on it."""
