"""Reads the runs that are to stand side by side, and refuses those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.errors import AlignError, Place
from align.forgetting import measurements, probes
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.forgetting.records import BatterySize
from align.report import records
from align.report.schema import Report
from align.run_folder import handed_on, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Outcome

SAME_NUMBER = (
    "`forgetting.items: auto` chose another number in each: write the same one into both recipes and run them again: "
    "they are measured, not trained again"
)


@dataclass(frozen=True)
class Side:
    """One run.

    Attributes:
        label: what it is called beside the others.
        recipe: every value of it.
        base: what was measured before training.
        stages: what was measured after each stage, in order; asked the same as the last of them.
    """

    label: str
    folder: Path
    report: Report
    recipe: dict[str, Any]
    base: Measurement
    stages: dict[str, Measurement]
    under_way: bool

    @property
    def last(self) -> str:
        """The stage whose policy the run ends with."""
        return list(self.stages)[-1]

    @property
    def limits(self) -> ForgettingKeys:
        """What the recipe tolerates."""
        return ForgettingKeys.model_validate(self.recipe.get("forgetting") or {})

    def outcome(self, stage: str) -> Outcome | None:
        """What a stage did; None where the run has no such stage, or it is not done."""
        return next((one.outcome for one in self.report.stages if one.id == stage), None)

    @property
    def model(self) -> BaseModelIdentity:
        """The base model."""
        outcome = self.outcome(self.last)
        assert outcome is not None and outcome.policy is not None
        return outcome.policy.base

    @property
    def asked(self) -> str:
        """Hash of what was to be asked."""
        outcome = self.outcome(self.last)
        assert outcome is not None
        return outcome.probes_sha256

    @property
    def answered(self) -> str:
        """The same with the number of items that `items: auto` chose, as if it had been written into the recipe."""
        keys, asked = self.limits, self.asked
        chosen = reading.whole(RunDir(self.folder).battery_size, BatterySize)
        settled = keys.probes == "general" and keys.items == "auto"
        if settled and chosen is not None and asked == probes.digest(keys):
            return probes.digest(keys.model_copy(update={"items": chosen.items}))
        return asked


def read(folders: Sequence[Path]) -> list[Side]:
    """The runs in these folders, which can be compared.

    Raises:
        AlignError: a folder is no run, has nothing to compare, or was measured otherwise than the first.
    """
    if len(folders) < 2:
        raise AlignError("a comparison needs two runs or more", "align compare runs/a runs/b")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise AlignError(f"'{folder}' is given twice", "give another run to compare it with")
        seen[folder.resolve()] = folder
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    sides = [_side(folder, label) for folder, label in zip(folders, labels, strict=True)]
    for other in sides[1:]:
        _check(sides[0], other)
    return sides


def _side(folder: Path, label: str) -> Side:
    report, run = records.load(folder), RunDir(folder)
    under_way = (folder / ".lock").exists() and run.is_held()
    done = {stage.id: stage.outcome for stage in report.stages if stage.outcome and stage.outcome.policy}
    of = {id: handed_on.folder(run.stage(id)).measurements for id in done}
    measured = [id for id, place in of.items() if (place / "summary.json").is_file()]
    left = [id for id in measured if handed_on.rolled_back(run.stage(id))]
    if measured and left == measured:
        what = f"'{folder}' hands on no policy: all that it trained was rolled back to its base"
        raise AlignError(what, "compare runs that hand one on")
    measured = [id for id in measured if id not in left]
    if not (run.base_measurements / "summary.json").is_file() or (done and not measured):
        raise _not_measured(folder, report, under_way=under_way)
    if not measured:
        remedy = "wait until one is" if under_way else "run it first: align run"
        raise AlignError(f"no stage of '{folder}' has been trained and measured yet", remedy)
    same = [id for id in measured if done[id].probes_sha256 == done[measured[-1]].probes_sha256]
    stages = {id: measurements.load(of[id]) for id in same}
    base = measurements.load(run.base_measurements)
    return Side(label, folder, report, _recipe(run.recipe, report.recipe), base, stages, under_way)


def _not_measured(folder: Path, report: Report, *, under_way: bool) -> AlignError:
    what = f"'{folder}' has no measurements to compare"
    if report.run.probes == "none":
        again = "set `forgetting.probes` in its recipe and run it again: what is trained is measured, not trained again"
        return AlignError(f"{what}: its recipe says `probes: none`", again)
    return AlignError(what, "wait until it is measured" if under_way else "run it first: align run")


def _recipe(path: Path, text: str) -> dict[str, Any]:
    try:
        found = YAML(typ="safe").load(StringIO(text))
    except YAMLError:
        found = None
    if not isinstance(found, dict):
        what = "the file is damaged: it is no recipe"
        raise AlignError(what, "run `align run` again, which rewrites it", place=Place(str(path)))
    return found


def _check(first: Side, other: Side) -> None:
    """Refuse a run that cannot be compared item by item with the first.

    Raises:
        AlignError: another base, other probes, or other items.
    """
    a, b = first.model, other.model
    if a.identity != b.identity:
        names = f"{b.name}, not {a.name}" if a.name != b.name else f"other files of the name {a.name}"
        what = f"'{other.folder}' has another base than '{first.folder}': {names}"
        raise AlignError(what, "compare runs of one base model")
    mine, theirs = first.stages[first.last], other.stages[other.last]
    only = {side.folder: [name for name in one.probes if name not in two.probes]
            for side, one, two in ((first, mine, theirs), (other, theirs, mine))}  # fmt: skip
    remedy = "give both recipes the same `forgetting.probes` and run them again: they are measured, not trained again"
    if any(only.values()):
        names = "; ".join(f"only in '{folder}': {', '.join(probes)}" for folder, probes in only.items() if probes)
        raise AlignError(f"'{other.folder}' has other probes than '{first.folder}': {names}", remedy)
    for name, info in mine.probes.items():
        what = f"'{other.folder}' has other items of the probe '{name}' than '{first.folder}'"
        if info.metric != theirs.probes[name].metric:
            raise AlignError(
                f"'{other.folder}' measures another thing by the probe '{name}' than '{first.folder}'", remedy
            )
        for split in ("gate", "report"):
            if mine.items.get((split, name), {}).keys() != theirs.items.get((split, name), {}).keys():
                raise AlignError(what, SAME_NUMBER if first.asked == other.asked else remedy)
        if info.sha256 and theirs.probes[name].sha256 not in ("", info.sha256):
            what = f"'{other.folder}' has a probe '{name}' of other content than '{first.folder}'"
            raise AlignError(what, remedy)
    known = all(one.sha256 for side in (mine, theirs) for one in side.probes.values())
    if not known and first.answered != other.answered:  # measured by an older align
        what = f"'{other.folder}' has probes of the same names as '{first.folder}', but of other content"
        raise AlignError(what, remedy)
