"""align: take a base language model through a chain of post-training stages, and tell what each one forgot."""

from align.bottleneck.register import install as _install

__version__ = "0.1.0"

_install()  # PEFT learns of align's bottleneck adapters once it is imported; nothing heavy is imported here
