"""Everything that can be known before a model is loaded: base, every data row, probes, packages, disk. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import base as bases
from align import rundir
from align.base import Base
from align.data import checks, mixing, template
from align.data.checks import Lengths, Table
from align.data.formats import Example
from align.data.sources import DataSource
from align.errors import AlignError, Exit, FaultList
from align.forgetting import probes
from align.recipe import Loaded, StagePlan
from align.rundir import RunDir
from align.stage import Rows

NEEDED = {"trl": "1.16"}
TRAINER_DEFAULT_MAX_LENGTH = 1024  # of TRL 1.16, for SFT, reward and DPO


@dataclass(frozen=True)
class StageRows:
    """The checked rows of one stage, not written yet."""

    train: list[Example]
    evaluation: list[Example]
    replay: Table | None


@dataclass(frozen=True)
class Prepared:
    """What checking a recipe found."""

    base: Base
    rows: dict[str, StageRows]
    chat_template: str | None  # the recipe's own, as text
    notes: list[str]


def prepare(loaded: Loaded, *, offline: bool = False) -> Prepared:
    """Check all that can be checked before a model is loaded.

    Args:
        offline: do not look at the Hub: its names are taken on trust, and the notes say so.

    Raises:
        AlignError, Faults: all faults of the recipe's data at once.
    """
    faults, notes = FaultList(), list(loaded.warnings)
    _packages(loaded)
    read, keys = loaded.document, loaded.recipe.model
    found: Base | None = None
    own: str | None = None
    try:
        found = bases.resolve(keys.base, keys.revision, root=loaded.root, offline=offline)
        if found.path is None:
            notes.append(f"the model '{keys.base}' was not looked up")
    except AlignError as error:
        faults.found.append(_at(error, read.fault(("model", "base"), error.what, error.remedy)))
    try:
        own = template.resolve(keys.chat_template, loaded.root) if keys.chat_template else None
    except AlignError as error:
        faults.found.append(_at(error, read.fault(("model", "chat_template"), error.what, error.remedy)))
    tables: dict[str, Table] = {}
    rows: dict[str, StageRows] = {}
    for plan in loaded.stages:
        with faults.collect():
            rows[plan.id] = _stage_rows(loaded, plan, tables, notes, offline)
            if found is not None and found.path is not None:
                _against_model(loaded, plan, rows[plan.id], found.path, own, notes)
    try:
        probes.load(loaded.recipe.forgetting, loaded.root)
    except AlignError as error:
        faults.found.append(_at(error, read.fault(("forgetting", "probes"), error.what, error.remedy)))
    faults.raise_any()
    assert found is not None
    return Prepared(found, rows, own, notes)


def _at(error: AlignError, placed: AlignError) -> AlignError:
    """The error at its own place where it has one."""
    placed.exit = error.exit
    return error if error.place else placed


def _packages(loaded: Loaded) -> None:
    for name, version in NEEDED.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise AlignError(f"the package '{name}' is not installed", "pip install align-suite", exit=Exit.MACHINE) from None
        if not installed.startswith(f"{version}."):
            raise AlignError(f"{name} {installed} is installed and {version} is needed", f"pip install '{name}=={version}.*'",
                             exit=Exit.MACHINE)
    for tracker in loaded.recipe.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise AlignError(f"the tracker '{tracker}' is not installed", f"pip install 'align-suite[{tracker}]'",
                             exit=Exit.MACHINE)
    quantized = any(plan.method.quantization(plan.method_keys) for plan in loaded.stages)
    if quantized and importlib.util.find_spec("bitsandbytes") is None:
        raise AlignError("qlora needs the package 'bitsandbytes'", "pip install bitsandbytes", exit=Exit.MACHINE)


def _sources(value: Any) -> list[DataSource]:
    return value if isinstance(value, list) else [value]


def _stage_rows(loaded: Loaded, plan: StagePlan, tables: dict[str, Table], notes: list[str], offline: bool) -> StageRows:
    """Read and check the rows of a stage; a source that two stages share is read once."""
    accepts = plan.program.stage.rows

    def table(value: Any, key: str) -> Table:
        sources = _sources(value)
        name = json.dumps([[s.model_dump() for s in sources], sorted(accepts)])
        if offline and any(_on_hub(source, loaded.root) for source in sources):
            notes.append(f"stage {plan.id}: the data '{sources[0].source}' were not looked up")
            return Table(examples=[], sha256="", name=sources[0].source, warnings=[])
        if name not in tables:
            try:
                tables[name] = checks.load(sources, root=loaded.root, accepts=accepts, stage=plan.id)
            except AlignError as error:
                if error.place or hasattr(error, "faults"):
                    raise
                raise _at(error, loaded.document.fault(("stages", plan.id, key), error.what, error.remedy)) from None
            notes.extend(f"stage {plan.id}: {text}" for text in tables[name].warnings)
        return tables[name]

    train, evaluation = table(plan.keys.data, "data").examples, list[Example]()
    held = plan.keys.eval_data
    if isinstance(held, float | int) and train:
        train, evaluation = mixing.hold_out(train, held, loaded.recipe.seed)
    elif held is not None and not isinstance(held, float | int):
        evaluation = table(held, "eval_data").examples
    replay = table(plan.replay.data, "replay") if plan.replay and plan.replay.ratio > 0 else None
    return StageRows(train, evaluation, replay)


def _on_hub(source: DataSource, root: Path) -> bool:
    name = source.source
    if name.startswith(("lab/", ".", "/", "~")) or (root / name).exists() or Path(name).exists():
        return False
    return name.count("/") == 1 and "." not in name.rpartition("/")[2].rpartition(".")[2]


def _against_model(loaded: Loaded, plan: StagePlan, rows: StageRows, folder: Path, own: str | None,
                   notes: list[str]) -> None:
    """Whether the model can take these rows: a chat template where one is needed, and answers within max_length."""
    every = [*rows.train, *rows.evaluation, *(rows.replay.examples if rows.replay else [])]
    conversations = any(_is_chat(example) for example in every)
    if conversations and own is None and template.find(folder) is None:
        raise loaded.document.fault(
            ("model", "base"), f"the base '{loaded.recipe.model.base}' has no chat template, and stage '{plan.id}' "
            "trains on conversations", "add `chat_template: plain` under `model`, or name a .jinja file")
    lengths = Lengths.of(folder, own)
    limit = plan.training.get("max_length", TRAINER_DEFAULT_MAX_LENGTH)
    if lengths is None or limit is None:
        return
    table = Table(examples=every, sha256="", name=plan.id, warnings=[])
    mode = plan.training.get("truncation_mode", "keep_start")
    notes.extend(f"stage {plan.id}: {text}" for text in checks.check_lengths(table, lengths, limit, mode))


def _is_chat(example: Example) -> bool:
    return example.kind == "chat" or isinstance(example.value.get("prompt"), list)


def write_rows(run: RunDir, examples: list[Example]) -> Rows:
    """Write checked rows into the run folder, under the hash of their content; equal tables are one file."""
    lines = [json.dumps(example.value, ensure_ascii=False) for example in examples]
    sha256 = rundir.digest(lines)
    path = run.data / f"{sha256[:16]}.jsonl"
    if not path.is_file():
        rundir.write_text(path, "".join(line + "\n" for line in lines))
    return Rows(path=run.relative(path), sha256=sha256, count=len(examples),
                kinds=sorted({example.kind for example in examples}))


def check_disk(loaded: Loaded, base: Base, run: Path) -> None:
    """Refuse a run whose checkpoints will not fit.

    Raises:
        AlignError: with the bytes that are needed and that there are.
    """
    if base.path is None:
        return
    weights = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    needed = 0
    for plan in loaded.stages:
        # two checkpoints of weights and two Adam moments and the result, in float32; an adapter is a few per cent
        share = 2 * (2 * 3 + 1) if plan.method.TRAINS_BASE else 0.5
        needed += int(weights * share)
    free = shutil.disk_usage(_existing(run)).free
    if needed > free:
        raise AlignError(f"the run needs about {needed / 1e9:.1f} GB on disk and '{_existing(run)}' has {free / 1e9:.1f} GB",
                         "free some, or give a --run-dir on another disk", exit=Exit.MACHINE)


def _existing(path: Path) -> Path:
    return next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
