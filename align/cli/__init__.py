"""The `align` command. Imports nothing heavy: each command imports what it needs."""

from align.cli.commands import app, main
from align.cli.guard import guarded

__all__ = ["app", "guarded", "main"]
