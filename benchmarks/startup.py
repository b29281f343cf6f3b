"""What the command line costs when nothing trains: `align --help`, `align check`, and a finished run once more.

python -m benchmarks.startup      options: --times N
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import clock

RECIPE = Path(__file__).parents[1] / "recipes" / "dpo_qlora.yaml"
SHORT = ("--set", "stages.sft.training.max_steps=2", "--set", "stages.dpo.training.max_steps=2")
RUN = ("run", str(RECIPE), *SHORT, "--run-dir", "run")
COMMANDS: dict[str, tuple[tuple[str, ...], float]] = {
    "align --help": (("--help",), 0.3),
    "align check": (("check", str(RECIPE)), 0.8),
    "align run, finished": (RUN, 1.5),
}


def imports_torch(arguments: tuple[str, ...], folder: Path) -> bool:
    """Whether the command imports torch in its own process."""
    command = [sys.executable, "-X", "importtime", "-m", "align", *arguments]
    environment = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return any(line.rpartition("|")[2].strip() == "torch" for line in found.stderr.splitlines())


def main() -> None:
    """Time each command several times, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    clock.one_thread()
    clock.heading(f"start-up: each command {times} times")
    align = str(Path(sys.executable).with_name("align"))
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clock.cpu_seconds([align, *RUN], folder)
        for _ in range(times):
            for label, (arguments, _target) in COMMANDS.items():
                found[label].append(clock.cpu_seconds([align, *arguments], folder))
        for label, (arguments, target) in COMMANDS.items():
            torch = "imports torch" if imports_torch(arguments, folder) else "no torch"
            print(f"{label:<20} {clock.spread(found[label], 2)} s, {torch}")
            clock.verdict(label, median(found[label]), target)


if __name__ == "__main__":
    main()
