"""`probes: general`: skills of a language model that people notice when they are lost; a file each in `skills/`."""
