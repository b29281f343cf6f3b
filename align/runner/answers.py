"""The answers of a run, as the parent sees them: what is asked, whether it was, and two of them for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from align.forgetting import prompts
from align.forgetting.records import Answer
from align.policy.base import LAB
from align.preflight.check import Prepared
from align.recipe.plan import Loaded
from align.run_folder import reading
from align.run_folder.records import Prompt

WIDTH: Final = 80  # characters of a prompt or an answer that a line of the terminal shows


def asked(loaded: Loaded, prepared: Prepared) -> list[Prompt]:
    """The prompts of a run; none where nothing is measured, or the recipe wants no answers."""
    keys = loaded.recipe.forgetting
    if not keys.answers or keys.probes == "none":
        return []
    stages = {
        plan.id: prompts.StageRows(prepared.rows[plan.id].train, prepared.rows[plan.id].evaluation)
        for plan in loaded.stages
        if plan.program.stage.gives == "policy"
    }
    return prompts.choose(stages, lab=loaded.recipe.model.base == LAB or keys.probes == "lab")


def missing(path: Path, asked: Sequence[Prompt]) -> bool:
    """Whether a file lacks the answers to these prompts, or has those to others."""
    if not asked:
        return False
    return [line.get("id") for line in reading.lines(path)] != [prompt.id for prompt in asked]


def told(base: Path, stage: Path, name: str) -> Iterator[str]:
    """Lines that show one answer to a prompt of the task and one to a general prompt, before and after a stage: of each
    kind the first that the stage answers otherwise than the base, else the first."""
    before = {answer.id: answer for answer in reading.rows(base, Answer)}
    after = [answer for answer in reading.rows(stage, Answer) if answer.id in before]
    width = max(len(name), len("asked"))
    for kind in ("task", "general"):
        answers = [answer for answer in after if answer.kind == kind]
        changed = [answer for answer in answers if answer.answer != before[answer.id].answer]
        for now in (changed or answers)[:1]:
            yield f"  {'asked':>{width}}  {_line(now.prompt)}{f' ({now.source})' if now.source else ''}"
            yield f"  {'base':>{width}}  {_line(before[now.id].answer)}"
            yield f"  {name:>{width}}  {_line(now.answer)}"


def _line(text: str) -> str:
    """A text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= WIDTH else f"{flat[:WIDTH]} …"
