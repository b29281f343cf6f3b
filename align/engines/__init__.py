"""How the processes of a stage are started and share its model: one file an engine."""
