"""Sources mixed by weight: exact shares, no row twice, and the recipes that cannot mean it."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest

from align.data.checks import Table, load
from align.data.sources import DataSource
from align.data.weighing import weighed
from align.errors import AlignError

TEXT = frozenset({"text"})


def sources(*weights: float | None) -> list[DataSource]:
    return [DataSource(source=f"{name}.jsonl", weight=weight) for name, weight in zip("abcdef", weights, strict=False)]


def parts(*sizes: int) -> list[list[str]]:
    return [[f"{name}{i}" for i in range(size)] for name, size in zip("abcdef", sizes, strict=False)]


@pytest.mark.parametrize(
    ("sizes", "weights", "taken"),
    [
        ((700, 300), (0.7, 0.3), [700, 300]),
        ((1000, 300), (0.7, 0.3), [700, 300]),
        ((1000, 300), (7, 3), [700, 300]),
        ((50, 5000), (1, 1), [50, 50]),
        ((10, 100, 100), (0.1, 0.2, 0.7), [10, 20, 70]),
        ((1, 100), (0.3, 0.7), [1, 2]),  # 3.33 rows in all: three, of which 0.9 and 2.1 would be exact
    ],
)
def test_shares_by_hand(sizes: tuple[int, ...], weights: tuple[float, ...], taken: list[int]) -> None:
    assert [len(part) for part in weighed(sources(*weights), parts(*sizes), 0)[0]] == taken


@pytest.mark.parametrize("seed", range(200))
def test_any_shares_are_exact_to_one_row_and_no_row_comes_twice(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(2, 5)
    weights = [draw.choice([draw.randint(1, 9), round(draw.random() + 0.05, 3)]) for _ in range(count)]
    sizes = [draw.randint(20, 2000) for _ in range(count)]
    rows = parts(*sizes)
    try:
        taken = weighed(sources(*weights), rows, seed)[0]
    except AlignError as error:  # a share below one row
        assert "no row of" in str(error)
        return
    total = sum(map(len, taken))
    for part, of, weight in zip(taken, rows, weights, strict=True):
        share = Fraction(str(weight)) / sum(Fraction(str(one)) for one in weights)
        assert abs(len(part) - share * total) < 1
        assert [one for one in of if one in set(part)] == part, "in their order, none twice"
    assert max(len(part) - len(of) for part, of in zip(taken, rows, strict=True)) >= -1, "one is used up"


def test_the_seed_decides_which_rows_are_taken() -> None:
    first, again, other = (weighed(sources(1, 1), parts(10, 100), seed)[0][1] for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("weights", "sizes", "sentence"),
    [
        ((1, None), (3, 3), "'b.jsonl' has no `weight`, but other sources do\n  -> give each of them one, or none"),
        ((1,), (3,), "'a.jsonl' has a `weight`, but it is the only source\n  -> remove the weight"),
        (
            (1, 1000),
            (3, 10),
            "by weight no row of 'a.jsonl' is taken: it has 3, and 10 are taken of all\n  -> give other weights",
        ),
        ((1, 1), (5, 0), "'b.jsonl' has a `weight`, but no row that is trained on\n  -> leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(weights: tuple[float, ...], sizes: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(AlignError) as refused:
        weighed(sources(*weights), parts(*sizes), 0)
    assert str(refused.value) == sentence


def test_a_table_says_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 40), ("b", 90)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count)))

    def table(seed: int = 3) -> Table:
        return load(sources(2, 1), root=tmp_path, accepts=TEXT, stage="sft", seed=seed)

    found = table()
    names = [example.value["text"][0] for example in found.examples]
    assert names == ["a"] * 40 + ["b"] * 20
    assert found.warnings == [
        "by weight: 40 of 40 rows of 'a.jsonl' (66.7%), 20 of 90 rows of 'b.jsonl' (33.3%)",
    ]
    assert found.sha256 == table().sha256 != table(seed=4).sha256


def test_a_source_without_the_new_keys_is_written_as_before() -> None:
    assert DataSource(source="x").model_dump().keys() == {
        *("source", "split", "subset", "revision", "format", "columns", "limit"),
    }
    written = DataSource(source="x", weight=2.0, on_bad_row="skip").model_dump()
    assert (written["weight"], written["on_bad_row"]) == (2.0, "skip")
