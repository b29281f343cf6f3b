"""Rows that need more than text are refused: what their placeholders stand for would not be there."""

from __future__ import annotations

from typing import Any, Final

from align.data.fields import MEDIA
from align.errors import AlignError, Place

_MEDIA: Final = frozenset(MEDIA)
_REMEDY: Final = "remove the row, or the field if the text is complete without it"


def refuse(value: dict[str, Any], place: Place) -> None:
    """Raises AlignError for a row with images, videos or audio, in a field of its own or of one of its messages, or
    with the placeholder of one that such a field does not hold."""
    if not _MEDIA.isdisjoint(value):
        _refuse_fields(value, place)
    for field, side in value.items():
        if not isinstance(side, list):
            continue
        for number, turn in enumerate(side, start=1):
            if not isinstance(turn, dict) or _MEDIA.isdisjoint(turn):
                continue
            held = next((name for name in MEDIA if _holds(turn.get(name))), None)
            if held is not None:
                what = f"message {number} of '{field}' has data in '{held}', but only text is supported"
                raise AlignError(what, "remove it, or the row", place=place)


def _refuse_fields(value: dict[str, Any], place: Place) -> None:
    said = str([field for name, field in value.items() if name not in MEDIA])
    for name in (name for name in MEDIA if name in value):
        if _holds(value[name]):
            what = f"the row has data in '{name}', but only text is supported"
            raise AlignError(what, _REMEDY, place=place)
        placeholder = f"<{name.removesuffix('s')}>"
        if placeholder in said:
            what = f"the row contains {placeholder}, '{name}' is empty, and only text is supported"
            raise AlignError(what, "remove the row", place=place)


def _holds(value: Any) -> bool:
    """Whether there is something in it: an empty list or a list of nulls holds nothing."""
    return any(_holds(each) for each in value) if isinstance(value, list) else bool(value)
