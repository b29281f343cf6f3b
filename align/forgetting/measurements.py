"""What was measured of one model: every item's score, read from a run's measurement folder and compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.errors import AlignError, Place
from align.forgetting.statistics import Change, PerplexityChange, exp, paired_binary, paired_perplexity
from align.run_folder import files

Split = Literal["gate", "report"]
Metric = Literal["accuracy", "perplexity"]
Kind = Literal["skill", "task", "text", "agreement"]

REMEDY = "delete this folder and run `align run` again: the model is measured again"


@dataclass(frozen=True)
class ProbeInfo:
    """What a probe measures.

    Attributes:
        metric: accuracy (the mean of scores in 0..1) or corpus perplexity.
        higher_is_better: true of accuracy, false of perplexity.
        kind: a skill of the base, the task being taught, or running text; in runs of an older align also agreement with
            the base's own answers.
        replayed: whether the replay data cover it; None where that is not known.
        chance: the accuracy of guessing; None where nothing can be guessed.
        sha256: of what was asked and how it was scored; empty in runs of an older align.
    """

    metric: Metric
    higher_is_better: bool
    kind: Kind
    replayed: bool | None = None
    chance: float | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Item:
    """One item: its score in 0..1 (tokens 1), or its negative log-likelihood in nats over `tokens` tokens.

    A negative log-likelihood that is not a finite number, as a diverged model gives, is inf. `probability` is that of
    the right choice among the choices, where there are any.
    """

    value: float
    tokens: int = 1
    probability: float | None = None


@dataclass(frozen=True)
class Measurement:
    """All probes of one model.

    Attributes:
        probes: by name, in the order in which they were asked.
        items: (split, probe) -> item id -> item; a split that a probe does not have is absent.
        place: the folder it came from, for messages.
    """

    probes: dict[str, ProbeInfo]
    items: dict[tuple[Split, str], dict[str, Item]]
    place: str = "the measurement"

    def has(self, split: Split, probe: str) -> bool:
        return (split, probe) in self.items

    def score(self, split: Split, probe: str) -> float:
        """Mean score, or corpus perplexity exp(sum nll / sum tokens)."""
        items = self.items[split, probe].values()
        mean = math.fsum(item.value for item in items) / sum(item.tokens for item in items)
        return mean if self.probes[probe].metric == "accuracy" else exp(mean)


def compare(before: Measurement, after: Measurement, split: Split, probe: str) -> Change | PerplexityChange:
    """The change of one probe, item by item.

    Raises:
        AlignError: the two did not measure the same items of this probe.
    """
    pairs = paired(before, after, split, probe)
    if before.probes[probe].metric == "accuracy":
        return paired_binary([item.value for item, _ in pairs], [item.value for _, item in pairs])
    return paired_perplexity(
        [(item.value, item.tokens) for item, _ in pairs], [(item.value, item.tokens) for _, item in pairs]
    )


def paired(before: Measurement, after: Measurement, split: Split, probe: str) -> list[tuple[Item, Item]]:
    """The items of one probe, each as it was and as it is.

    Raises:
        AlignError: the two did not measure the same items of this probe.
    """
    earlier, later = before.items[split, probe], after.items.get((split, probe), {})
    if earlier.keys() != later.keys():
        raise AlignError(
            f"{before.place} and {after.place} did not measure the same {split} items of the probe {probe!r}: "
            f"{len(earlier.keys() - later.keys())} only before, {len(later.keys() - earlier.keys())} only after",
            "delete the later of the two folders and run `align run` again: the model is measured again",
        )
    return [(item, later[name]) for name, item in earlier.items()]


def is_whole(folder: Path) -> bool:
    """Whether a measurement is there, and is what was written; an older one says of no file what it was."""
    summary = files.unsealed(files.read_json(folder / "summary.json"))
    if summary is None or not {"probes", "scores"} <= summary.keys():
        return False
    held = summary.get("files", {})
    there = {name: folder / name for name in held} if isinstance(held, dict) else {}
    return all(path.is_file() and files.file_sha256(path) == held[name] for name, path in there.items())


def load(folder: Path) -> Measurement:
    """Read `summary.json` and `items.jsonl` of a measurement folder.

    Raises:
        AlignError: a file is missing or damaged, or the items are not those that the summary counts.
    """
    file = folder / "summary.json"
    try:
        summary = _Summary.model_validate_json(_read(file))
    except ValidationError as error:
        raise _damaged(file, None, _first(error)) from error
    for name, info in summary.probes.items():
        if info.higher_is_better != (info.metric == "accuracy"):
            raise _damaged(file, None, f"the probe {name!r} says that of {info.metric} the wrong end is better")
    items: dict[tuple[Split, str], dict[str, Item]] = {}
    for line, entry in _lines(folder / "items.jsonl"):
        place = folder / "items.jsonl", line
        if entry.probe not in summary.probes:
            raise _damaged(*place, f"summary.json knows no probe {entry.probe!r}")
        group = items.setdefault((entry.split, entry.probe), {})
        if entry.id in group:
            raise _damaged(*place, f"the item {entry.id!r} of the probe {entry.probe!r} occurs twice")
        group[entry.id] = _item(entry, summary.probes[entry.probe].metric, *place)
    counted = {(split, probe): s.n for split, scores in summary.scores.items() for probe, s in scores.items() if s.n}
    for split, probe in sorted(counted.keys() | items.keys()):
        n, found = counted.get((split, probe), 0), len(items.get((split, probe), {}))
        if n != found:
            why = f"{found} {split} items of the probe {probe!r}, where summary.json counts {n}"
            raise _damaged(folder / "items.jsonl", None, why)
    return Measurement(summary.probes, items, str(folder))


class _Score(BaseModel):
    n: int


class _Summary(BaseModel):
    """The part of `summary.json` that is read back; the scores themselves are taken from the items."""

    probes: dict[str, ProbeInfo]
    scores: dict[Split, dict[str, _Score]]


class _Line(BaseModel):
    """One line of `items.jsonl`; further fields (prompts, answers) are for the report."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    probe: str
    split: Split
    id: str
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    nll: float | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


def _item(entry: _Line, metric: Metric, file: Path, line: int) -> Item:
    if metric == "accuracy":
        if entry.score is None:
            raise _damaged(file, line, f"an item of the probe {entry.probe!r} has no score")
        return Item(entry.score, probability=entry.p)
    if entry.tokens is None:
        raise _damaged(file, line, f"an item of the probe {entry.probe!r} has no number of tokens")
    if entry.nll is None or not math.isfinite(entry.nll):
        return Item(math.inf, entry.tokens)
    return Item(entry.nll, entry.tokens)


def _lines(file: Path) -> Iterator[tuple[int, _Line]]:
    for number, text in enumerate(_read(file).removesuffix("\n").split("\n"), start=1):
        try:
            yield number, _Line.model_validate_json(text)
        except ValidationError as error:
            raise _damaged(file, number, _first(error)) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise AlignError(f"{file.name} is missing from the measurement {file.parent}", REMEDY) from error
    except UnicodeDecodeError as error:
        raise _damaged(file, None, "it is not UTF-8 text") from error


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def _damaged(file: Path, line: int | None, why: str) -> AlignError:
    return AlignError(f"the measurement is damaged: {why}", REMEDY, place=Place(str(file), line))
