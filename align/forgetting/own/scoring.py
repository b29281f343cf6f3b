"""Scores of greedy answers: by text, by a user's function, by a metric of `evaluate`; one answer at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.errors import AlignError, Exit
from align.forgetting.own.items import OwnItem
from align.forgetting.own.kinds import Scorer
from align.forgetting.own.scorers import PURPOSE
from align.functions import calling

Score = Callable[[OwnItem, str], float]  # an item and the model's answer -> 0..1


def of(scorer: Scorer) -> Score:
    """What scores an answer.

    Raises:
        AlignError: a file cannot be imported. The function that is returned raises one that names the item.
    """
    if scorer.metric == "function":
        return _by_function(scorer.path, scorer.name)
    if scorer.metric == "evaluate":
        return _by_metric(scorer.path, scorer.name, scorer.field)
    return {"contains": contains, "regex": matches}[scorer.metric]


def contains(item: OwnItem, said: str) -> float:
    """Whether the answer occurs in what was said, whatever the case and the space between words."""
    return float(_folded(item.answer) in _folded(said))


def matches(item: OwnItem, said: str) -> float:
    """Whether the regular expression is found in what was said."""
    return float(re.search(item.answer, said) is not None)


def fraction(value: Any) -> float | int | None:
    """A score as it is written; None for what is no number from 0 to 1."""
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not (math.isfinite(number) and 0 <= number <= 1):
        return None
    return int(number) if number in (0, 1) else round(number, 6)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@lru_cache
def _by_function(path: str, name: str) -> Score:
    function, file = calling.load(Path(path), name, PURPOSE), Path(path)
    called = f"the scorer '{name}' of {file.name}"

    def score(item: OwnItem, said: str) -> float:
        given = {**item.columns, "prompt": item.prompt, "completion": said}
        if item.answer:
            given.setdefault("answer", item.answer)
        try:
            found = function(**calling.taken(function, given))
        except (Exception, SystemExit) as error:
            what = f"{called} raised {calling.raised(error)} ({calling.line(error, file)})"
            raise _failed(item, what, "correct it") from error
        number = fraction(found)
        if number is None:
            raise _failed(item, f"{called} returned {found!r}", "return True, False or a number from 0 to 1")
        return number

    return score


@lru_cache
def _by_metric(path: str, name: str, field: str | None) -> Score:
    called = f"the metric '{name}' of `evaluate`"
    try:
        from evaluate import load

        metric = load(path, keep_in_memory=True)
    except Exception as error:
        what = f"{called} cannot be loaded: {calling.raised(error)}"
        raise AlignError(what, "correct it, or choose another", exit=Exit.STAGE_FAILED) from error

    def score(item: OwnItem, said: str) -> float:
        try:
            found = metric.compute(predictions=[said], references=[item.answer]) or {}
        except Exception as error:
            what = f"{called} raised {calling.raised(error)}"
            raise _failed(item, what, "choose a metric that compares two texts") from error
        numbers = [key for key, value in found.items() if fraction(value) is not None]
        if field is not None and field not in found:
            remedy = f"choose one of these as `field`: {', '.join(found)}"
            raise _failed(item, f"{called} gives no '{field}'", remedy)
        if field is None and len(numbers) > 1:
            raise _failed(item, f"{called} gives {', '.join(numbers)}", "name one of these as `field`")
        value = found[field] if field is not None else found[numbers[0]] if numbers else found
        number = fraction(value)
        if number is None:
            raise _failed(item, f"{called} gives {value!r}", "choose one that is a number from 0 to 1")
        return number

    return score


def _failed(item: OwnItem, what: str, remedy: str) -> AlignError:
    """What is wrong with the score of an item. Its place is part of the sentence, as the parent tells it."""
    return AlignError(f"{what} for the item {item.place}", remedy, exit=Exit.STAGE_FAILED)
