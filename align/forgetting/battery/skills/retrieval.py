"""Two short texts about two things and a question about one of them. The wrong choices stand in the same text or in the
other one. The answer is a sentence: that is how a small model answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from align.forgetting.battery.choices import deal
from align.forgetting.battery.skill import Item, Skill, user

PER_FACT = 16  # items on each fact of each topic

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Laura", "Mark", "Nora", "Oscar")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
CITIES = ("Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Boston", "Chicago", "Dublin", "Lisbon", "Oslo")
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "gray", "pink", "silver")
FOODS = ("fish", "cheese", "pasta", "soup", "chicken", "rice", "pancakes", "pizza", "salad", "beans", "lamb")
ANIMALS = ("sheep", "goats", "pigs", "ducks", "horses", "chickens", "cows", "rabbits", "geese", "donkeys", "llamas")
PLACES = ("Halden", "Morrow", "Westby", "Ashford", "Linden", "Carlow", "Norwick", "Fairlea", "Stanton", "Redhill")


@dataclass(frozen=True)
class Fact:
    """What is said of a thing with two words.

    Attributes:
        words: the pool.
        told: a sentence about {it} for two words, {a} and {b}.
        first: the question for {a} and its answer, with {w} for the word.
        second: the same for {b}.
    """

    words: tuple[str, ...]
    told: str
    first: tuple[str, str]
    second: tuple[str, str]


@dataclass(frozen=True)
class Topic:
    """A kind of thing, with {x} for a place, and two facts about it."""

    thing: str
    facts: tuple[Fact, Fact]


MUSEUM = Topic(
    "the museum of {x}",
    (
        Fact(
            PEOPLE,
            "{it} was founded by {a} and is now led by {b}.",
            ("Who founded {it}?", "{it} was founded by {w}."),
            ("Who leads {it} now?", "{it} is now led by {w}."),
        ),
        Fact(
            MONTHS,
            "{it} opens in {a} and closes in {b}.",
            ("In which month does {it} open?", "{it} opens in {w}."),
            ("In which month does {it} close?", "{it} closes in {w}."),
        ),
    ),
)
SHIP = Topic(
    "the ship from {x}",
    (
        Fact(
            CITIES,
            "{it} sails from {a} to {b}.",
            ("From which city does {it} sail?", "{it} sails from {w}."),
            ("To which city does {it} sail?", "{it} sails to {w}."),
        ),
        Fact(
            COLORS,
            "{it} has a {a} hull and {b} sails.",
            ("What color is the hull of {it}?", "The hull of {it} is {w}."),
            ("What color are the sails of {it}?", "The sails of {it} are {w}."),
        ),
    ),
)
HOTEL = Topic(
    "the hotel in {x}",
    (
        Fact(
            FOODS,
            "{it} serves {a} for lunch and {b} for dinner.",
            ("What does {it} serve for lunch?", "{it} serves {w} for lunch."),
            ("What does {it} serve for dinner?", "{it} serves {w} for dinner."),
        ),
        Fact(
            PEOPLE,
            "{it} has {a} as its manager and {b} as its cook.",
            ("Who is the manager of {it}?", "The manager of {it} is {w}."),
            ("Who is the cook of {it}?", "The cook of {it} is {w}."),
        ),
    ),
)
FARM = Topic(
    "the farm at {x}",
    (
        Fact(
            ANIMALS,
            "{it} sells {a} and buys {b}.",
            ("Which animals does {it} sell?", "{it} sells {w}."),
            ("Which animals does {it} buy?", "{it} buys {w}."),
        ),
        Fact(
            COLORS,
            "{it} has a {a} barn and a {b} gate.",
            ("What color is the barn of {it}?", "The barn of {it} is {w}."),
            ("What color is the gate of {it}?", "The gate of {it} is {w}."),
        ),
    ),
)
SCHOOL = Topic(
    "the music school of {x}",
    (
        Fact(
            PEOPLE,
            "{it} has {a} as its singing teacher and {b} as its piano teacher.",
            ("Who teaches singing at {it}?", "Singing at {it} is taught by {w}."),
            ("Who teaches piano at {it}?", "Piano at {it} is taught by {w}."),
        ),
        Fact(
            MONTHS,
            "{it} begins its lessons in {a} and ends them in {b}.",
            ("In which month do lessons at {it} begin?", "Lessons at {it} begin in {w}."),
            ("In which month do lessons at {it} end?", "Lessons at {it} end in {w}."),
        ),
    ),
)
FACTORY = Topic(
    "the factory in {x}",
    (
        Fact(
            CITIES,
            "{it} has its office in {a} and its store in {b}.",
            ("Where is the office of {it}?", "The office of {it} is in {w}."),
            ("Where is the store of {it}?", "The store of {it} is in {w}."),
        ),
        Fact(
            COLORS,
            "{it} has {a} trucks and {b} walls.",
            ("What color are the trucks of {it}?", "The trucks of {it} are {w}."),
            ("What color are the walls of {it}?", "The walls of {it} are {w}."),
        ),
    ),
)
ZOO = Topic(
    "the zoo of {x}",
    (
        Fact(
            ANIMALS,
            "{it} keeps {a} near the gate and {b} near the pond.",
            ("Which animals are near the gate of {it}?", "{it} keeps {w} near the gate."),
            ("Which animals are near the pond of {it}?", "{it} keeps {w} near the pond."),
        ),
        Fact(
            FOODS,
            "{it} gives its visitors {a} in summer and {b} in winter.",
            ("What does {it} give its visitors in summer?", "{it} gives its visitors {w} in summer."),
            ("What does {it} give its visitors in winter?", "{it} gives its visitors {w} in winter."),
        ),
    ),
)
TOPICS = (MUSEUM, SHIP, HOTEL, FARM, SCHOOL, FACTORY, ZOO)

PROMPT = "Text 1: {one}\n\nText 2: {two}\n\n{question} Answer with a short sentence."


def sentence(pattern: str, **words: str) -> str:
    """The pattern with its words, and a capital at its start."""
    text = pattern.format(**words)
    return text[0].upper() + text[1:]


def others(topic: Topic, fact: Fact) -> list[tuple[Topic, Fact]]:
    """The facts about other kinds of things that are told with the same pool of words."""
    return [(each, its) for each in TOPICS for its in each.facts if its.words is fact.words and each is not topic]


def item(topic: Topic, asked: int, turn: int, random: Random) -> Item:
    """A question on fact 0 or 1. In half of the items the other text is about another kind of thing, in a quarter it is
    about one of the same kind, and in a quarter both texts tell the other fact too.

    Words 0 and 1 go into the first text, 2 and 3 into the second; the right one is at `turn % 4`.
    """
    level, right = turn // 4 % 4, turn % 4
    fact, rest = topic.facts[asked], topic.facts[1 - asked]
    words, more = deal(fact.words, turn, random), random.sample(rest.words, 4)
    told = [(topic, fact), random.choice(others(topic, fact)) if level < 2 else (topic, fact)]
    if right >= 2:
        told.reverse()
    things = [each.thing.format(x=place) for (each, _), place in zip(told, random.sample(PLACES, 2), strict=True)]
    texts = []
    for (_, its), thing, at in zip(told, things, (0, 2), strict=True):
        texts.append(sentence(its.told, it=thing, a=words[at], b=words[at + 1]))
        if level == 3:
            texts[-1] += " " + sentence(rest.told, it="it", a=more[at], b=more[at + 1])
    question, answer = (fact.first, fact.second)[right % 2]
    thing = things[right // 2]
    choices = tuple(sentence(answer, it=thing, w=word) for word in words)
    prompt = PROMPT.format(one=texts[0], two=texts[1], question=question.format(it=thing))
    return Item((user(prompt),), choices[right], choices)


def items() -> list[Item]:
    """Both texts, and both words of each fact, are asked about equally often."""
    random = Random("retrieval")
    return [item(topic, asked, turn, random) for topic in TOPICS for asked in (0, 1) for turn in range(PER_FACT)]


BRIDGES = {
    "one": "The bridge of Elm is made of wood. It has a roof of copper.",
    "two": "The bridge of Oak is made of stone. It has a roof of glass.",
}
MATERIALS = ("wood", "copper", "stone", "glass")


def shot(question: str, answer: str, right: int) -> Item:
    """A question on the two bridges."""
    choices = tuple(answer.format(w=material) for material in MATERIALS)
    return Item((user(PROMPT.format(question=question, **BRIDGES)),), choices[right], choices)


SKILL = Skill(
    about="a question about one of two texts",
    items=items,
    scorer="choice",
    shots=(
        shot("What is the bridge of Elm made of?", "The bridge of Elm is made of {w}.", 0),
        shot("Which roof does the bridge of Oak have?", "The bridge of Oak has a roof of {w}.", 3),
    ),
    chance=0.25,
)
