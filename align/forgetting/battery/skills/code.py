"""The missing line of a short Python function, and what two lines of Python print; the functions are in `code.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.forgetting.battery.choices import parse_blocks
from align.forgetting.battery.skill import Item, Skill, user

WORDS = ("Cat", "Sun", "Tree", "House", "Bird", "River", "Lamp", "Stone")
LISTS = ((4, 9, 7), (2, 8, 6), (6, 9, 8), (1, 7, 5), (2, 9, 4), (5, 8, 6), (1, 6, 4), (4, 8, 5), (2, 7, 6), (6, 8, 7))

FUNCTION = '''What is the missing last line of this Python function? Answer with one line of code.

def {signature}:
    """{does}"""
'''
OUTPUT = "What does this Python code print? Answer with the output only.\n\n{code}"


def function(question: str, answer: str, choices: tuple[str, ...]) -> Item:
    """An item for `signature: what it returns`; the choices are expressions."""
    signature, does = question.split(": ")
    prompt = FUNCTION.format(signature=signature, does=does)
    return Item((user(prompt),), f"return {answer}", tuple(f"return {choice}" for choice in choices))


def outputs(first_line: str, printed: Mapping[str, str]) -> list[Item]:
    """An item for each expression; the choices are what the others print."""
    return [
        Item((user(OUTPUT.format(code=f"{first_line}\nprint({expression})")),), output, tuple(printed.values()))
        for expression, output in printed.items()
    ]


def items() -> list[Item]:
    """The functions of the file; four operations on each word and each list."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    found = [function(*row) for row in parse_blocks(text)]
    for word in WORDS:
        printed = {"upper()": word.upper(), "lower()": word.lower(), "swapcase()": word.swapcase()}
        found += outputs(
            f'word = "{word}"',
            {f"word.{call}": output for call, output in printed.items()} | {"word[::-1]": word[::-1]},
        )
    for small, large, last in LISTS:
        printed = {
            "max(numbers)": str(large),
            "min(numbers)": str(small),
            "numbers[-1]": str(last),
            "len(numbers)": "3",
        }
        found += outputs(f"numbers = [{small}, {large}, {last}]", printed)
    return found


SKILL = Skill(
    about="the missing line of a Python function, and what Python code prints",
    items=items,
    scorer="choice",
    shots=(
        function(
            "third(values): Return the third value.", "values[2]", ("values[2]", "values[3]", "values[4]", "values[5]")
        ),
        *outputs('word = "plum"', {"word[1:]": "lum", "word[:1]": "p", "word[:2]": "pl", "word[3:]": "m"})[:1],
        function("triple(x): Return three times x.", "3 * x", ("x + 3", "x - 3", "x / 3", "3 * x")),
    ),
    chance=0.25,
)
