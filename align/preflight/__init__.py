"""All that is checked before a model is loaded."""
