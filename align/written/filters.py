"""Which texts of a policy are kept, and why the others are not. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

NO_QUESTION: Final = "without a whole question"
EMPTY: Final = "empty"
UNFINISHED: Final = "unfinished"
SHORT: Final = "too short"
LONG: Final = "longer than max_length"
REPEATS: Final = "repetitive"
DUPLICATE: Final = "written before"
PROBED: Final = "asked by a probe"
REFUSED: Final = "refused by the checker"

GRAM: Final = 4  # tokens


@dataclass(frozen=True)
class Draft:
    """What a policy wrote.

    Attributes:
        prompt: a text or messages; None where nothing was asked.
        ids: tokens of the answer, without its end.
        ended: whether it came to its end by itself.
        length: tokens of the prompt and the answer.
        asked: whether there is a question at all, where the policy writes it too.
    """

    prompt: str | list[dict[str, Any]] | None
    answer: str
    ids: Sequence[int]
    ended: bool
    length: int
    asked: bool = True

    @property
    def question(self) -> str:
        """What is asked last, or the text itself."""
        if self.prompt is None:
            return self.answer
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])

    def row(self) -> dict[str, Any]:
        """As a row that is trained on: a text, a prompt with its completion, or the same as messages."""
        if self.prompt is None:
            return {"text": self.answer}
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "completion": self.answer}
        return {"prompt": self.prompt, "completion": [{"role": "assistant", "content": self.answer}]}


@dataclass
class Sieve:
    """Judges drafts one after the other.

    Attributes:
        probed: questions and texts of probes, folded.
        check: the user's; called last.
    """

    min_tokens: int
    max_repetition: float
    max_length: int | None
    keep_unfinished: bool
    probed: Collection[str] = ()
    check: Callable[[Draft], bool] | None = None
    seen: set[tuple[str, str]] = field(default_factory=set)

    def why(self, draft: Draft) -> str | None:
        """Why a draft is rejected; None where it is kept. The first reason that holds, the cheapest first."""
        same = (folded(draft.question), folded(draft.answer))
        reasons: dict[str, Callable[[], bool]] = {
            NO_QUESTION: lambda: not draft.asked,
            EMPTY: lambda: not draft.answer.strip(),
            UNFINISHED: lambda: not (draft.ended or self.keep_unfinished),
            SHORT: lambda: len(draft.ids) < self.min_tokens,
            LONG: lambda: self.max_length is not None and draft.length > self.max_length,
            REPEATS: lambda: repetition(draft.ids) > self.max_repetition,
            DUPLICATE: lambda: same in self.seen,
            PROBED: lambda: same[0] in self.probed,
            REFUSED: lambda: self.check is not None and not self.check(draft),
        }
        found = next((name for name, holds in reasons.items() if holds()), None)
        if found is None:
            self.seen.add(same)
        return found


def repetition(ids: Sequence[int], n: int = GRAM) -> float:
    """The share of n-grams of a text that occurred in it before, from 0 to below 1; 0 of fewer than n tokens.

    It is `seq-rep-n` of Welleck et al. 2019 (arXiv 1908.04319): 1 - distinct n-grams / n-grams.
    """
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def folded(text: str) -> str:
    """A text whatever its case and the space between its words."""
    return " ".join(text.casefold().split())


def counted(reasons: Sequence[str]) -> dict[str, int]:
    """How often each reason was given, the most frequent first."""
    return dict(Counter(reasons).most_common())


def told(reasons: dict[str, int]) -> str:
    """`12 unfinished, 3 written before`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
