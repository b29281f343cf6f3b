"""One file a parameterization: full, lora, qlora, spectrum, adapter; peft.py serves all of PEFT's that have none."""
