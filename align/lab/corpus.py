"""What the base model is pretrained on: questions of the ten skills, stories and letters, all of split `train`."""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from align.lab import skills, world

MIX: Final[dict[str, float]] = {
    "extract": 1.2,
    "copy": 1.5,
    "reverse": 1.8,
    "sort": 1.8,
    "add": 2.5,
    "larger": 2.0,
    "count": 2.2,
    "facts": 1.8,
    "sentiment": 0.4,
    "twice": 0.8,
    "story": 0.6,
    "mail": 0.8,
}
"""Relative share of examples; the skills that take longest to learn are seen most often."""


class Sample(NamedTuple):
    """A question and its answer, or, where `prompt` is None, a plain text."""

    prompt: str | None
    text: str


def samples(seed: int) -> Iterator[Sample]:
    """The endless pretraining stream of `seed`. Help-desk questions and replies are never part of it."""
    rng = random.Random(seed)
    names, weights = tuple(MIX), tuple(MIX.values())
    while True:
        for name in rng.choices(names, weights, k=256):
            if name == "story":
                yield Sample(None, world.story(rng, "train"))
            elif name == "mail":
                yield Sample(None, world.mail(rng, "train"))
            else:
                example = skills.draw(name, rng, "train")
                yield Sample(example.prompt, example.answer)
