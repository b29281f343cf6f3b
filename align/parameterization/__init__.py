"""Which weights a stage trains: one file a method, and what a chain of methods hands on."""
