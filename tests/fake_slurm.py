"""A cluster of one machine: `sbatch`, `srun` and `scontrol` on PATH that treat a batch script as SLURM does.

A job runs the script in a session of its own, with SLURM's variables, its output where `--output` says. When its time
is nearly up (`limit`), the signal of `--signal=B:…` goes to the shell of the script alone; `scancel` and what ends a
requeued job goes to the whole process group. A requeued job runs again from the first line.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SBATCH = """\
#!/bin/bash
id=$(($(ls "$FAKE_SLURM" | wc -l) + 1))
mkdir "$FAKE_SLURM/$id" && cp "$1" "$FAKE_SLURM/$id/script" && touch "$FAKE_SLURM/$id/queued"
setsid fake-slurmd "$id" > "$FAKE_SLURM/$id/slurmd" 2>&1 < /dev/null &
echo "Submitted batch job $id"
"""
SLURMD = """\
#!/bin/bash
job="$FAKE_SLURM/$1"
eval "options=($(sed -n 's/^#SBATCH //p' "$job/script"))"  # a shell's quotes
for option in "${options[@]}"; do
  case "$option" in
    --output=*) output="${option#*=}"; output="${output//%j/$1}"; output="${output//%%/%}" ;;
    --signal=B:*) signal="${option#*:}"; signal="${signal%@*}" ;;
    --cpus-per-task=*) export SLURM_CPUS_PER_TASK="${option#*=}" ;;
    --open-mode=append) append=1 ;;
    --requeue) touch "$job/requeue" ;;
  esac
done
export SLURM_JOB_ID="$1" SLURM_RESTART_COUNT=0
while [ -e "$job/queued" ]; do
  rm "$job/queued"
  [ -n "$append" ] || : > "$output"
  setsid bash "$job/script" >> "$output" 2>&1 < /dev/null &
  batch=$!
  echo "$batch" > "$job/batch"
  while kill -0 "$batch" 2> /dev/null; do
    if [ -e "$job/limit" ]; then rm "$job/limit"; kill -s "$signal" "$batch"; fi
    if [ -e "$job/scancel" ]; then rm "$job/scancel"; kill -s TERM -- "-$batch"; fi
    sleep 0.05
  done
  wait "$batch"
  echo $? >> "$job/codes"
  SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done
touch "$job/ended"
"""
SCONTROL = """\
#!/bin/bash
if [ "$1" != requeue ] || ! [ -e "$FAKE_SLURM/$2/requeue" ]; then
  echo "Requested operation is presently disabled for job $2" >&2
  exit 1
fi
touch "$FAKE_SLURM/$2/queued"
kill -s TERM -- "-$(cat "$FAKE_SLURM/$2/batch")"
"""
SRUN = """\
#!/bin/bash
while [ "${1#--}" != "$1" ]; do
  case "$1" in --ntasks=*) tasks="${1#*=}" ;; esac
  shift
done
for ((SLURM_PROCID = 0; SLURM_PROCID < tasks; SLURM_PROCID++)); do
  export SLURM_PROCID
  "$@" &
done
wait
"""


class Job:
    """A submitted job, and what the cluster can do to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self) -> None:
        """The time limit is near."""
        (self.folder / "limit").touch()

    def scancel(self) -> None:
        (self.folder / "scancel").touch()

    @property
    def codes(self) -> list[int]:
        """The exit code of each time that the script ran."""
        file = self.folder / "codes"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def wait(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Wait until something is so; the job must not end before."""
        end = time.monotonic() + seconds
        while not condition():
            assert not (self.folder / "ended").exists(), f"it ended: {self.codes}"
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)

    def ended(self, seconds: float = 240) -> list[int]:
        """The codes, once it has ended and will not run again."""
        end = time.monotonic() + seconds
        while not (self.folder / "ended").exists():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)
        return self.codes


class Cluster:
    """Where `sbatch`, `srun` and `scontrol` are."""

    def __init__(self, folder: Path) -> None:
        self.jobs, programs = folder / "jobs", folder / "bin"
        self.jobs.mkdir(parents=True)
        programs.mkdir()
        for name, text in (("sbatch", SBATCH), ("fake-slurmd", SLURMD), ("scontrol", SCONTROL), ("srun", SRUN)):
            (programs / name).write_text(text, encoding="utf-8")
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "FAKE_SLURM": str(self.jobs),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }

    def submit(self, script: Path, **environment: str) -> Job:
        """`sbatch FILE`, as a user calls it."""
        settings: Mapping[str, str] = self.environment | environment
        done = subprocess.run(["sbatch", script], env=settings, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Submitted batch job ")
        return Job(self.jobs / done.stdout.split()[-1])
