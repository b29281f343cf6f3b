"""The memory of a stage, traced: its own program trains two steps on tensors that have shapes and no content."""
