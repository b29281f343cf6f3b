"""Sums, differences, small products and one-step word problems. The answer is an equation: a small model that is to
begin with the result itself hardly ever knows it."""

from __future__ import annotations

from random import Random

from align.forgetting.battery.skill import Item, Skill, user

EQUATION = "Answer with an equation."
BARE = {
    "+": ("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}."),
    "-": ("What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}."),
    "*": ("What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}."),
}
WORDED = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} puts in {b} more. How many {things} are in the box now?",
        "{name} found {a} {things} in the morning and {b} in the afternoon. How many {things} is that in total?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} does {name} have left?",
        "There are {a} {things} on a table. {name} takes {b} of them. How many {things} are left on the table?",
        "{name} had {a} {things} and lost {b}. How many {things} does {name} still have?",
    ),
    "*": (
        "{name} has {a} bags with {b} {things} in each bag. How many {things} does {name} have?",
        "On each of {a} days {name} buys {b} {things}. How many {things} does {name} buy in total?",
        "There are {a} shelves with {b} {things} on each. {name} counts them all. How many {things} are there?",
    ),
}
NAMES = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lucy", "Peter", "Julia", "Omar", "Nina")
THINGS = ("apples", "books", "stamps", "marbles", "pencils", "cookies", "shells", "cards", "oranges", "candles")
PER_SIGN = 36  # word problems with each sign


def result(a: int, sign: str, b: int) -> int:
    """The value of `a sign b`."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def near(right: int, steps: tuple[int, ...], random: Random) -> list[int]:
    """Four numbers with as many digits in equal steps, the right one at any place among them."""
    while True:
        step = random.choice(steps)
        first = right - step * random.randrange(4)
        numbers = [first + step * i for i in range(4)]
        if first > 0 and len({len(str(number)) for number in numbers}) == 1:
            return numbers


def item(question: str, a: int, sign: str, b: int, values: list[int]) -> Item:
    """A question whose choices are the same sum, difference or product with four values."""
    choices = tuple(f"{a} {sign} {b} = {value}" for value in values)
    return Item((user(f"{question} {EQUATION}"),), f"{a} {sign} {b} = {result(a, sign, b)}", choices)


def bare(random: Random) -> list[Item]:
    """Sums, differences and products without a story."""
    small = [(a, b) for a in range(2, 10) for b in range(2, a + 1)]
    large = [(10 * a + random.randrange(1, 10), random.randrange(3, 10)) for a in range(1, 10) for _ in range(2)]
    tens = [(10 * a, 10 * b) for a in range(3, 9) for b in range(2, a - 1)]
    found = []
    for sign, cases, steps in (
        ("+", random.sample(small, 20), (1, 2)),
        ("+", large, (1, 2)),
        ("-", large, (1, 2)),
        ("+", tens, (10,)),  # round numbers all: an odd one out would give itself away
        ("-", tens, (10,)),
        ("*", small, (1, 2)),
    ):
        for i, (a, b) in enumerate(cases):
            question = BARE[sign][i % 3].format(a=a, b=b)
            found.append(item(question, a, sign, b, near(result(a, sign, b), steps, random)))
    return found


def story(question: str, a: int, sign: str, b: int, random: Random) -> Item:
    """A word problem with a sum or a difference: two of the choices take the wrong one of the two."""
    choices = []
    for each in random.sample("+-", 2):
        values = near(result(a, each, b), (1, 2), random)
        wrong = random.choice([value for value in values if value != result(a, each, b)])
        choices += [f"{a} {each} {b} = {value}" for value in sorted((result(a, each, b), wrong))]
    return Item((user(f"{question} {EQUATION}"),), f"{a} {sign} {b} = {result(a, sign, b)}", tuple(choices))


def worded(random: Random) -> list[Item]:
    """Word problems of one step."""
    found = []
    for sign, questions in WORDED.items():
        for i in range(PER_SIGN):
            words = {"name": NAMES[i % len(NAMES)], "things": random.choice(THINGS)}
            if sign == "*":
                a, b = random.randrange(2, 7), random.randrange(3, 11)
                values = near(a * b, (1, 2), random)
                found.append(item(questions[i % 3].format(a=a, b=b, **words), a, sign, b, values))
            else:
                a, b = random.randrange(20, 50), random.randrange(3, 10)
                found.append(story(questions[i % 3].format(a=a, b=b, **words), a, sign, b, random))
    return found


def items() -> list[Item]:
    """Bare ones first, then word problems."""
    random = Random("arithmetic")
    found = {item.messages[0]["content"]: item for item in (*bare(random), *worded(random))}  # two draws may be alike
    return list(found.values())


SKILL = Skill(
    about="sums, differences, small products and one-step word problems",
    items=items,
    scorer="choice",
    shots=(
        item("What is 1 + 2?", 1, "+", 2, [2, 3, 4, 5]),
        item("Lena has 12 balloons and gives away 1. How many balloons are left?", 12, "-", 1, [10, 11, 12, 13]),
        item("What is 100 times 2?", 100, "*", 2, [190, 200, 210, 220]),
    ),
    chance=0.25,
)
