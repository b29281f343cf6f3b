"""Adapters become base weights, held against the adapted model."""
