"""The `align` command. Imports nothing heavy: each command imports what it needs."""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    try:
        from align.cli import commands
    except ModuleNotFoundError as error:
        from align.doctor import bare

        sys.exit(bare.main(error))
    commands.main()
