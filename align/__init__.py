"""align: take a base language model through a chain of post-training stages, and tell what each one forgot."""

__version__ = "0.1.0"
