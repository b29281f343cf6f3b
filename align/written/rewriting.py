"""Which of a policy's answers replaces the data's, and what the rows are then. No torch.

Training on answers that the policy itself could have given moves it less than training on those of others: its own
answers where they are right, those of the data elsewhere (cf. self-distillation; Yang et al. 2024, arXiv 2402.13669).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from align.data import marks
from align.data.messages import assistant
from align.written.filters import folded

Row = dict[str, Any]

NOT_PLAIN: Final = "the data's answer is no plain text"
NO_ROOM: Final = "the prompt leaves no room for an answer"
NONE_ENDED: Final = "no sample came to its end"
NONE_ACCEPTED: Final = "the checker refused all samples"
BELOW_MIN: Final = "all samples scored below min"
BELOW_DATA: Final = "all samples scored below the data's answer"


@dataclass(frozen=True)
class Ask:
    """What a row asks, and the answer that it has.

    Attributes:
        prompt: a text or messages.
        tools: of the row.
    """

    prompt: Any
    answer: str
    tools: Any = None

    def value(self) -> Row:
        """As a row without an answer."""
        return {"prompt": self.prompt} | ({"tools": self.tools} if self.tools else {})

    def answered(self, answer: str) -> Row:
        """As a row with one."""
        completion = answer if isinstance(self.prompt, str) else [assistant(answer)]
        return {**self.value(), "completion": completion}


@dataclass(frozen=True)
class Chosen:
    """The sample that replaces a row's answer.

    Attributes:
        sample: its number, from 0.
        score: by the reward, where one decides.
    """

    answer: str
    sample: int
    score: float | None = None


def asked(row: Mapping[str, Any]) -> Ask | None:
    """What a row asks before its last answer; None where that is no plain text that can be replaced."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if "messages" in row:
        *before, last = row["messages"]
        prompt, completion = marks.without(before), [last]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Ask(prompt, completion)
    if not (prompt and isinstance(completion, list) and len(completion) == 1) or prompt[-1]["role"] == "assistant":
        return None
    (answer,) = completion
    plain = answer["role"] == "assistant" and set(answer) == {"role", "content"} and isinstance(answer["content"], str)
    return Ask(prompt, answer["content"], row.get("tools")) if plain else None


def replaced(row: Mapping[str, Any], answer: str) -> Row:
    """The row with another last answer."""
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], assistant(answer)]}
    return {**row, "completion": answer if isinstance(row["completion"], str) else [assistant(answer)]}


def first(candidates: Sequence[str | None], accepts: Callable[[str], bool]) -> Chosen | str:
    """The first sample that a checker accepts, or why there is none.

    Args:
        candidates: the samples in order; None for one that was cut off or is empty.
    """
    if all(one is None for one in candidates):
        return NONE_ENDED if candidates else NO_ROOM
    for number, one in enumerate(candidates):
        if one is not None and accepts(one):
            return Chosen(one, number)
    return NONE_ACCEPTED


def best(
    candidates: Sequence[str | None], scores: Sequence[float | None], least: float | None, own: float | None
) -> Chosen | str:
    """The sample with the highest reward, of equal ones the first, or why there is none.

    Args:
        scores: of the candidates, None where there is none.
        least: that it must have; None: that of the data's answer, `own`, where that has one.
    """
    scored = [(score, -number) for number, score in enumerate(scores) if score is not None]
    if not scored:
        return NONE_ENDED if candidates else NO_ROOM
    score, place = max(scored)
    needed = least if least is not None else own
    if needed is not None and score < needed:
        return BELOW_MIN if least is not None else BELOW_DATA
    answer = candidates[-place]
    assert answer is not None
    return Chosen(answer, -place, score)


def line(number: int, ask: Ask, chosen: Chosen) -> Row:
    """A rewritten row as it is kept: which it is, what is asked, the answer, and the one that it had."""
    score = {} if chosen.score is None else {"score": round(chosen.score, 6)}
    own = {"row": number, "prompt": ask.prompt, "answer": chosen.answer, "was": ask.answer}
    return own | {"sample": chosen.sample} | score


def apply(rows: Sequence[Row], kept: Sequence[Mapping[str, Any]], *, drop: bool) -> list[Row]:
    """The rows with the answers that were kept in place of the data's.

    Args:
        kept: lines as `line` makes them.
        drop: leave out the rows whose answer could have been replaced and was not.
    """
    answers = {line["row"]: line["answer"] for line in kept}
    found = []
    for number, row in enumerate(rows):
        if number in answers:
            found.append(replaced(row, answers[number]))
        elif not drop or asked(row) is None:
            found.append(row)
    return found


def same(one: str, other: str) -> bool:
    """Whether two answers say the same, whatever case and space."""
    return folded(one) == folded(other)
