"""What looks at the machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from align.cli.options import AsJson
from align.errors import Exit


def doctor(
    hub: Annotated[bool, typer.Option("--hub", help="Ask whether the Hugging Face Hub answers.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only look: make no step of the lab model, which takes some minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the machine and its packages, train a step in each precision and engine, and say what is missing."""
    from align.doctor import diagnosis

    found = []
    for one in diagnosis.look(hub_too=hub, steps_too=not quick):
        found.append(one)
        if not as_json:
            print(one, flush=True)
    last = diagnosis.verdict(found)
    print(json.dumps({"found": [one.as_json() for one in found], "verdict": last}, indent=1) if as_json else last)
    if any(one.state == "fault" for one in found):
        raise typer.Exit(Exit.MACHINE)
