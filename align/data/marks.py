"""Marks that say of one message whether it is learnt, in each tool's spelling; `"train": false` goes out, or nothing.

`weight` is OpenAI's and Mistral's, `train` and `training` are Axolotl's, `loss` is that of ms-swift, XTuner and
AgentInstruct.
"""

from __future__ import annotations

from typing import Any, Final

from align.errors import AlignError, Place

MARKS: Final = ("train", "training", "trainable", "weight", "loss", "loss_weight")
_PARTS: Final = "train_detail"
"""Axolotl's marks within a message."""

Message = dict[str, Any]


def learnt(value: Message, role: str, where: str, place: Place) -> bool:
    """Whether a message of the assistant is to be learnt; raises AlignError for a mark that cannot be obeyed.

    Args:
        value: the message as it was given.
        where: names it, as in "message 2 of 'messages'".
    """
    if value.get(_PARTS):
        what = f"{where} has '{_PARTS}', which marks parts of it, but a message is trained on in full or not at all"
        raise AlignError(what, "mark the whole message with `train`, or remove the marks", place=place)
    marks = {name: _mark(name, value[name], where, place) for name in MARKS if value.get(name) is not None}
    if len(set(marks.values())) > 1:
        said = " and ".join(f"'{name}' {str(mark).lower()}" for name, mark in marks.items())
        raise AlignError(f"{where} has {said}, which contradict each other", "keep one of them", place=place)
    true = next((name for name, mark in marks.items() if mark), None)
    if true is not None and role != "assistant":
        what = f"{where} is from the {role}, but '{true}' marks it as trained"
        raise AlignError(what, "remove the mark: only assistant messages are trained on", place=place)
    return all(marks.values())


def _mark(name: str, mark: Any, where: str, place: Place) -> bool:
    if isinstance(mark, bool | int | float) and mark in (0, 1):
        return bool(mark)
    what = f"{where} has the {name} {mark!r}, but a message is trained on in full or not at all"
    raise AlignError(what, "write 0 or 1, true or false, or leave it out", place=place)


def require_learnt(answer: list[Message], field: str, place: Place) -> None:
    """Raises AlignError where no message of the assistant is to be learnt."""
    if not any(turn["role"] == "assistant" and turn.get("train", True) for turn in answer):
        what = f"no message of '{field}' is trained on: all assistant messages are marked as not trained"
        raise AlignError(what, "remove the row, or one of the marks", place=place)


def without(prompt: list[Message]) -> list[Message]:
    """A prompt, of which nothing is learnt anyway, without its marks."""
    return [{name: field for name, field in turn.items() if name != "train"} for turn in prompt]
