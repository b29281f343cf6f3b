"""The skills of the general battery, one file each."""
