"""What a run of two processes does when one of them dies, stops, fails, leaves or finds its disk full, and what the
command does with a signal; in each phase.

    python -m benchmarks.rank_faults                 # ddp; half an hour with two cores
    python -m benchmarks.rank_faults --write         # and put all that --runs holds into docs/scale.md
    options: --engines one ddp fsdp zero2 zero3, --faults NAME..., --phases NAME..., --runs FOLDER (keeps the run
             folders there, and what is in it is not run again)

The last process has the fault: what stands in its environment as the interpreter starts makes it happen where
the process tells of the phase. Seconds are from the fault to the end of every process that trained, on two
cores. Then the same command is run again: it has to go on to the weights of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from align.run_folder import heartbeats
from align.run_folder.paths import RunDir
from align.runner import processes
from benchmarks import clock, page

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
MARK = "<!-- table: rank faults -->"
ENGINES = {
    "one": ("launch.processes=1",),
    "ddp": ("launch.engine=ddp",),
    "fsdp": ("launch.engine=fsdp",),
    "zero2": ("launch.engine=deepspeed",),
    "zero3": ("launch.engine=deepspeed", "launch.zero_stage=3"),
}
FAULTS = {
    "kill": "killed (SIGKILL)",
    "stop": "stopped (SIGSTOP)",
    "raise": "raises an exception",
    "leave": "leaves with code 0",
    "full": "its disk is full",
}
SIGNALS = {name.lower(): signal.Signals[f"SIG{name}"] for name in ("TERM", "INT", "HUP", "USR1", "USR2")}
PHASES = ("start-up", "step", "saving", "measuring")
STEP = 4  # the last one that is made before a fault in a step

# Runs as the interpreter of a training process starts; the process that has the fault tells when.
FAULTY = f"""\
import os, sys
last = int(os.environ.get("WORLD_SIZE", "1")) - 1
if "align.worker" in getattr(sys, "orig_argv", ()) and int(os.environ.get("RANK", "0")) == last:
    from align.run_folder import heartbeats
    phase, kind, told = os.environ["FAULT"].split(":", 2)
    whole = heartbeats.Heart.beat

    def beat(self, at=None, *, step=None, stage=None):
        whole(self, at, step=step, stage=stage)
        now = self.now
        here = now.phase == phase and now.stage == "sft" and not os.path.exists(told)
        if not here or (phase == "step" and now.step < {STEP}) or (phase == "measuring" and now.step == 0):
            return
        open(told, "w").close()
        if kind not in ("kill", "stop", "raise", "leave", "full"):  # a signal comes
            import time
            time.sleep(2)
        if kind in ("kill", "stop"):
            os.kill(os.getpid(), 9 if kind == "kill" else 19)
        elif kind == "raise":
            raise ValueError("the rows are upside down")
        elif kind == "leave":
            os._exit(0)
        elif kind == "full":
            raise OSError(28, "No space left on device")

    heartbeats.Heart.beat = beat
"""


@dataclass(frozen=True)
class Found:
    """What one fault or signal led to.

    Attributes:
        seconds: from the fault to the end of all processes that trained.
        code: the command's exit code.
        said: its error.
        orphans: processes that were left.
        resumed: whether the same command then ended with the weights of an undisturbed run.
    """

    engine: str
    fault: str
    phase: str
    seconds: float
    code: int
    said: str
    orphans: int
    resumed: bool


def recipe() -> str:
    """JSON is YAML."""
    training = {
        "max_steps": 8,
        "save_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "bf16": False,
        "per_device_train_batch_size": 4,
    }
    return json.dumps(
        {
            "name": "rank_faults",
            "model": {"base": "lab", "dtype": "float32"},
            "parameterization": {"method": "lora"},
            "forgetting": {"probes": "lab", "items": 25},
            "launch": {"processes": 2},
            "stages": {"sft": {"data": {"source": "lab/helpdesk", "limit": 96}, "training": training}},
        }
    )


def start(folder: Path, engine: str, fault: str = "none:none") -> subprocess.Popen[str]:
    """The command, in the background."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe(), encoding="utf-8")
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(FAULTY, encoding="utf-8")
    words = [word for one in ENGINES[engine] for word in ("--set", one)]
    command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run", *words]
    path = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[1])])
    settings = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE, "PYTHONPATH": path, "COLUMNS": "1000"}
    settings["FAULT"] = f"{fault}:{folder / 'told'}"
    return subprocess.Popen(
        command, cwd=folder, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def trained(folder: Path) -> str:
    """Hash of the weights that a run ended with."""
    file = folder / "run/stages/sft/model/adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def undisturbed(folder: Path, engine: str) -> str:
    """The same of a run that nothing happens to.

    Raises:
        SystemExit: it failed.
    """
    if not (folder / "run/report.md").is_file():
        process = start(folder, engine)
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(said)
    return trained(folder)


def measure(folder: Path, engine: str, fault: str, phase: str, expected: str) -> Found:
    """Have it happen, and run the command again."""
    process = start(folder, engine, f"{phase}:{fault}")
    pids: set[int] = set()
    while not (folder / "told").exists() and process.poll() is None:
        time.sleep(0.02)
    if not (folder / "told").exists():
        raise SystemExit(f"{engine} ended before the phase {phase} was told of: {process.communicate()[0]}")
    began = time.monotonic()
    if fault in SIGNALS:
        process.send_signal(SIGNALS[fault])
    pids = {beat.pid for beat in heartbeats.read(RunDir(folder / "run")).values()}
    while process.poll() is None and not all(processes.is_gone(pid) for pid in pids):
        time.sleep(0.02)
    seconds = time.monotonic() - began
    said, _ = process.communicate()
    orphans = sum(not processes.is_gone(pid) for pid in pids)
    _, _, error = said.rpartition("error ") if "error " in said else said.strip().rpartition("\n")
    again = start(folder, engine)
    again.communicate()
    resumed = again.returncode == 0 and trained(folder) == expected
    first = error.split("\n")[0].replace(str(folder), "…")
    return Found(engine, fault, phase, round(seconds, 1), process.returncode, first, orphans, resumed)


def table(found: list[Found]) -> str:
    """The Markdown table."""
    lines = ["| engine | the last process | in phase | s to the end | exit | orphans | same bits after | said |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for one in found:
        resumed = "yes" if one.resumed else "NO"
        what = FAULTS.get(one.fault) or f"{SIGNALS[one.fault].name} to the command"
        cells = [one.engine, what, one.phase, f"{one.seconds:.1f}", one.code, one.orphans, resumed, one.said]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def held(root: Path) -> list[Found]:
    """All that a folder holds, in the order of the table."""
    names = (f"{engine}-{fault}-{phase}" for engine in ENGINES for fault in [*FAULTS, *SIGNALS] for phase in PHASES)
    files = (root / name / "found.json" for name in names)
    return [Found(**json.loads(file.read_text(encoding="utf-8"))) for file in files if file.is_file()]


def main() -> None:
    """Every fault in every phase, engine by engine; what a folder holds already is not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=["ddp"])
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS, *SIGNALS], default=[*FAULTS, *SIGNALS])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    asked = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, in what is started too
    clock.heading("rank_faults: a fault or a signal in each phase")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        for engine in asked.engines:
            expected = undisturbed(root / engine, engine)
            for fault in asked.faults:
                for phase in asked.phases:
                    folder = root / f"{engine}-{fault}-{phase}"
                    kept = folder / "found.json"
                    if not kept.is_file():
                        one = measure(folder, engine, fault, phase, expected)
                        kept.write_text(json.dumps(asdict(one)), encoding="utf-8")
                    found.append(Found(**json.loads(kept.read_text(encoding="utf-8"))))
                    print(table(found[-1:]).split("\n")[-1], flush=True)
        found = held(root)
    if asked.write:
        page.fill(PAGE, MARK, table(found))


if __name__ == "__main__":
    main()
