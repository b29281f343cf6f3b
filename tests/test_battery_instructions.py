"""The checks of the battery's instructions: answers that follow them, and answers that do not."""

from __future__ import annotations

import pytest

from align.forgetting.battery.skills.instructions import CHECKS, SKILL, check

ANSWERS = {
    "Name 3 colours in a numbered list.": (
        ["1. red\n2. blue\n3. green", "Here they are:\n\n1) **Red**\n2) Blue\n3) Green"],
        ["- red\n- blue\n- green", "1. red\n2. blue", "1. red\n2. blue\n3. green\n4. pink", "1. red\n2. red\n3. red",
         "1. dog\n2. cat\n3. cow", "1. red\n1. blue\n1. green"],
    ),
    "Name 4 colours in a bulleted list.": (
        ["- red\n- blue\n- green\n- pink", "* Red\n* Blue\n* Green\n* White"],
        ["1. red\n2. blue\n3. green\n4. pink", "- red\n- blue\n- green", "red, blue, green, pink"],
    ),
    "Name 3 colours. Answer with exactly 3 words and nothing else.": (
        ["Red, blue, green", "red\nblue\npink."],
        ["red, blue and green", "red, blue", "red red blue", "dog cat horse", "Three colours: red, blue, green"],
    ),
    "What is the capital of France? Answer in one word.": (
        ["Paris", " paris.", "**Paris**"],
        ["The capital is Paris.", "London", "Paris, France", "one word"],
    ),
    "What is the opposite of 'hot'? Answer in at most eight words.": (
        ["Cold", "The opposite of 'hot' is 'cold'."],
        ["Warm.", "If something is not hot at all, we may call it cold."],
    ),
    "How many legs does a dog have? Answer with a number only.": (
        ["4", "Four.", " 4\n"],
        ["4 legs", "There are 4.", "8", "40"],
    ),
    "How many days are in a week? Write the number in digits.": (
        ["7", "There are 7 days in a week."],
        ["Seven", "There are seven days in a week.", "8", "70"],
    ),
    "Write a short sentence about dogs. Use at most 25 words.": (
        ["Dogs are loyal and love to play with people.", "A puppy sleeps."],
        ["Cats are nice.", "Dogs",
         "Dogs are friendly animals that live with people all over the world and like to run, to play, to bark and to "
         "sleep by the fire."],
    ),
    "Write a short sentence about winter. Begin with the word 'In'.": (
        ["In winter it snows.", '"In the cold season we ski."'],
        ["Winter is cold.", "In", "Indoors we do not feel the winter.", "In my garden there are flowers."],
    ),
    "Write a short sentence about the sun. The last word must be 'sky'.": (
        ["The sun is in the sky.", "See the sun, high up in the SKY!"],
        ["The sky has a sun.", "sky", "Birds fly in the sky.", "The sun is in the skyline"],
    ),
    "Write a question about dogs.": (
        ["Why do dogs bark?", "How old can a puppy get? "],
        ["Dogs bark.", "Why do cats purr?", "Dogs?", "Write a question about dogs."],
    ),
    "Write a short sentence about the sun. WRITE ONLY IN CAPITAL LETTERS.": (
        ["THE SUN IS HOT.", "OUR SUN IS 1 STAR OF MANY!"],
        ["The sun is hot.", "THE SUN IS hOT.", "DOGS BARK A LOT.", "SUN"],
    ),
    "Write a short sentence about cats. write only in lower-case letters, without any capitals.": (
        ["cats sleep a lot.", "my cat is 3 years old"],
        ["Cats sleep a lot.", "dogs bark a lot.", "cats"],
    ),
    "Write a short sentence about rain. Use the word 'umbrella' in it.": (
        ["Take an umbrella when it rains.", "Umbrella or not, I love rain."],
        ["Rain is wet.", "Write a short sentence about rain. Use the word 'umbrella' in it.", "umbrella"],
    ),
    "Write a short sentence about coffee. Do not use the word 'hot'.": (
        ["Coffee wakes me up.", "A cup of it, please: not in the hotel!"],
        ["Hot coffee wakes me up.", "Tea wakes me up.", "Coffee"],
    ),
    'Write a JSON object with the keys "name" and "age". The name is Anna and the age is 30.': (
        ['{"name": "Anna", "age": 30}', 'Sure:\n```json\n{\n  "name": "Anna",\n  "age": "30"\n}\n```'],
        ["name: Anna, age: 30", '{"name": "Anna"}', '{"name": "Anna", "age": 30, "city": "Rome"}',
         '{"name": "Anna", "age": 31}', "{'name': 'Anna', 'age': 30}"],
    ),
    "Repeat this sentence exactly, and say nothing else: The cat sat on the mat.": (
        ["The cat sat on the mat.", ' "The cat sat on the mat."\n', "The cat sat on the mat"],
        ["The cat sat on the mat. The cat sat on the mat.", "the cat sat on the mat.", "The cat sits on the mat."],
    ),
}  # fmt: skip
NOTHING = ("", "Yes.", "I do not know.", "Hello! How can I help you today?", "the " * 30)
ITEMS = {item.messages[-1]["content"]: item for item in SKILL.items()}


@pytest.mark.parametrize("prompt", ANSWERS)
def test_an_answer_passes_if_it_follows_the_instruction(prompt: str) -> None:
    right, wrong = ANSWERS[prompt]
    assert [text for text in right if not check(ITEMS[prompt], text)] == []
    assert [text for text in wrong if check(ITEMS[prompt], text)] == []


def test_every_kind_is_tested_and_as_frequent_as_any_other() -> None:
    assert {ITEMS[prompt].facts["kind"] for prompt in ANSWERS} == set(CHECKS)
    kinds = [item.facts["kind"] for item in ITEMS.values()]
    assert {kinds.count(kind) for kind in CHECKS} == {18}


def test_the_shown_answers_pass_and_answers_to_nothing_fail() -> None:
    for item in ITEMS.values():
        assert check(item, item.answer), item
        for text in (*NOTHING, item.messages[-1]["content"]):
            assert not check(item, text), item
