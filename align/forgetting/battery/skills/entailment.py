"""Which of two statements follows from what is told; most are in `entailment.txt`. Each statement follows from one
premise and is ruled out by another, so neither is likely by itself. The answer is the statement, because a small model
that is asked for yes or no leans to one of them, whatever the premise says."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from random import Random

from align.forgetting.battery.skill import Item, Skill, user

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Laura", "Mark", "Nora", "Oscar")
COMPARATIVES = ("older", "taller", "richer", "faster", "stronger", "younger")
CONTENTS = (
    "apples",
    "pears",
    "plums",
    "cherries",
    "lemons",
    "oranges",
    "carrots",
    "onions",
    "nuts",
    "eggs",
    "potatoes",
)
COMPARISONS = 4  # with each comparative

PROMPT = "{premise}\n\nWhat does this mean? Answer with a short sentence."
ANSWER = "This means that {statement}."


def both(premises: tuple[str, str], statements: tuple[str, str]) -> list[Item]:
    """An item for each premise; the choices are the statements, of which the first follows from the first premise."""
    choices = tuple(ANSWER.format(statement=statement) for statement in statements)
    prompts = [PROMPT.format(premise=premise) for premise in premises]
    return [Item((user(prompt),), answer, choices) for prompt, answer in zip(prompts, choices, strict=True)]


def written() -> list[Item]:
    """The premises of the file."""
    found = []
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            first, statement, second, other = (part.strip() for part in line.split("|"))
            found += both((first, second), (statement, other))
    return found


def compared(random: Random) -> list[Item]:
    """Which of two people is the taller one."""
    found = []
    pairs = random.sample(list(combinations(NAMES, 2)), len(COMPARATIVES) * COMPARISONS)
    for i, (one, other) in enumerate(pairs):
        more = COMPARATIVES[i % len(COMPARATIVES)]
        found += both(
            (f"{one} is {more} than {other}.", f"{other} is {more} than {one}."),
            (f"{one} is the {more} of the two", f"{other} is the {more} of the two"),
        )
    return found


def contained(random: Random) -> list[Item]:
    """What is in a basket that holds three things."""
    found = []
    for asked, instead in zip(CONTENTS, CONTENTS[1:] + CONTENTS[:1], strict=True):
        one, two = random.sample([word for word in CONTENTS if word not in (asked, instead)], 2)
        found += both(
            (f"The basket holds {one}, {asked} and {two}.", f"The basket holds {one}, {instead} and {two}."),
            (f"there are {asked} in the basket", f"there are {instead} in the basket"),
        )
    return found


def ordered() -> list[Item]:
    """Who was there when the other one arrived came first."""
    found = []
    for one, other in pairwise(NAMES):
        found += both(
            (f"When {other} arrived, {one} was already there.", f"When {one} arrived, {other} was already there."),
            (f"{one} came before {other}", f"{other} came before {one}"),
        )
    return found


def items() -> list[Item]:
    """Each statement is right as often as it is wrong."""
    random = Random("entailment")
    return [*written(), *compared(random), *contained(random), *ordered()]


SKILL = Skill(
    about="which of two statements follows from what is told",
    items=items,
    scorer="choice",
    shots=(
        *both(
            ("Nobody can open the gate without a key.", "Anyone can push the gate open."),
            ("the gate is locked", "the gate is unlocked"),
        ),
        *both(
            ("Rita plays the flute in an orchestra.", "Rita has never played any music."),
            ("Rita plays an instrument", "Rita plays no instrument"),
        ),
    ),
    chance=0.5,
)
