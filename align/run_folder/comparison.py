"""Branches of a run side by side: what the child is asked to compare, and comparison.json, what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from align.run_folder.records import FORMAT, Policy, Record, Reward, Rows

PROMPTS = 200  # that stages which go on from one policy are compared on


class ComparisonRequest(BaseModel):
    """What the child is asked to compare.

    Attributes:
        parent: the stage that all go on from.
        policies: by stage, the parent's among them.
        reward: scores the sampled answers.
        prompts: rows that have a prompt, the first of which are asked; `of` is the stage that they come from.
        key: hash of all this: what was compared already is not compared again.
    """

    format: int = FORMAT
    parent: str
    policies: dict[str, Policy]
    reward: Reward
    prompts: Rows
    of: str
    held_out: bool
    model: dict[str, Any]
    chat_template: str | None
    training: dict[str, Any]
    seed: int
    key: str = ""


class Prompts(Record):
    """The prompts on which branches were compared: those of a stage's rows."""

    of: str = ""
    held_out: bool = False
    count: int | None = None


class Compared(Record):
    """What one policy's sampled answers to these prompts score; `kl` to the parent, nats an answer."""

    score: float | None = None
    kl: float | None = None
    length: float | None = None


class ComparisonResult(Record):
    """comparison.json: the policies of branches on the same prompts, by one reward; `key` is that of the request."""

    format: int = FORMAT
    key: str = ""
    parent: str
    reward: str = ""
    prompts: Prompts = Prompts()
    stages: Mapping[str, Compared] = {}
    cpu_seconds: float | None = None
