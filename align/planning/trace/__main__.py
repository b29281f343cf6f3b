"""`python -m align.planning.trace FOLDER`: trace the stages that FOLDER/asked.json names; a line of JSON for each."""

from __future__ import annotations

import sys
from pathlib import Path

from align.planning.records import Asked
from align.planning.trace.stage import trace
from align.run_folder import files


def main(folder: Path) -> None:
    """Trace one stage after the other."""
    for entry in files.read_object(folder / "asked.json")["stages"]:
        print(trace(folder, Asked.model_validate(entry)).model_dump_json(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
