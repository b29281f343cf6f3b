"""What an item of a probe asks, and its right answer, as a reader sees them beside what a model said."""

from __future__ import annotations

from align.forgetting.battery.skill import Item
from align.forgetting.own.items import OwnItem
from align.forgetting.own.kinds import Answered, Chosen, Task
from align.forgetting.probes import Battery, Exact

Quotable = Exact | Battery | Answered | Chosen | Task  # probes that have answers to show


def quoted(probe: Quotable, id: str) -> tuple[str, str]:
    """The prompt and the right answer of an item of the report's half."""
    if isinstance(probe, Task):
        from align.forgetting.own import harness

        found = harness.document(probe, id)
        return found.prompt, found.answer
    if isinstance(probe, Exact):
        question = next(question for question in probe.items["report"] if question.id == id)
        return question.prompt, question.answer
    item: Item | OwnItem = probe.items["report"][id]
    return "\n".join(message["content"] for message in item.messages), item.answer
