"""Notes on a table: what of its rows is not used, and whether its pairs teach what is meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final

from align.data.formats import Example
from align.data.messages import Message
from align.data.pairs import Side

LENGTH_BIAS: Final = 0.85
"""Share of pairs in which the same side is the longer one, from which on length alone tells the two apart."""

FEW_PAIRS: Final = 20
"""Below this many pairs a share says nothing."""

FEW_PROMPTS: Final = 50
"""Fewer different prompts than this are learnt by heart rather than what makes an answer better."""

REPEATED_PROMPTS: Final = 0.5
REPEATED_ANSWERS: Final = 0.9
"""Share of pairs that repeat an earlier pair's prompt, or its chosen answer, from which on it is worth a warning."""

UNUSED_SHOWN: Final = 8
"""Names of what is not used that are told before the rest is only counted."""


@dataclass(frozen=True)
class Pairs:
    """What is counted of preference pairs.

    Attributes:
        prompts, answers: how many different prompts and chosen answers they have.
        longer, shorter: pairs whose chosen answer is the longer one, and the shorter one.
        chosen, rejected: characters of an answer on average.
    """

    total: int
    prompts: int
    answers: int
    longer: int
    shorter: int
    chosen: float
    rejected: float


def unused(examples: Sequence[Example]) -> list[str]:
    """One note for all that rows and their messages hold and nothing reads."""
    return unused_of(Counter(name for example in examples for name in example.unused))


def unused_of(counts: Counter[str]) -> list[str]:
    """The same from how many rows have each thing that is not used."""
    if not counts:
        return []
    if len(counts) == 1:
        [(name, count)] = counts.items()
        has = "1 row has" if count == 1 else f"{count:,} rows have"
        where = name.replace("in messages", "in its messages" if count == 1 else "in their messages")
        return [f"{has} {where}, which is not used"]
    shown = [
        f"{name} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in counts.most_common(UNUSED_SHOWN)
    ]
    more = f", and {len(counts) - UNUSED_SHOWN:,} more" if len(counts) > UNUSED_SHOWN else ""
    return [f"these are not used: {', '.join(shown)}{more}"]


def preferences(examples: Sequence[Example]) -> list[str]:
    """Whether pairs are diverse enough to teach what is meant, rather than a few prompts or the length."""
    pairs = [example.value for example in examples if example.kind == "preference"]
    if not pairs:
        return []
    sizes = [(length(pair["chosen"]), length(pair["rejected"])) for pair in pairs]
    return preferences_of(
        Pairs(
            total=len(pairs),
            prompts=len({said(pair["prompt"]) for pair in pairs}),
            answers=len({said(pair["chosen"]) for pair in pairs}),
            longer=sum(a > b for a, b in sizes),
            shorter=sum(a < b for a, b in sizes),
            chosen=mean(a for a, _ in sizes),
            rejected=mean(b for _, b in sizes),
        )
    )


def preferences_of(pairs: Pairs) -> list[str]:
    """The same from what was counted of at least one pair."""
    total, prompts, warnings = pairs.total, pairs.prompts, []
    if prompts < FEW_PROMPTS:
        few = f"the {total:,} pairs have only {prompts} different prompts: the model may memorise these prompts"
        if prompts == 1:
            same = "there is only one pair" if total == 1 else f"the {total:,} pairs have the same prompt"
            few = f"{same}: the model may memorise it"
        warnings.append(few)
    elif total - prompts > REPEATED_PROMPTS * total:
        warnings.append(f"{total - prompts:,} of {total:,} pairs ({_percent(total - prompts, total)}) repeat a prompt")
    if total >= FEW_PAIRS and total - pairs.answers > REPEATED_ANSWERS * total:
        warnings.append(
            f"the {total:,} pairs have only {pairs.answers:,} different chosen answers: the model may memorise these"
        )
    return warnings + _length_bias(pairs)


def _length_bias(pairs: Pairs) -> list[str]:
    """A warning if one side is nearly always the longer one: then length alone tells the two apart."""
    if pairs.total < FEW_PAIRS or max(pairs.longer, pairs.shorter) <= LENGTH_BIAS * pairs.total:
        return []
    count, word = (pairs.longer, "longer") if pairs.longer > pairs.shorter else (pairs.shorter, "shorter")
    return [
        f"chosen is {word} than rejected in {count:,} of {pairs.total:,} pairs ({_percent(count, pairs.total)}; "
        f"{pairs.chosen:,.0f} vs. {pairs.rejected:,.0f} characters on average): "
        f"the model may learn to be {'long' if word == 'longer' else 'brief'} rather than good"
    ]


def length(side: Side) -> int:
    """Characters of a prompt or an answer; of messages, of what they say."""
    return len(side) if isinstance(side, str) else sum(len(turn["content"]) for turn in side)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def said(side: Side) -> str:
    """What a prompt or an answer says, for comparing."""
    return side.strip() if isinstance(side, str) else "\n".join(json.dumps(_trimmed(turn)) for turn in side)


def _trimmed(turn: Message) -> Message:
    return {**turn, "content": turn["content"].strip()}
