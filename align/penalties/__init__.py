"""Penalties that keep a policy near where it started: on its weights (EWC, L2-SP), and on what it says (KL)."""
