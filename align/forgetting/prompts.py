"""The few prompts that the base and every policy answer, so that a reader sees what training changed. No torch.

Up to six are of the task: held-out rows where a stage has any, else training rows, drawn in a fixed order. The others
are general ones that ship with align; the lab model, whose vocabulary is tiny, gets questions of its own world.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from align.data.formats import Example, prompt_of
from align.errors import AlignError
from align.run_folder import files
from align.run_folder.records import Prompt

ANSWER_TOKENS: Final = 48
TASK_PROMPTS: Final = 6
LONGEST: Final = 2000  # characters of a task prompt; nobody reads a longer one, and it takes long to answer
DRAWN: Final = 60  # rows of a stage that are looked at
LAB_SKILLS: Final = ("extract", "copy", "reverse", "add", "facts", "sentiment")


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage that gives a policy."""

    train: Sequence[Example]
    evaluation: Sequence[Example]


def choose(stages: Mapping[str, StageRows], *, lab: bool) -> list[Prompt]:
    """The prompts of a run, those of the task first; the same for the same rows.

    Args:
        stages: by name, in the order in which they run.
        lab: whether the base is the lab model.
    """
    if not stages:
        return []
    general = _of_the_lab() if lab else _general()
    return [*_of_the_task(stages), *(_prompt("general", {"prompt": [_user(text)]}) for text in general)]


def shown(value: Mapping[str, Any]) -> str:
    """A prompt as a person reads it: the one question alone, or every turn with who says it."""
    prompt = value["prompt"]
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in prompt)


def _of_the_task(stages: Mapping[str, StageRows]) -> list[Prompt]:
    """An equal share of every stage; of those alone that hold rows out, if any do."""
    held_out = any(rows.evaluation for rows in stages.values())
    row = "a held-out row" if held_out else "a training row"
    found: dict[str, Prompt] = {}
    owner: dict[str, str] = {}
    waiting = {
        stage: _drawn(rows.evaluation if held_out else rows.train, f"{row} of {stage}")
        for stage, rows in stages.items()
    }
    while waiting and len(found) < TASK_PROMPTS:
        for stage in list(waiting):
            new = next((prompt for prompt in waiting[stage] if prompt.id not in found), None)
            if new is None:
                del waiting[stage]
            elif len(found) < TASK_PROMPTS:
                found[new.id], owner[new.id] = new, stage
    order = list(stages)
    return sorted(found.values(), key=lambda prompt: order.index(owner[prompt.id]))


def _drawn(rows: Sequence[Example], source: str) -> Iterator[Prompt]:
    """Prompts of some rows, in a fixed random order."""
    for at in random.Random("answers").sample(range(len(rows)), min(DRAWN, len(rows))):
        try:
            example = prompt_of(rows[at])
        except AlignError:  # an answer to nothing
            continue
        value: dict[str, Any] = {name: example.value[name] for name in ("prompt", "tools") if name in example.value}
        if "prompt" in value and len(shown(value)) <= LONGEST:
            yield _prompt("task", value, source)


def _prompt(kind: Literal["task", "general"], value: dict[str, Any], source: str = "") -> Prompt:
    return Prompt(id=files.digest([kind, value, ANSWER_TOKENS])[:16], kind=kind, value=value, source=source)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@cache
def _general() -> list[str]:
    lines = (Path(__file__).parent / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@cache
def _of_the_lab() -> list[str]:
    """A held-out question of some of its skills."""
    from align.lab import skills

    return [skills.draw(skill, random.Random(f"answers {skill}"), "report").prompt for skill in LAB_SKILLS]
