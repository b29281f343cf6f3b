"""The same prompts before training and after every stage, with what was answered."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from align.forgetting.records import Answer
from align.report.findings import BASE
from align.report.schema import Report

TITLES: Final = {"task": "Of the task", "general": "General questions"}


@dataclass(frozen=True)
class Reply:
    """What the base, or a policy, answered; `changed` is whether the base said something else."""

    stage: str
    text: str
    cut: str
    changed: bool


@dataclass(frozen=True)
class Exchange:
    """One prompt with every answer, the base's first; `source` says where a prompt of the task comes from."""

    prompt: str
    source: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Answered:
    """The prompts of one kind."""

    title: str
    exchanges: tuple[Exchange, ...]


def answered(report: Report) -> Iterable[Answered]:
    """Prompts of the task and general ones, in the order in which the base was asked."""
    after = {stage.id: {answer.id: answer for answer in stage.answers} for stage in report.stages if stage.answers}
    if not after:
        return
    for kind in dict.fromkeys(answer.kind for answer in report.base_answers):
        asked = [answer for answer in report.base_answers if answer.kind == kind]
        exchanges = tuple(
            Exchange(
                answer.prompt,
                answer.source,
                (
                    _reply(BASE, answer, answer),
                    *(_reply(id, found[answer.id], answer) for id, found in after.items() if answer.id in found),
                ),
            )
            for answer in asked
        )
        yield Answered(TITLES.get(kind, kind.capitalize()), exchanges)


def _reply(stage: str, answer: Answer, before: Answer) -> Reply:
    cut = f"cut after {answer.tokens} tokens" if answer.cut else ""
    return Reply(stage, answer.answer, cut, answer.answer != before.answer)
