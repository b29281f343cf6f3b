"""What the report says beside the matrix: all probes taken together, what was retained, how sure the choices are, and
the answers that were mended."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from align.forgetting.records import MendedAnswer
from align.forgetting.table import Effect, Forgetting, Kept, NoValue, RightChoice
from align.report import findings, numbers
from align.report.schema import Report

MENDED_SHOWN: Final = 3
"""Mended answers shown of one probe."""

ALL_SKILLS: Final = "All skills"


@dataclass(frozen=True)
class DetailRow:
    """One capability; texts, empty where it has no such figure."""

    name: str
    retained: str
    interval: str
    before: str
    after: str
    change: str
    change_interval: str


@dataclass(frozen=True)
class Details:
    """The rows of one stage."""

    stage: str
    rows: tuple[DetailRow, ...]


@dataclass(frozen=True)
class MendedGroup:
    """Answers of one probe that were wrong in the base and are right after `stage`; `total` in all."""

    stage: str
    probe: str
    total: int
    shown: tuple[MendedAnswer, ...]


def family_lines(forgetting: Forgetting) -> list[str]:
    """What stays sure when all probes are taken together, for each policy handed on that has forgotten something by a
    probe alone."""
    return [text for stage in findings.ends(forgetting) if (text := _family_line(forgetting, stage))]


def _family_line(forgetting: Forgetting, stage: str) -> str:
    family = forgetting.family.get(stage)
    forgot = [name for name, cell in forgetting.matrix[stage].items() if cell.verdict == "FORGOT"]
    if family is None or not forgot:
        return ""
    judged, sure = family.judged, family.beyond
    how = f"(Holm, {family.error:.0%})".replace("%", " %")
    if sure:
        are = "probes are beyond their limit" if len(sure) > 1 else "probes is beyond its limit"
        many = f"{len(sure)} of {judged} {are} for sure even though {judged} were looked at {how}"
        return f"After {stage}, {many}: {', '.join(sure)}."
    alone = f"{', '.join(forgot)} {'are' if len(forgot) > 1 else 'is'} FORGOT taken alone"
    return (
        f"After {stage}, none of {judged} probes is beyond its limit for sure with {judged} looked at {how}: {alone}."
    )


def details(forgetting: Forgetting) -> list[Details]:
    """Retention and the probability of the right choice, for each stage that ends a branch."""
    found = []
    for stage in findings.ends(forgetting):
        row = forgetting.matrix[stage]
        groups = [group for group in findings.groups(forgetting) if group.key != findings.APART]
        shown = [name for group in groups for name in group.probes if name in row]
        rows = [_row(name, row[name].retention, row[name].right_choice) for name in shown]
        mean = forgetting.mean.get(stage, {}).get(findings.ALL)
        if mean and mean.retention:
            rows.append(_row(ALL_SKILLS, mean.retention, None))
        rows = [one for one in rows if one.retained or one.before]
        if rows:
            found.append(Details(stage, tuple(rows)))
    return found


def _row(name: str, kept: Kept | NoValue | None, choice: RightChoice | None) -> DetailRow:
    retained = interval = ""
    if isinstance(kept, NoValue):
        retained = f"undefined: {kept.undefined}"
    elif kept is not None:
        low, high = kept.ci95 or (None, None)
        retained = f"{numbers.score(kept.share)} ({kept.kept} of {kept.right})"
        interval = f"[{numbers.score(low)}, {numbers.score(high)}]"
    if choice is None:
        return DetailRow(name, retained, interval, "", "", "", "")
    effect = Effect(delta=choice.delta, ci95=choice.ci95)
    figures = numbers.score(choice.before), numbers.score(choice.after), numbers.change(effect)
    return DetailRow(name, retained, interval, *figures, numbers.interval(effect))


def mended(report: Report) -> Iterable[MendedGroup]:
    """Some of the answers of each probe and stage that are right only now."""
    for stage in report.stages:
        for probe in dict.fromkeys(row.probe for row in stage.mended):
            found = [row for row in stage.mended if row.probe == probe]
            cell = report.forgetting.matrix.get(stage.id, {}).get(probe) if report.forgetting else None
            total = max(len(found), cell.gained or 0) if cell else len(found)
            yield MendedGroup(stage.id, probe, total, tuple(found[:MENDED_SHOWN]))
