"""All that is measured on a GPU, in one call and one file.

    python -m benchmarks.gpu --out gpu.json   # memory, ppo, then engines
    python -m benchmarks.gpu --dry            # the same code with tiny shapes on the CPU

Each part prints its own tables and writes a file of its own beside `--out`, which stays where the call is cut short;
once all are done they become the one file. Where a call may take ten minutes only, call the parts by themselves, with
`--cases`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.memory import ROOT

PARTS = ("memory", "ppo", "engines")


def main() -> None:
    """Every part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU: whether it works, not a figure")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (asked.out or Path(temporary) / "gpu.json").resolve()
        files = {part: out.with_name(f"{out.stem}.{part}.json") for part in PARTS}
        for part, file in files.items():
            command = [sys.executable, "-m", f"benchmarks.gpu.{part}", "--out", str(file)]
            done = subprocess.run([*command, *(["--dry"] if asked.dry else [])], cwd=ROOT, check=False)
            if done.returncode != 0:
                raise SystemExit(done.returncode)
            print(flush=True)
        found = {part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items()}
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        for file in files.values():
            file.unlink()


if __name__ == "__main__":
    main()
