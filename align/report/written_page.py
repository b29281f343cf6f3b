"""What the policy of a stage wrote itself before it trained: how much, what became of it, and examples."""

from dataclasses import dataclass
from typing import Final

from align.report.schema import StageRecord
from align.written import words

TITLES: Final = {
    ("replay", False): "Replayed",
    ("replay", True): "Dropped",
    ("rewrite", False): "Rewritten",
    ("rewrite", True): "Not rewritten",
}


@dataclass(frozen=True)
class WrittenExample:
    """A row of the policy; `was` is the data's answer that it replaces, or would have."""

    title: str
    asked: str
    said: str
    was: str
    why: str


@dataclass(frozen=True)
class WrittenPage:
    """Sentences with the numbers, and a few rows of each kind."""

    told: tuple[str, ...]
    examples: tuple[WrittenExample, ...]


def written_page(stage: StageRecord) -> WrittenPage | None:
    """The section of a stage; None where its policy wrote nothing."""
    data = stage.outcome.data if stage.outcome else {}
    replay, rewrite = data.get("self_replay"), data.get("rewrite")
    told = [f"{words.writer(replay)} wrote {words.replayed(replay)}"] if replay else []
    told += [words.rewritten(rewrite)] if rewrite else []
    if not told:
        return None
    examples = [
        WrittenExample(TITLES[one.of, bool(one.why)], one.asked, one.said, one.was, one.why) for one in stage.own_rows
    ]
    return WrittenPage(tuple(f"{text[0].upper()}{text[1:]}." for text in told), tuple(examples))
