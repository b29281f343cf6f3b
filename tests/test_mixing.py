"""What is held out and what is replayed: exact shares, and nothing that moves when rows are added."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from align.data.formats import Example
from align.data.mixing import draw, hold_out, replay_rows
from align.errors import AlignError, Place


def texts(*numbers: int) -> list[Example]:
    return [Example("text", {"text": f"passage {number}"}, Place("x", at)) for at, number in enumerate(numbers, 1)]


def test_appended_rows_move_no_row_across() -> None:
    train, held = hold_out(texts(*range(500)), 0.1, seed=3)
    more_train, more_held = hold_out(texts(*range(1000)), 0.1, seed=3)
    assert [e for e in more_train if e in train] == train
    assert [e for e in more_held if e in held] == held
    assert sorted([*train, *held], key=lambda e: e.place.line or 0) == texts(*range(500))
    assert 25 < len(held) < 75  # 50 expected, standard deviation 7


def test_the_order_of_the_rows_does_not_matter_but_the_seed_does() -> None:
    rows = texts(*range(300))
    held = {e.value["text"] for e in hold_out(rows, 0.2, seed=3)[1]}
    assert {e.value["text"] for e in hold_out(rows[::-1], 0.2, seed=3)[1]} == held
    assert {e.value["text"] for e in hold_out(rows, 0.2, seed=4)[1]} != held


@pytest.mark.parametrize("share", [0.3, 40])
def test_equal_rows_are_on_the_same_side(share: float | int) -> None:
    train, held = hold_out(texts(*(n % 50 for n in range(200))), share, seed=0)
    assert not {e.value["text"] for e in train} & {e.value["text"] for e in held}
    assert len(train) + len(held) == 200


def test_a_number_of_rows_is_held_exactly_and_an_added_row_takes_at_most_one_place() -> None:
    held = hold_out(texts(*range(100)), 10, seed=1)[1]
    assert len(held) == 10
    for more in range(100, 140):
        new = hold_out([*texts(*range(100)), *texts(more)], 10, seed=1)[1]
        assert len(new) == 10
        assert sum(e not in new for e in held) <= 1


def test_nothing_held_out() -> None:
    assert hold_out(texts(1, 2), 0, seed=0) == (texts(1, 2), [])
    assert hold_out(texts(1, 2), 0.0, seed=0) == (texts(1, 2), [])


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "the held-out share 1.0 is not between 0 and 1\n  -> give 0.1 for a tenth, or a whole number"),
        (-0.1, "the held-out share -0.1 is not between 0 and 1\n  -> give 0.1 for a tenth, or a whole number"),
        (5, "holding out 5 of 3 rows leaves none to train on\n  -> hold out fewer"),
        (
            1e-9,
            "holding out 1e-09 of 3 rows takes none of them\n  -> hold out a larger share, or a whole number of rows",
        ),
    ],
)
def test_shares_that_cannot_be(share: float, text: str) -> None:
    with pytest.raises(AlignError) as error:
        hold_out(texts(1, 2, 3), share, seed=0)
    assert str(error.value) == text


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def answers(prompt: str, count: int) -> list[Example]:
    """Pairs of one prompt."""
    made = [{"prompt": prompt, "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
    return [Example("preference", value, Place("x", at)) for at, value in enumerate(made, 1)]


@pytest.mark.parametrize("share", [0.3, 40])
def test_all_answers_to_a_prompt_are_on_one_side(share: float | int) -> None:
    rows = [row for n in range(50) for row in answers(f"prompt {n}", 4)]
    train, held = hold_out(rows, share, seed=0)
    asked = {row.value["prompt"] for row in train}, {row.value["prompt"] for row in held}
    assert all(asked) and not asked[0] & asked[1]
    assert len(train) + len(held) == 200 and (not isinstance(share, int) or len(held) == share)


def asked(n: int, form: str, answer: str) -> Example:
    """The same question in each kind of row, with another answer."""
    turns = [*TALK, {"role": "user", "content": f"question {n}"}]
    said = {"role": "assistant", "content": answer}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "chat": ("chat", {"messages": [*turns, said]}),
        "marked": ("chat", {"messages": [TALK[0], {**TALK[1], "train": False}, turns[2], said]}),
        "completion": ("prompt_completion", {"prompt": turns, "completion": [said]}),
        "label": ("unpaired", {"prompt": turns, "completion": [said], "label": False}),
        "pair": ("preference", {"prompt": turns, "chosen": [said], "rejected": TALK[1:]}),
        "prompt": ("prompt", {"prompt": turns}),
    }
    kind, value = kinds[form]
    return Example(kind, value, Place("x", n))


def test_a_prompt_is_on_one_side_in_every_kind_of_row() -> None:
    sides = {}
    for form in ("chat", "marked", "completion", "label", "pair", "prompt"):
        rows = [asked(n, form, f"{form} {n}") for n in range(60)]
        sides[form] = {row.place.line for row in hold_out(rows, 0.2, seed=1)[1]}
    assert 4 < len(sides["chat"]) < 24 and all(side == sides["chat"] for side in sides.values())


def test_what_no_split_can_hold_out_is_said() -> None:
    with pytest.raises(AlignError) as error:
        hold_out(answers("one", 4), 0.5, seed=0)
    assert str(error.value) == (
        "all 4 rows have the same prompt, and rows with the same prompt are held out together or not at all\n"
        "  -> give other rows for it, or leave it out"
    )
    with pytest.raises(AlignError) as error:
        hold_out([*answers("one", 4), *answers("two", 3)], 2, seed=0)
    assert str(error.value) == (
        "holding out 2 of 7 rows takes none of them\n"
        "  -> hold out at least 3: rows with the same prompt are held out together"
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_lenient_split_holds_out_a_prompt_wherever_there_are_two(seed: int) -> None:
    for count in range(2, 9):
        rows = [row for n in range(count) for row in answers(f"prompt {n}", 1)]
        train, held = hold_out(rows, 0.1, seed, lenient=True)
        assert train and held and len(train) + len(held) == count
    uneven = [*answers("one", 30), *answers("two", 2)]
    train, held = hold_out(uneven, 0.1, seed, lenient=True)
    drawn = {row.value["prompt"] for row in held}
    assert len(drawn) == 1 and len({row.value["prompt"] for row in train}) == 1
    assert hold_out(answers("one", 5), 0.1, seed, lenient=True) == (answers("one", 5), [])


def test_a_lenient_split_takes_the_smaller_prompt_where_the_share_takes_none() -> None:
    taken = [
        len(hold_out([*answers(f"one {n}", 30), *answers(f"two {n}", 2)], 1e-9, 0, lenient=True)[1]) for n in range(20)
    ]
    assert taken == [2] * 20


def test_a_lenient_split_is_the_usual_one_where_that_is_possible() -> None:
    rows = [row for n in range(200) for row in answers(f"prompt {n}", 1)]
    assert hold_out(rows, 0.1, 7, lenient=True) == hold_out(rows, 0.1, 7)


def test_replay_rows_are_as_exact_as_integers_allow() -> None:
    for task in (1, 3, 7, 80, 999):
        for ratio in (0.0, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.75):
            error = {n: abs(n / (task + n) - ratio) for n in range(5 * task + 5)}
            assert error[replay_rows(task, ratio)] == pytest.approx(min(error.values()), abs=1e-12)
    assert replay_rows(80, 0.2) == 20
    assert replay_rows(90, 0.1) == 10
    assert replay_rows(0, 0.5) == 0


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 3.0])
def test_ratios_that_cannot_be(ratio: float) -> None:
    with pytest.raises(AlignError) as error:
        replay_rows(10, ratio)
    assert str(error.value) == (
        f"the replay ratio {ratio} is not between 0 and 1\n"
        "  -> give the share of replayed rows: 0.2 for one row in five, 0 for none"
    )


def test_drawing_repeats_a_row_only_after_all_others_and_in_a_new_order() -> None:
    buffer = list(range(20))
    drawn = draw(buffer, 50, seed=5)
    assert sorted(drawn[:20]) == sorted(drawn[20:40]) == buffer
    assert drawn[:20] != drawn[20:40]
    assert max(Counter(drawn).values()) == 3
    assert draw(buffer, 50, seed=5) == drawn
    assert draw(buffer, 7, seed=5) == drawn[:7]
    assert draw(buffer, 50, seed=6) != drawn
    assert draw([], 0, seed=5) == []


def test_drawing_from_nothing() -> None:
    with pytest.raises(AlignError) as error:
        draw([], 3, seed=0)
    assert str(error.value) == ("the replay data has no rows\n  -> give replay.data rows, or set replay.ratio to 0")
