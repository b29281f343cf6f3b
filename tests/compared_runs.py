"""Run folders for the tests of `align compare`: what a run leaves, without a training, written through its records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Outcome, Policy, Rows, Ticket
from align.run_folder.run_record import RunRecord, StageEntry

LAB = BaseModelIdentity(name="lab", path="/models/lab", identity="a" * 64)
N = 100  # items of a skill, in each half
TEXTS = 20

Scores = Mapping[str, float]  # probe -> items answered right; of `stories` the nats a token


def write_run(
    folder: Path,
    stages: Mapping[str, Scores],
    *,
    base: Scores | None = None,
    model: BaseModelIdentity = LAB,
    recipe: Mapping[str, Any] | None = None,
    probes: str = "own",
    asked: str = "1",
    prefix: str = "item",
    chance: float | None = None,
    sha256: str = "",
) -> Path:
    """A run whose stages were trained one on the other and measured.

    Args:
        stages: what each scored.
        asked: stands for the content of the probes.
        prefix: of the items' ids.
        chance: of every skill.
        sha256: of every probe; empty as an older align left it.
    """
    run = RunDir(folder)
    entries = {id: StageEntry(stage="sft", inputs={"policy": "base"}, status="done") for id in stages}
    record = RunRecord(name=folder.name, align="1.0", order=tuple(stages), stages=entries, probes=probes)
    files.write_json(run.record, record.written())
    limits = {"forgetting": {"probes": "lab", "max_drop": 0.1}, "name": folder.name, "seed": 1}
    with run.recipe.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump({**limits, **(recipe or {})}, file)
    measure(run.base_measurements, base or dict.fromkeys(next(iter(stages.values()), {}), N), prefix, chance, sha256)
    for id, scores in stages.items():
        finish(run, id, model, asked)
        measure(run.stage(id).measurements, scores, prefix, chance, sha256)
    return folder


def measure(folder: Path, scores: Scores, prefix: str = "item", chance: float | None = None, sha256: str = "") -> None:
    """Items of which the first so many are right; `stories` are texts, `task ...` figures of a task."""
    probes, counts, lines = {}, dict[str, dict[str, Any]](), []
    for name, score in scores.items():
        text, kind = name == "stories", "task" if name.startswith("task") else "skill"
        probes[name] = {
            "metric": "perplexity" if text else "accuracy",
            "higher_is_better": not text,
            "kind": "text" if text else kind,
            "chance": chance,
            "sha256": sha256,
        }
        for split in ("gate", "report"):
            counts.setdefault(split, {})[name] = {"n": TEXTS if text else N}
            for i in range(TEXTS if text else N):
                found = {"nll": score * (10 + i) + i % 2 / 10, "tokens": 10 + i} if text else {"score": int(i < score)}
                lines.append({"probe": name, "split": split, "id": f"{prefix} {i}", **found})
    files.write_text(folder / "items.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    files.write_json(folder / "summary.json", {"probes": probes, "scores": counts})


def finish(run: RunDir, id: str, model: BaseModelIdentity = LAB, asked: str = "1", **changed: Any) -> None:
    """The outcome, the ticket and the losses of a stage."""
    here = run.stage(id)
    rows = Rows(path="data/1.jsonl", sha256="c" * 64, count=64, kinds=["chat"])
    ticket = Ticket(
        stage=id, program="sft", program_path="sft.py", gives="policy", fingerprint="f", seed=1,
        policy=Policy(base=model), model={}, parameterization={}, keys={}, training={}, train=rows, evaluation=None,
        replay=None, replay_ratio=0.0, probes="lab", program_sha256="p", chat_template=None, replays=False,
        measure_base=False, processes=1, trackers=[], run_name="x", probes_sha256=asked,
    )  # fmt: skip
    outcome = {
        "stage": id, "program": "sft", "fingerprint": "f", "seconds": 30.0, "cpu_seconds": 20.0, "measure_seconds": 1.0,
        "measure_cpu_seconds": 1.0, "probes_sha256": asked, "world_size": 1, "distributed_type": "NO",
        "global_batch_size": 8, "steps": 12, "parameters": {"total": 1000, "trainable": 100}, "parameterization": {},
        "metrics": {}, "data": {"rows": 64, "replay_rows": 0}, "peak_memory_bytes": 3 * 2**20, "artifacts": {},
        "policy": Policy(base=model),
    }  # fmt: skip
    done = Outcome.model_validate(outcome | changed)
    files.write_json(here.ticket, ticket.model_dump(mode="json"))
    files.write_json(here.outcome, done.model_dump(mode="json"))
    files.write_text(here.metrics, '{"step": 6, "loss": 2.0}\n{"step": 12, "loss": 0.5, "eval_loss": 0.75}\n')
