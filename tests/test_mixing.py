"""What is held out and what is replayed: exact shares, and nothing that moves when rows are added."""

from __future__ import annotations

from collections import Counter

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
        "  -> give the share of replay in the whole: 0.2 for one row in five, 0 for none"
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
