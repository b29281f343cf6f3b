"""What TRL, transformers and PEFT declare, read from their files without importing them."""
