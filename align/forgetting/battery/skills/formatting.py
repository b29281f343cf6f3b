"""Forms of an answer: the content is given, only its form is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random

from align.forgetting.battery.answers import bulleted, code_blocks, json_value, numbered, table_rows
from align.forgetting.battery.skill import Item, Skill, user

POOLS = (
    "apples pears plums grapes lemons melons cherries peaches",
    "Anna Ben Clara David Emma Frank Grace Henry",
    "red blue green yellow black white brown orange",
    "Paris London Rome Madrid Berlin Vienna Lisbon Athens",
    "bread milk butter cheese eggs sugar salt rice",
    "dog cat horse cow sheep goat duck rabbit",
    "hammer saw drill ladder brush rope nails glue",
)
STEPS = (
    "boil the water; warm the pot; add the tea; wait five minutes; fill the cups",
    "dig a hole; plant the tree; fill in the soil; water the roots; tie it to a pole",
    "wash the walls; cover the floor; open the paint; stir it well; paint the walls",
    "lock the doors; close the windows; turn off the lights; feed the cat; set the alarm",
)
PRODUCTS = ["pen", "lamp", "chair", "clock", "shirt", "hat", "cup", "bag", "bowl", "desk"]
PEOPLE = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack"]
COLOURS, CITIES = POOLS[2].split(), POOLS[3].split()
CODE = """
print("hello")
x = 3 + 4
import os
total = a + b
for i in range(10): print(i)
name = input()
y = x * 2
return None
if x > 5: stop()
items = [1, 2, 3]
del words[0]
ls -l
cd /home
git status
echo hello
SELECT * FROM users;
let n = 5;
console.log(n);
int k = 0;
assert x == 1
"""
TITLES = """
My Holiday
The Old Castle
Cooking for Two
A Short History of Tea
Winter Garden
How to Fly a Kite
News from the Farm
Letters to a Friend
Birds of the North
The Lost Key
Small Steps
Notes on Chess
A Day at Sea
The Blue House
First Aid
Bread and Butter
Under the Moon
Questions and Answers
The Long Road
Music for Children
"""
# a sentence | one of its words
SENTENCES = """
The river is deep. | river
Dinner is at seven. | seven
Please do not smoke here. | not
The exam is on Friday. | Friday
Bring your own lunch. | own
The red door is locked. | locked
Never give up. | Never
Our shop is closed today. | closed
The water is very cold. | cold
You must sign the form. | must
All tickets are free. | free
The last train leaves soon. | last
Keep the window open. | open
This road is dangerous. | dangerous
We meet in room nine. | nine
Read the rules first. | rules
The old bridge is gone. | gone
Only members can vote. | members
Her answer was wrong. | wrong
Take two pills daily. | two
"""
EACH = 20


def items() -> list[Item]:
    """Twenty items of each of the thirteen forms."""
    random = Random("formatting")
    found: list[Item] = []
    for form in LISTS:
        seen: set[str] = set()
        while len(seen) < EACH:
            words = _steps(random) if form == "steps" else _words(random)
            if str(words) not in seen:
                seen.add(str(words))
                found.append(listing(form, words))
    for _ in range(EACH):
        found += [*_two_records(random), *_one_record(random)]
    tables = (table.strip().splitlines() for table in (CODE, TITLES, SENTENCES))
    for code, title, row in zip(*tables, strict=True):
        found += _marks(code, title, row)
    return found


def _words(random: Random) -> list[str]:
    return random.sample(random.choice(POOLS).split(), random.choice((3, 4)))


def _steps(random: Random) -> list[str]:
    steps = random.choice(STEPS).split("; ")
    return [steps[place] for place in sorted(random.sample(range(len(steps)), 3))]


def listing(form: str, words: list[str]) -> Item:
    """Words to be written in the form of a list."""
    ask, given, answer = LISTS[form]
    return _form(form, f"{ask}: {given.join(words)}", answer(words), words=words)


def _two_records(random: Random) -> list[Item]:
    (a, b), (p, q) = random.sample(PEOPLE, 2), random.sample(CITIES, 2)
    age, other = random.randint(20, 60), random.randint(20, 60)
    ask = "Write this as a Markdown table with the columns Name and City"
    rows = [["Name", "City"], [a, p], [b, q]]
    answer = f"| Name | City |\n|---|---|\n| {a} | {p} |\n| {b} | {q} |"
    table = _form("table", f"{ask}: {a} lives in {p}. {b} lives in {q}.", answer, rows=rows)
    ask, lines = "Write this as CSV with the header name,age", ["name,age", f"{a},{age}", f"{b},{other}"]
    said = f"{a} is {age} years old. {b} is {other} years old."
    csv = _form("csv", f"{ask}: {said}", "\n".join(lines), lines=lines)
    return [table, csv]


def _one_record(random: Random) -> list[Item]:
    name, city, age = random.choice(PEOPLE), random.choice(CITIES), random.randint(20, 60)
    said = f"{name} is {age} years old and lives in {city}."
    rows = [["Name", "Age", "City"], [name, str(age), city]]
    ask = "Write this as a Markdown table with the columns Name, Age and City"
    answer = f"| Name | Age | City |\n|---|---|---|\n| {name} | {age} | {city} |"
    table = _form("one row", f"{ask}: {said}", answer, rows=rows)
    person = _json_of("json person", said, {"name": name, "age": age, "city": city})
    product, colour, price = random.choice(PRODUCTS), random.choice(COLOURS), random.randint(2, 90)
    said = f"The {product} is {colour} and costs {price} dollars."
    value = {"product": product, "colour": colour, "price": price}
    return [table, person, _json_of("json product", said, value)]


def _json_of(kind: str, said: str, value: dict[str, object]) -> Item:
    a, b, c = value
    ask = f'Write this as a JSON object with the keys "{a}", "{b}" and "{c}"'
    return _form(kind, f"{ask}: {said}", json.dumps(value), value=value)


def _marks(code: str, title: str, row: str) -> list[Item]:
    sentence, word = row.split(" | ")
    bold = re.sub(rf"\b{word}\b", f"**{word}**", sentence)
    ask = f"Write this sentence with the word '{word}' in bold type, in Markdown: {sentence}"
    return [
        _form("code block", f"Put this line into a Markdown code block:\n{code}", f"```\n{code}\n```", code=code),
        _form("heading", f"Write this title as a Markdown heading: {title}", f"# {title}", title=title),
        _form("bold", ask, bold, text=bold.rstrip(".")),
    ]


def _form(kind: str, prompt: str, answer: str, **facts: object) -> Item:
    return Item((user(prompt),), answer, facts={"kind": kind, **facts})


def check(item: Item, text: str) -> bool:
    """Whether the given content stands in the answer in the form that was asked for; other text may surround it."""
    return CHECKS[item.facts["kind"]](item, text)


def _bulleted(item: Item, text: str) -> bool:
    return _lower(bulleted(text)) == _lower(item.facts["words"])


def _numbered(item: Item, text: str) -> bool:
    return _lower(numbered(text)) == _lower(item.facts["words"])


def _commas(item: Item, text: str) -> bool:
    wanted = ", ".join(item.facts["words"]).lower()
    return wanted in (line.strip().strip(".").lower() for line in text.splitlines())


def _json_array(item: Item, text: str) -> bool:
    value = json_value(text, list)
    return isinstance(value, list) and _lower([str(entry) for entry in value]) == _lower(item.facts["words"])


def _json_object(item: Item, text: str) -> bool:
    value = json_value(text, dict)
    wanted = {key: str(said) for key, said in item.facts["value"].items()}
    return isinstance(value, dict) and {key: str(said) for key, said in value.items()} == wanted


def _table(item: Item, text: str) -> bool:
    return bool(table_rows(text) == item.facts["rows"])


def _csv(item: Item, text: str) -> bool:
    lines = [line.strip().replace(", ", ",") for line in text.splitlines()]
    wanted = item.facts["lines"]
    return any(lines[start : start + len(wanted)] == wanted for start in range(len(lines)))


def _code_block(item: Item, text: str) -> bool:
    return item.facts["code"] in code_blocks(text)


def _heading(item: Item, text: str) -> bool:
    return re.search(rf"^#{{1,6}} +{re.escape(item.facts['title'])}\s*$", text, re.MULTILINE) is not None


def _bold(item: Item, text: str) -> bool:
    return item.facts["text"] in text


def _count(words: list[str]) -> str:
    return "\n".join(f"{place}. {word}" for place, word in enumerate(words, start=1))


def _lower(texts: list[str]) -> list[str]:
    return [text.lower() for text in texts]


# what is asked, what stands between the words in the prompt, and a right answer
LISTS: dict[str, tuple[str, str, Callable[[list[str]], str]]] = {
    "bulleted list": ("Write these words as a bulleted list", ", ", lambda words: "- " + "\n- ".join(words)),
    "numbered list": ("Write these words as a numbered list", ", ", _count),
    "commas": ("Write these words on one line, separated by commas", " and ", ", ".join),
    "steps": ("Write these steps as a numbered list", "; ", _count),
    "json array": ("Write these words as a JSON array", ", ", json.dumps),
}
CHECKS: dict[str, Callable[[Item, str], bool]] = {
    "bulleted list": _bulleted,
    "numbered list": _numbered,
    "commas": _commas,
    "steps": _numbered,
    "json array": _json_array,
    "json person": _json_object,
    "json product": _json_object,
    "table": _table,
    "one row": _table,
    "csv": _csv,
    "code block": _code_block,
    "heading": _heading,
    "bold": _bold,
}
SKILL = Skill(
    about="write what is given as a list, a table, JSON, CSV or Markdown",
    items=items,
    scorer="check",
    shots=(
        listing("bulleted list", ["tea", "juice", "cola"]),
        listing("json array", ["north", "south"]),
        *_marks("z = 1", "The Red Car", "It is late. | late")[1:3],
    ),
    chance=0.0,
    check=check,
    tokens=48,
)
