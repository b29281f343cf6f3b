"""A YAML file becomes typed values; all of its faults are found at once."""
