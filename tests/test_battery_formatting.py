"""The checks of the battery's forms: answers in the form that was asked for, and answers in others."""

from __future__ import annotations

import pytest

from align.forgetting.battery.skill import Item
from align.forgetting.battery.skills.formatting import CHECKS, SKILL, check

WORDS = {"words": ["pears", "plums", "grapes"]}
ROWS = {"rows": [["Name", "City"], ["Anna", "Rome"], ["Ben", "Oslo"]]}
LINES = {"lines": ["name,age", "Anna,30", "Ben,25"]}
ANSWERS = {
    "bulleted list": (
        WORDS,
        ["- pears\n- plums\n- grapes", "Here is the list:\n\n* Pears\n* Plums\n* Grapes",
         "• **pears**\n• plums,\n• grapes."],
        ["pears, plums, grapes", "1. pears\n2. plums\n3. grapes", "- pears\n- plums", "- plums\n- pears\n- grapes",
         "- pears\n- plums\n- grapes\n- figs", "- pears, plums, grapes", "-pears\n-plums\n-grapes"],
    ),
    "numbered list": (
        WORDS,
        ["1. pears\n2. plums\n3. grapes", "1) Pears\n2) Plums\n3) Grapes\n\nThat is all."],
        ["- pears\n- plums\n- grapes", "1. pears\n1. plums\n1. grapes", "1. pears 2. plums 3. grapes",
         "1. pears\n2. plums"],
    ),
    "commas": (
        WORDS,
        ["pears, plums, grapes", "Sure:\nPears, plums, grapes."],
        ["pears and plums and grapes", "pears, plums and grapes", "pears,\nplums,\ngrapes",
         "pears, plums, grapes, figs"],
    ),
    "steps": (
        {"words": ["boil the water", "add the tea"]},
        ["1. Boil the water.\n2. Add the tea.", "Steps:\n\n1. boil the water\n2. add the tea"],
        ["1. boil the water; add the tea", "- boil the water\n- add the tea", "1. boil the water\n2. drink the tea"],
    ),
    "json array": (
        WORDS,
        ['["pears", "plums", "grapes"]', '```json\n[\n  "Pears",\n  "plums",\n  "grapes"\n]\n```',
         '[a] ["pears","plums","grapes"]'],
        ["[pears, plums, grapes]", "['pears', 'plums', 'grapes']", '["pears", "plums"]',
         '{"a": "pears, plums, grapes"}'],
    ),
    "json product": (
        {"value": {"product": "lamp", "colour": "red", "price": 9}},
        ['{"product": "lamp", "colour": "red", "price": 9}'],
        ['{"product": "lamp", "colour": "red", "price": "9 dollars"}', "A red lamp costs 9 dollars."],
    ),
    "one row": (
        {"rows": [["Name", "Age"], ["Anna", "30"]]},
        ["| Name | Age |\n| --- | --- |\n| Anna | 30 |"],
        ["| Name | Age |\n| --- | --- |\n| Anna | 31 |", "| Name | Age |\n| --- | --- |\n| Anna | 30 |\n| Anna | 30 |"],
    ),
    "json person": (
        {"value": {"name": "Anna", "age": 30, "city": "Rome"}},
        ['{"name": "Anna", "age": 30, "city": "Rome"}', 'Here:\n{"city": "Rome", "name": "Anna", "age": "30"}'],
        ['{"name": "Anna", "age": 30}', '["Anna", 30, "Rome"]', "name: Anna, age: 30, city: Rome",
         '{"name": "Anna", "age": 31, "city": "Rome"}', '{"name": "Anna", "age": 30, "city": "Rome"'],
    ),
    "table": (
        ROWS,
        ["| Name | City |\n|---|---|\n| Anna | Rome |\n| Ben | Oslo |",
         "Sure.\n\nName | City\n--- | :---:\nAnna | **Rome**\nBen | Oslo\n"],
        ["| Name | City |\n| Anna | Rome |\n| Ben | Oslo |", "Name, City\nAnna, Rome\nBen, Oslo",
         "| Name | City |\n|---|---|\n| Anna | Rome |", "| Name | City |\n|---|---|\n| Anna | Oslo |\n| Ben | Rome |"],
    ),
    "csv": (
        LINES,
        ["name,age\nAnna,30\nBen,25", "```csv\nname, age\nAnna, 30\nBen, 25\n```"],
        ["Anna,30\nBen,25", "name,age Anna,30 Ben,25", "name;age\nAnna;30\nBen;25", "name,age\nAnna,30\nBen,26"],
    ),
    "code block": (
        {"code": "x = 3 + 4"},
        ["```\nx = 3 + 4\n```", "Here it is:\n\n```python\nx = 3 + 4\n```\nIt adds."],
        ["x = 3 + 4", "`x = 3 + 4`", "```\nx = 3\n```", "```\nx = 3 + 4"],
    ),
    "heading": (
        {"title": "The Lost Key"},
        ["# The Lost Key", "Sure:\n\n## The Lost Key\n"],
        ["The Lost Key", "#The Lost Key", "**The Lost Key**", "# The Lost Keys", "Write # The Lost Key"],
    ),
    "bold": (
        {"text": "Never **give** up"},
        ["Never **give** up.", 'Here: "Never **give** up"'],
        ["Never give up.", "**Never give up.**", "Never *give* up.", "Never **give up**."],
    ),
}  # fmt: skip
NOTHING = ("", "Yes.", "Hello! How can I help you today?", "- - - -", "the " * 30)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_passes_in_the_form_that_was_asked_for(kind: str) -> None:
    facts, right, wrong = ANSWERS[kind]
    item = Item((), "", facts={"kind": kind, **facts})
    assert [text for text in right if not check(item, text)] == []
    assert [text for text in wrong if check(item, text)] == []


def test_every_form_is_tested_and_as_frequent_as_any_other() -> None:
    assert set(ANSWERS) == set(CHECKS)
    kinds = [item.facts["kind"] for item in SKILL.items()]
    assert {kinds.count(kind) for kind in CHECKS} == {20}


def test_the_shown_answers_pass_and_answers_to_nothing_fail() -> None:
    for item in (*SKILL.items(), *SKILL.shots):
        assert check(item, item.answer), item
        for text in (*NOTHING, item.messages[-1]["content"]):
            assert not check(item, text), item
