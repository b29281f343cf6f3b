"""Wrong choices are the right answers of other questions, and every answer is right and wrong equally often."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from align.forgetting.battery.choices import deal, parse_blocks, parse_pairs, with_wrong_choices


def test_pairs_are_separated_by_semicolons_and_line_breaks() -> None:
    assert parse_pairs("\nFrance: Paris; Italy: Rome\nSpain: Madrid\n") == {
        "France": "Paris",
        "Italy": "Rome",
        "Spain": "Madrid",
    }


def test_each_answer_is_right_once_and_wrong_three_times() -> None:
    pairs = {f"question {i}": f"answer {i}" for i in range(9)}
    rows = with_wrong_choices(pairs, Random(0))
    assert [(question, answer) for question, answer, _ in rows] == list(pairs.items())
    assert all(answer in choices and len(set(choices)) == 4 for _, answer, choices in rows)
    assert len({choices.index(answer) for _, answer, choices in rows}) > 1, "the place must not give it away"
    assert Counter(choice for *_, choices in rows for choice in choices) == dict.fromkeys(pairs.values(), 4)


def test_too_few_answers_for_the_choices_are_refused() -> None:
    with pytest.raises(AssertionError, match="too few different answers"):
        with_wrong_choices({"one": "a", "two": "b", "three": "b"}, Random(0), size=3)


def test_the_choices_of_a_block_are_its_answers() -> None:
    assert parse_blocks("# a comment\nWhat barks? | a dog\nWhat purrs? | a cat\n\nWhat is wet? | water\n") == [
        ("What barks?", "a dog", ("a dog", "a cat")),
        ("What purrs?", "a cat", ("a dog", "a cat")),
        ("What is wet?", "water", ("water",)),
    ]


def test_an_answer_twice_in_a_block_is_refused() -> None:
    with pytest.raises(AssertionError, match="an answer twice in a block"):
        parse_blocks("What barks? | a dog\nWhat growls? | a dog")


def test_dealt_words_take_turns_as_the_answer_and_its_place() -> None:
    pool = ("a", "b", "c", "d", "e")
    random = Random(0)
    for turn in range(20):
        words = deal(pool, turn, random)
        assert words[turn % 4] == pool[turn % 5]
        assert len(set(words)) == 4
        assert set(words) <= set(pool)
