"""What one does with a finished run, and with one row of a stage."""
