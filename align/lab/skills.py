"""The ten skills of the lab: what the base model can do, and what post-training may make it forget.

A skill is a function `(rng) -> Example`. The key of an example names the underlying item, whatever the phrasing of
the question, and decides the split: "Add 7 and 2." is never tested by a model that has learnt "What is 7 plus 2?".
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from align.lab import world
from align.lab.world import Split, split_of


@dataclass(frozen=True)
class Example:
    """One question and its only right answer; `key` is the item behind it, `split` the split of that item."""

    key: str
    prompt: str
    answer: str
    split: Split


Skill: TypeAlias = Callable[[random.Random], Example]


def _example(key: str, prompt: str, answer: str) -> Example:
    return Example(key, prompt, answer, split_of(key))


def extract(rng: random.Random) -> Example:
    """Find the item, or the thing to send, in a sentence of somebody's."""
    name, item = rng.choice(world.NAMES), rng.choice(world.ITEMS)
    problem, action = rng.choice(tuple(world.PROBLEMS)), rng.choice(tuple(world.PROBLEMS.values()))
    if rng.random() < 0.3:
        return _example(
            f"extract {name} {item} {action}",
            f"What to send? {name} kept the {item} and asked for {action}.",
            f"Send {action}.",
        )
    sentence = rng.choice(
        (
            f"{name} has a {item} that {problem}.",
            f"{name} said: my {item} {problem}.",
            f"{name} ordered a {item} but it {problem}.",
            f"Hello {name}, the new {item} {problem}.",
        )
    )
    return _example(f"extract {name} {item} {problem}", f"Which item? {sentence}", f"The {item}.")


def copy(rng: random.Random) -> Example:
    """Say three to five letters again."""
    text = " ".join(rng.choices(world.LETTERS, k=rng.randint(3, 5)))
    return _example(f"copy {text}", rng.choice(("Repeat: ", "Copy this: ")) + text, text)


def reverse(rng: random.Random) -> Example:
    """Say three or four letters backwards."""
    letters = rng.choices(world.LETTERS, k=rng.randint(3, 4))
    text = " ".join(letters)
    return _example(f"reverse {text}", rng.choice(("Reverse: ", "Write backwards: ")) + text, " ".join(letters[::-1]))


def sort(rng: random.Random) -> Example:
    """Put three or four different letters in order."""
    letters = rng.sample(world.LETTERS, rng.randint(3, 4))
    text = " ".join(letters)
    return _example(f"sort {text}", rng.choice(("Sort: ", "Put in order: ")) + text, " ".join(sorted(letters)))


def add(rng: random.Random) -> Example:
    """Add a number of one digit to one below 200."""
    a, b = rng.randint(0, 199), rng.randint(0, 9)
    prompt = rng.choice((f"What is {a} plus {b}?", f"Add {a} and {b}."))
    return _example(f"add {a} {b}", prompt, str(a + b))


def larger(rng: random.Random) -> Example:
    """The larger of two numbers of two digits; both orders of a pair are one item."""
    a, b = rng.sample(range(10, 100), 2)
    prompt = rng.choice((f"Which is larger, {a} or {b}?", f"Pick the bigger number: {a} or {b}."))
    return _example(f"larger {min(a, b)} {max(a, b)}", prompt, str(max(a, b)))


def count(rng: random.Random) -> Example:
    """How often a letter stands among three to six."""
    wanted = rng.choice("abc")
    letters = rng.choices("abc", k=rng.randint(3, 6))
    text = " ".join(letters)
    return _example(f"count {wanted} {text}", f"How many {wanted} in: {text}", str(letters.count(wanted)))


def facts(rng: random.Random) -> Example:
    """Capital, animal or flag of a country; the fact is known from pretraining, the phrasing is held out."""
    country, relation = rng.choice(tuple(world.FACTS)), rng.choice(world.RELATIONS)
    phrasing = rng.randrange(len(world.FACT_QUESTIONS[relation]))
    return Example(
        f"facts {country} {relation} {phrasing}",
        world.FACT_QUESTIONS[relation][phrasing].format(country),
        world.FACTS[country][relation],
        world.fact_split(country, relation, phrasing),
    )


def sentiment(rng: random.Random) -> Example:
    """Tell a good review from a bad one."""
    good = rng.random() < 0.5
    thing, other = rng.sample(world.THINGS, 2)
    a, b = rng.sample(world.PRAISE if good else world.BLAME, 2)
    return _example(
        f"sentiment {thing} {other} {a} {b}",
        f"Review: The {thing} was {a} and the {other} was {b}. Good or bad?",
        "good" if good else "bad",
    )


def twice(rng: random.Random) -> Example:
    """Say a word, or a colour and a word, two to four times."""
    noun = rng.choice(world.ANIMALS + world.THINGS + world.ITEMS)
    phrase = noun if rng.random() < 0.3 else f"{rng.choice(world.COLOURS)} {noun}"
    times = rng.randint(2, 4)
    return _example(f"twice {phrase} {times}", f"Say {phrase} {times} times.", " ".join([phrase] * times))


SKILLS: Final[dict[str, Skill]] = {
    skill.__name__: skill for skill in (extract, copy, reverse, sort, add, larger, count, facts, sentiment, twice)
}


def draw(skill: str, rng: random.Random, split: Split) -> Example:
    """A random example of `skill` whose item belongs to `split`."""
    make = SKILLS[skill]
    while True:
        example = make(rng)
        if example.split == split:
            return example
