"""Prompts and answers that stand in fields of their own, and preference pairs in each of their spellings.

The prompt of a pair may be given, be repeated at the head of both answers, or stand only there (implicit prompt, see
https://huggingface.co/docs/trl/dataset_formats#preference).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from align.data import marks
from align.data import messages as turns
from align.data.fields import CONVERSATIONS, INSTRUCTIONS, PAIR_PROMPTS, PAIRS
from align.data.messages import Message
from align.errors import AlignError, Place

Side: TypeAlias = str | list[Message]
"""A prompt or an answer: a text, or messages."""

_ASKED: Final = (*PAIR_PROMPTS, *CONVERSATIONS)
_MARKER: Final = re.compile(
    r"(?:Assistant|ASSISTANT|AI|Bot|Answer|### Response):|<\|assistant\|>|<\|im_start\|>assistant\n"
)
"""What stands between the prompt and the answer in pairs of raw transcripts, such as Anthropic's hh-rlhf."""


def text(value: dict[str, Any], field: str, place: Place) -> str:
    """A field that must be a text with something in it."""
    found = value[field]
    if not isinstance(found, str):
        raise AlignError(f"'{field}' is {turns.kind_of(found)}, not a string", "put it in quotes", place=place)
    if not found.strip():
        raise AlignError(f"'{field}' is empty", "fill it in, or remove the row", place=place)
    return found


def side(value: dict[str, Any], field: str, place: Place) -> Side:
    """A prompt or an answer as it is given; one message stands for a list of one."""
    found = value[field]
    if isinstance(found, str):
        return found
    if isinstance(found, list | dict):
        return turns.conversation(found, field, place)
    what = f"'{field}' is {turns.kind_of(found)}, not a string or messages"
    raise AlignError(what, "put it in quotes", place=place)


def same_form(sides: list[Side], value: dict[str, Any], place: Place) -> list[Side]:
    """A prompt and its answers, all as texts or all as messages; the row's `system` and its `history` can only stand
    among messages."""
    as_texts = all(isinstance(each, str) for each in sides)
    if as_texts and not value.get("system") and not value.get("history"):
        return sides
    prompt, *answers = sides
    earlier = history(value, place)
    asked = [turns.user(prompt)] if isinstance(prompt, str) else marks.without(prompt)
    own = 1 if asked[0]["role"] == "system" else 0
    above = turns.with_system(value.get("system"), [*asked[:own], *earlier, *asked[own:]], place)
    if as_texts and len(above) == 1:
        return sides
    return [
        above,
        *([turns.assistant(each)] if isinstance(each, str) else each for each in answers),
    ]


def history(value: dict[str, Any], place: Place) -> list[Message]:
    """Earlier questions with their answers."""
    earlier: list[Message] = []
    for turn in value.get("history") or []:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            what = "'history' is not a list of pairs of strings"
            raise AlignError(what, 'give [["question", "answer"], ...]', place=place)
        earlier += [turns.user(turn[0]), turns.assistant(turn[1])]
    return earlier


def instruction(value: dict[str, Any], place: Place) -> str:
    """The instruction, with the text that it is about on the line below."""
    asked = text(value, "instruction", place)
    field = next((name for _, name in INSTRUCTIONS if name in value), "input")
    given = value.get(field, "")
    if not isinstance(given, str):
        raise AlignError(f"'{field}' is {turns.kind_of(given)}, not a string", "put it in quotes", place=place)
    return f"{asked}\n{given}" if given.strip() else asked


def named(value: dict[str, Any], choices: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first of several pairs of names of which a row has both."""
    return next((names for names in choices if names[0] in value and names[1] in value), None)


def preference(value: dict[str, Any], place: Place) -> dict[str, Any]:
    """The canonical pair of a row that has a better and a worse answer (`PAIRS`); raises AlignError."""
    names = named(value, PAIRS)
    assert names is not None
    chosen, rejected = (side(value, name, place) for name in names)
    field, given = _given_prompt(value, chosen, place)
    if given is None:
        prompt, chosen, rejected = _implicit(chosen, rejected, names, place)
    else:
        prompt, chosen, rejected = _without_prompt(given, chosen, rejected, names, place)
    prompt, chosen, rejected = same_form([prompt, chosen, rejected], value, place)
    check_prompt(prompt, field, place)
    for name, answer in zip(names, (chosen, rejected), strict=True):
        check_answer(answer, name, place)
    margin = {"margin": _margin(value["margin"], place)} if "margin" in value else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **margin}


def _margin(margin: Any, place: Place) -> float:
    if isinstance(margin, str) and re.fullmatch(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", margin):  # as a CSV has it
        margin = float(margin.strip())
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not math.isfinite(margin):
        what = f"'margin' is {turns.kind_of(margin)}, not a finite number"
        raise AlignError(what, "say by how much the chosen answer is better, or leave it out", place=place)
    return float(margin)


def _given_prompt(value: dict[str, Any], chosen: Side, place: Place) -> tuple[str, Side | None]:
    """The name of the field and the prompt in it; None where it stands in the answers only."""
    for field in _ASKED:
        if field in value:
            return field, side(value, field, place)
    if "instruction" in value:
        return "instruction", [turns.user(instruction(value, place))]
    if "input" in value:
        return "input", side(value, "input", place)
    # Beside answers that are conversations, `messages` is one of them once more (ultrafeedback), not the prompt.
    if "messages" in value and not (isinstance(chosen, list) and chosen[0]["role"] != "assistant"):
        return "messages", side(value, "messages", place)
    return "prompt", None


def _without_prompt(
    prompt: Side, chosen: Side, rejected: Side, names: tuple[str, str], place: Place
) -> tuple[Side, Side, Side]:
    """Prompt and answers where the answers may repeat the prompt."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
            # Only a transcript is repeated for sure: an answer may well begin with the words of a short prompt.
            transcript = _last_marker(prompt) == len(prompt) > 0
            if transcript and chosen.startswith(prompt) and rejected.startswith(prompt):
                return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
        return prompt, chosen, rejected
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        return prompt, chosen, rejected
    if isinstance(prompt, list) and chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
    inside, chosen, rejected = _shared_turns(chosen, rejected, names, place)
    asked = [prompt] if isinstance(prompt, str) else [each["content"] for each in prompt if each["role"] == "user"]
    if not {each.strip() for each in asked} <= {each["content"].strip() for each in inside}:
        what = f"'{names[0]}' and '{names[1]}' start with turns that differ from the row's prompt"
        raise AlignError(what, "remove those turns, or the field `prompt`", place=place)
    return inside, chosen, rejected


def _implicit(chosen: Side, rejected: Side, names: tuple[str, str], place: Place) -> tuple[Side, Side, Side]:
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _shared_turns(chosen, rejected, names, place)
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = chosen[: _shared_length(chosen, rejected)]
        cut = _last_marker(shared) or shared.rfind("\n") + 1
        if shared[:cut].strip():
            return shared[:cut], chosen[cut:], rejected[cut:]
    raise _no_prompt(names, place)


def _shared_turns(
    chosen: list[Message], rejected: list[Message], names: tuple[str, str], place: Place
) -> tuple[list[Message], list[Message], list[Message]]:
    """The turns that both begin with, cut back to the last one after which both go on with the assistant."""
    for cut in range(min(_shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut]["role"] == rejected[cut]["role"] == "assistant" and chosen[cut - 1]["role"] != "assistant":
            return chosen[:cut], chosen[cut:], rejected[cut:]
    raise _no_prompt(names, place)


def _shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    differing = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _no_prompt(names: tuple[str, str], place: Place) -> AlignError:
    what = f"the row has no prompt, and '{names[0]}' and '{names[1]}' have none in common"
    return AlignError(what, "add a field `prompt`", place=place)


def _last_marker(transcript: str) -> int:
    """The offset after the last mark of an answer; 0 where there is none."""
    return max((match.end() for match in _MARKER.finditer(transcript)), default=0)


def check_prompt(prompt: Side, field: str, place: Place) -> None:
    """Refuse an empty prompt and one that ends with an answer."""
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        what = f"'{field}' ends with an assistant message, so there is nothing to answer"
        raise AlignError(what, "end it with a user message", place=place)
    _check_filled(prompt, field, place)


def check_answer(answer: Side, field: str, place: Place) -> None:
    """Refuse an empty answer, messages that are not the assistant's, and those of which none is to be learnt."""
    _check_filled(answer, field, place)
    if isinstance(answer, str):
        return
    for which, message in (("first", answer[0]), ("last", answer[-1])):
        if message["role"] != "assistant":
            what = f"the {which} message of '{field}' is from the {message['role']}, not from the assistant"
            raise AlignError(what, "start and end an answer with an assistant message", place=place)
    marks.require_learnt(answer, field, place)


def _check_filled(side: Side, field: str, place: Place) -> None:
    """A text may have become a message."""
    said = side if isinstance(side, str) else side[-1]["content"]
    calls = isinstance(side, list) and (side[-1]["role"] == "tool" or "tool_calls" in side[-1])
    if not said.strip() and not calls:
        raise AlignError(f"'{field}' is empty", "fill it in, or remove the row", place=place)
