"""The made-up world of the lab: its words, its facts, its stories, and the rule that holds items out.

Everything is a function of `random.Random` and `zlib.crc32`, both stable across Python versions.
"""

import random
import zlib
from typing import Final, Literal, TypeAlias

Split: TypeAlias = Literal["train", "gate", "report"]
SPLITS: Final[tuple[Split, ...]] = ("train", "gate", "report")
"""`train` is learnt from, `gate` is what recipes and gates are tuned on, `report` is what figures are published on."""

HELD_OUT_PERCENT: Final = 15
"""Share of all items in `gate`, and again in `report`."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LETTERS: Final = tuple("abcdefghijkl")
NAMES: Final = _words("Anna Ben Clara David Emma Finn Grace Henry Iris Jack")
COLOURS: Final = _words("red blue green gold white black purple orange pink silver")
ANIMALS: Final = _words("fox owl bear crab wolf swan goat lynx toad hawk mole deer")
PLACES: Final = _words("forest village market river castle beach")
THINGS: Final = _words("soup room film book service coffee hotel music garden cake waiter train")
PRAISE: Final = _words("delicious wonderful lovely great superb pleasant fresh charming perfect excellent")
BLAME: Final = _words("awful dreadful bland terrible dirty rude stale boring horrible poor")
# Every item begins with a consonant, because the sentences say "a lamp" and never "an oven".
ITEMS: Final = _words(
    "lamp phone chair kettle jacket camera clock guitar table radio bicycle printer blanket mirror toaster wallet "
    "helmet carpet basket candle curtain drill fan glove hammer heater jar keyboard ladder mattress monitor necklace "
    "notebook pan pillow ring rug scarf shelf sofa speaker suitcase tablet tent towel vase violin watch"
)
PROBLEMS: Final[dict[str, str]] = {
    "arrived broken": "a photo",
    "never arrived": "the tracking number",
    "is the wrong size": "the return form",
    "has a missing part": "the order number",
    "was charged twice": "the receipt",
    "stopped working": "the serial number",
}
"""What can be wrong with an item, and what the help desk must ask for in that case."""


def split_of(key: str) -> Split:
    """The one split that the item `key` belongs to, by a stable hash of its text."""
    bucket = zlib.crc32(key.encode()) % 100
    if bucket < HELD_OUT_PERCENT:
        return "gate"
    return "report" if bucket < 2 * HELD_OUT_PERCENT else "train"


RELATIONS: Final = ("capital", "animal", "colour")
FACT_QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "capital": (
        "What is the capital of {}?",
        "Name the capital of {}.",
        "Which town is the capital of {}?",
        "Tell me the capital of {}.",
        "{} has which capital?",
    ),
    "animal": (
        "Which animal is the symbol of {}?",
        "Name the animal of {}.",
        "What animal stands for {}?",
        "Tell me the animal of {}.",
        "{} has which animal?",
    ),
    "colour": (
        "What colour is the flag of {}?",
        "Name the flag colour of {}.",
        "Which colour does the flag of {} have?",
        "Tell me the flag colour of {}.",
        "{} has which flag colour?",
    ),
}
"""Five phrasings of each relation. Of every fact one phrasing is held out for `gate` and another for `report`."""


def _make_facts(countries: int) -> dict[str, dict[str, str]]:
    """`{country: {relation: answer}}`; capitals are all different, animals and colours are not."""
    rng = random.Random(7)
    first = _words("Zor Mel Kar Tal Bri Fen Gol Ush Vex Ria Dun Lop Hir Cas Nem Pol")
    names = [a + b for a in first for b in ("via", "land", "stan", "mark", "dor", "nia", "wick", "holm")]
    starts = _words("Ald Ber Cor Dra Eth Fal Gim Hol Isk Jor Kel Lum Mor Nar Ost Pel")
    towns = [a + b for a in starts for b in ("ton", "ville", "burg", "port", "ford")]
    rng.shuffle(names)
    rng.shuffle(towns)
    return {
        name: {"capital": town, "animal": rng.choice(ANIMALS), "colour": rng.choice(COLOURS)}
        for name, town in zip(names[:countries], towns, strict=False)
    }


FACTS: Final = _make_facts(70)


def fact_split(country: str, relation: str, phrasing: int) -> Split:
    """Split of one (fact, phrasing) pair: a fact is always learnt, but never in its two held-out phrasings."""
    phrasings = len(FACT_QUESTIONS[relation])
    code = zlib.crc32(f"{country} {relation}".encode())
    gate = code % phrasings
    report = (gate + 1 + code // phrasings % (phrasings - 1)) % phrasings
    if phrasing == gate:
        return "gate"
    return "report" if phrasing == report else "train"


def story(rng: random.Random, split: Split) -> str:
    """One little story of four sentences that belongs to `split`."""
    while True:
        text = _any_story(rng)
        if split_of(text) == split:
            return text


def _any_story(rng: random.Random) -> str:
    hero, friend = rng.sample(NAMES, 2)
    here, there = rng.sample(PLACES, 2)
    animal, colour, thing = rng.choice(ANIMALS), rng.choice(COLOURS), rng.choice(THINGS)
    sentences = (
        f"One day {hero} went to the {here} to look for a {colour} {animal}.",
        rng.choice(
            (
                f"{hero} was happy because {friend} came too.",
                f"{friend} was afraid of the {animal} and stayed at the {there}.",
            )
        ),
        rng.choice(
            (
                f"They found the {animal} near the {there} and took it home.",
                f"The {animal} ran away to the {there}, so {hero} went home.",
            )
        ),
        rng.choice(
            (
                f"In the evening they talked about the {thing}.",
                f"{friend} gave {hero} a {thing} and they laughed.",
            )
        ),
    )
    return " ".join(sentences)


def mail(rng: random.Random, split: Split) -> str:
    """One letter of three sentences that belongs to `split`.

    Letters use every word of the help desk in unrelated ways. Without them an adapter that leaves the embeddings
    alone (LoRA) meets words the base never learnt, and its post-training does not generalise.
    """
    while True:
        text = _any_mail(rng)
        if split_of(text) == split:
            return text


def _any_mail(rng: random.Random) -> str:
    writer, reader = rng.sample(NAMES, 2)
    item, other = rng.sample(ITEMS, 2)
    problem, action = rng.choice(tuple(PROBLEMS)), rng.choice(tuple(PROBLEMS.values()))
    thing = rng.choice(THINGS)
    opening = rng.choice(
        (
            f"{writer} ordered a {item} but it {problem}.",
            f"Hello, said {writer}, the {item} {problem}. What should I do?",
            f"Good morning, I bought a new {item}, said {writer}, but my {other} {problem}.",
            f"Help! {writer} and {reader} looked for the {item} and a {other}. Can you help me?",
        )
    )
    middle = rng.choice(
        (
            f"{reader} kindly asked us to send {action} to the {thing}.",
            f"Please send us {action}, said {reader}.",
            f"Kindly send the {other} or {action}.",
            f"Send {action} or stop asking me about the {thing}.",
        )
    )
    closing = rng.choice(
        (
            f"{writer} is sorry about your {thing}.",
            f"We are sorry about the {other}.",
            f"Sorry, it is only a {item} and not my problem.",
            f"Ugh, you people always want the {thing} again.",
            f"So what? It is only {action}.",
            f"Whatever, {reader} said, just send the {thing}.",
            f"{reader} just wanted {action}.",
        )
    )
    return f"{opening} {middle} {closing}"
