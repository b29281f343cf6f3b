"""What looking at files of rows costs: CPU seconds and the most memory, of files that differ only in size.

    python -m benchmarks.data_check                        # 10,000 and 100,000 rows of about 1 kB
    python -m benchmarks.data_check --megabytes 50 5000    # larger files, of rows of about 4 kB

A row is a conversation of random words; each size is checked in a process of its own. Memory that does not grow with
the file is shown by the pair of sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from benchmarks import clock

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=2 + n % 8)) for n in range(5000)]
BLOCK = 10_000  # rows that are made once and repeated


def row(words: int, seed: int) -> str:
    """A conversation of one turn."""
    drawn = random.Random(seed).choices(WORDS, k=words)
    asked, said = " ".join(drawn[: words // 5]), " ".join(drawn[words // 5 :])
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return json.dumps({"messages": turns}) + "\n"


def write(path: Path, rows: int, words: int) -> None:
    """A file of so many rows."""
    block = [row(words, seed) for seed in range(min(rows, BLOCK))]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, BLOCK):
            file.writelines(block[: rows - start])


def measure(path: Path, command: str) -> tuple[float, float]:
    """CPU seconds and MB of `align data COMMAND FILE`."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.execv(sys.executable, [sys.executable, "-m", "align", "data", command, str(path)])
    _, _, used = os.wait4(child, 0)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+")
    asked = parser.parse_args()
    clock.heading("data: what looking at rows costs")
    words = 600 if asked.megabytes else 150
    size = len(row(words, 0))
    counts = [max(1, megabytes * 10**6 // size) for megabytes in asked.megabytes or ()] or [10_000, 100_000]
    print("| rows | MB | `data show`, CPU s | `data check`, CPU s | most memory, MB |")
    print("|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            path = Path(temporary) / "rows.jsonl"
            write(path, count, words)
            shown, checked = measure(path, "show"), measure(path, "check")
            most = max(shown[1], checked[1])
            print(
                f"| {count:,} | {path.stat().st_size / 1e6:,.0f} | {shown[0]:.1f} | {checked[0]:.1f} | {most:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
