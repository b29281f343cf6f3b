"""Named adapters on any model: the Python face of what a stage puts on one."""
