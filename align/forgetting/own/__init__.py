"""Probes of a user: a file of items with one of several scorers, or a task of lm-evaluation-harness."""
