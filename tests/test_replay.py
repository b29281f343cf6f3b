"""Replayed rows of several sources: exact quotas in every epoch, the same draw for any number of processes, whose rows
they are, and what of it is in a fingerprint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from align.data import replay
from align.data.order import STRATEGIES, Strategy, epoch
from align.data.replay import Beside, Source, dealt, quotas
from align.data.sources import DataSource
from align.errors import AlignError
from align.preflight.check import Prepared, prepare
from align.recipe import resolved
from align.recipe.load import load
from align.recipe.plan import Loaded
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.runner import tickets
from align.worker.rows import learnt
from error_cases import CHATS, PAIRS

WEIGHTS: list[tuple[float, ...]] = [(1.0,), (3.0, 1.0), (1.0, 1.0, 1.0), (0.1, 0.7, 0.2), (5.0, 1.0, 1.0, 1e-3)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quotas_are_the_nearest_whole_numbers(weights: tuple[float, ...]) -> None:
    for n in range(60):
        found = quotas(n, weights)
        assert sum(found) == n
        exact = [n * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
        assert all(abs(whole - share) < 1 for whole, share in zip(found, exact, strict=True))
        up = [share - int(share) for whole, share in zip(found, exact, strict=True) if whole > share]
        down = [share - int(share) for whole, share in zip(found, exact, strict=True) if whole < share]
        assert min(up, default=1) >= max(down, default=0), "the largest remainders are rounded up"


def test_quotas_of_a_published_example() -> None:
    """Largest remainder (Hare quota) of the seats that Wikipedia's table deals out: 47,000 votes of 100,000, ..."""
    assert quotas(10, [47_000, 16_000, 15_800, 12_000, 6_100, 3_100]) == [5, 2, 1, 1, 1, 0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sources_come_evenly(weights: tuple[float, ...]) -> None:
    counts = quotas(97, weights)
    order = dealt(counts)
    assert [order.count(i) for i in range(len(counts))] == counts
    for end in range(1, 98):
        for i, count in enumerate(counts):
            assert abs(order[:end].count(i) - count * end / 97) < len(counts) - 0.5


def sources(*sizes: int, weights: Sequence[float] = ()) -> list[Source]:
    of = zip(sizes, weights or [1.0] * len(sizes), strict=True)
    return [Source(f"s{i}", weight, [{"text": f"{i} {n}"} for n in range(size)]) for i, (size, weight) in enumerate(of)]


def test_a_draw_has_the_quota_of_each_source_and_no_row_twice_before_all_have_come() -> None:
    rows, of = replay.draw(sources(5, 40, weights=[3.0, 1.0]), 20, seed=3)
    assert Counter(of) == {0: 15, 1: 5}
    seen = Counter(row["text"] for row in rows)
    assert [count for text, count in seen.items() if text.startswith("0")] == [3] * 5
    assert all(int(row["text"][0]) == number for row, number in zip(rows, of, strict=True))


def test_of_one_source_the_draw_is_what_it_always_was() -> None:
    from align.data import mixing

    [one] = sources(7)
    assert replay.draw([one], 17, seed=5) == (mixing.draw(one.rows, 17, 5), [0] * 17)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("task", "replayed", "batch"), [(96, (24, 8), 8), (101, (13, 5, 2), 7), (10, (1, 1), 4)])
def test_every_epoch_of_mixed_rows_has_the_quota_of_each_source(
    strategy: Strategy, task: int, replayed: tuple[int, ...], batch: int
) -> None:
    groups = [0] * task + [1 + number for number, count in enumerate(replayed) for _ in range(count)]
    lengths = [5 + i * 7 % 90 for i in range(len(groups))]
    for seed in range(3):
        order = epoch(lengths, groups, batch, strategy=strategy, seed=seed)
        assert set(order) == set(range(len(groups)))
        found = Counter(groups[i] for i in order)
        share = round(len(order) * sum(replayed) / len(groups))
        assert [found[1 + i] for i in range(len(replayed))] == quotas(share, replayed)
        for start in range(0, len(order), batch):
            here = sum(groups[i] > 0 for i in order[start : start + batch])
            assert abs(here - batch * share / len(order)) < 1, "every update has its share of replayed rows"


@pytest.mark.parametrize("per_update", [1, 3, 16])
@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (2.0, 2.0, 1.0)])
def test_every_epoch_beside_updates_has_the_quota_of_each_source(per_update: int, weights: tuple[float, ...]) -> None:
    sizes, updates = [7, 30, 4][: len(weights)], 11
    order = Beside(sizes, weights, per_update, updates, seed=3)
    seen: list[list[int]] = [[] for _ in sizes]
    for number in range(4):
        rows = [found for update in range(updates) for found in order.rows(number * updates + update)]
        assert all(len(order.rows(number * updates + update)) == per_update for update in range(updates))
        counted = Counter(source for source, _ in rows)
        assert [counted[i] for i in range(len(sizes))] == quotas(per_update * updates, weights)
        for source, row in rows:
            seen[source].append(row)
    for size, rows in zip(sizes, seen, strict=True):
        rounds = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        assert all(sorted(one) == list(range(size)) for one in rounds)
        assert size < 7 or len({tuple(one) for one in rounds}) >= 0.9 * len(rounds), "each time in another order"


def test_what_stands_beside_an_update_depends_on_its_number_alone() -> None:
    first = Beside([9, 5], [1.0, 1.0], 4, 6, seed=3)
    asked = [first.rows(update) for update in range(20)]
    assert [Beside([9, 5], [1.0, 1.0], 4, 6, seed=3).rows(update) for update in (19, 7, 0)] == [
        asked[19], asked[7], asked[0]
    ]  # fmt: skip
    assert [Beside([9, 5], [1.0, 1.0], 4, 6, seed=4).rows(update) for update in range(20)] != asked


# ---- in a recipe ----------------------------------------------------------------------------------------------------

RECIPE = """\
name: chain
model: {base: lab}
pipeline: sft_dpo
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {data: chats.jsonl, replay: {data: old.jsonl, ratio: 0.5}}
  dpo:
    data: pairs.jsonl
"""
TERM = "    replay: {ratio: 0.2, sources: [{data: lab/general, weight: 3}, {stage: sft}]}\n"
OLD = "".join(json.dumps({"text": f"Text {n}."}) + "\n" for n in range(4))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {"chats": CHATS, "pairs": PAIRS, "old": OLD}.items():
        Path(f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def loaded(text: str, *overrides: str) -> Loaded:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return load(Path("recipe.yaml"), overrides)


def prepared(text: str, *overrides: str) -> tuple[Loaded, Prepared]:
    found = loaded(text, *overrides)
    return found, prepare(found)


def made(text: str, *overrides: str) -> dict[str, Ticket]:
    return tickets.build(*prepared(text, *overrides), RunDir(Path("run")))


@pytest.mark.usefixtures("folder")
def test_a_stage_is_a_source_without_the_rows_that_it_replayed() -> None:
    chain, found = prepared(RECIPE + TERM)
    assert [one.name for one in found.rows["dpo"].replay] == ["lab/general", "stage sft"]
    assert [one.weight for one in found.rows["dpo"].replay] == [3.0, 1.0]
    assert [str(row.place) for row in found.rows["dpo"].replay[1].examples] == [f"chats.jsonl:{n}" for n in (1, 2, 3)]
    ticket = tickets.build(chain, found, RunDir(Path("run")))["dpo"]
    assert ticket.replay is not None and ticket.replay.count == 2003
    assert [(part.name, part.count) for part in ticket.replay_sources] == [("lab/general", 2000), ("stage sft", 3)]


@pytest.mark.usefixtures("folder")
def test_of_a_stage_only_the_rows_that_it_trained_on_are_replayed() -> None:
    """Neither those that it holds out nor those that it drops, and a row whole whose turns it takes one by one."""
    long = {"prompt": "word " * 40, "completion": "yes"}
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    with Path("chats.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [*long_chat(long)]}) + "\n" + json.dumps({"messages": turns}) + "\n")
    extra = "too_long: drop, turns: each, training: {max_length: 24}"
    text = RECIPE.replace("ratio: 0.5}}", f"ratio: 0.5}}, {extra}}}") + "    replay: {stage: sft, ratio: 0.2}\n"
    _, found = prepared(text)
    assert [str(row.place) for row in found.rows["dpo"].replay[0].examples] == [
        f"chats.jsonl:{n}" for n in (1, 2, 3, 5)
    ]  # fmt: skip
    assert found.rows["dpo"].replay[0].examples[-1].value == {"messages": turns}
    _, held = prepared(text, "stages.sft.eval_data=1")
    out, kept = held.rows["sft"].evaluation, held.rows["dpo"].replay[0].examples
    assert out and {str(row.place) for row in out}.isdisjoint(str(row.place) for row in kept)


def long_chat(row: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


@pytest.mark.usefixtures("folder")
def test_the_replay_of_the_recipe_is_for_the_stages_that_mix() -> None:
    shared = RECIPE.replace(", replay: {data: old.jsonl, ratio: 0.5}", "") + "replay: {data: old.jsonl, ratio: 0.5}\n"
    sft, dpo = loaded(shared).stages
    assert sft.replay is not None and sft.mixes and dpo.replay is None
    assert loaded(shared, "stages.dpo.replay={data: old.jsonl, ratio: 0.1}").stages[1].replay is not None
    assert not loaded(shared, "stages.dpo.replay={data: old.jsonl, ratio: 0.1}").stages[1].mixes


@pytest.mark.usefixtures("folder")
def test_a_written_out_recipe_is_the_same_recipe() -> None:
    first = loaded(RECIPE + TERM)
    resolved.write(Path("whole.yaml"), first)
    again = load(Path("whole.yaml"), ())
    assert resolved.resolved(again) == resolved.resolved(first)
    assert again.stages[1].replay is not None and again.stages[1].replay.model_dump() == {
        "ratio": 0.2, "sources": [
            {"data": DataSource(source="lab/general").model_dump(), "weight": 3.0}, {"stage": "sft", "weight": 1.0}
        ]
    }  # fmt: skip
    assert resolved.resolved(first)["stages"]["sft"]["replay"].keys() == {"data", "ratio"}
    assert resolved.resolved(loaded(RECIPE))["stages"]["dpo"]["replay"] is None
    resolved.write(Path("plain.yaml"), loaded(RECIPE))
    assert load(Path("plain.yaml"), ()).stages[1].replay is None


@pytest.mark.usefixtures("folder")
def test_what_of_a_replay_trains_differently_is_in_the_fingerprint() -> None:
    plain = {id: ticket.fingerprint for id, ticket in made(RECIPE).items()}
    assert made(RECIPE, "stages.dpo.ptx_coef=1.0")["dpo"].fingerprint == plain["dpo"], "nothing was said"
    term = made(RECIPE + TERM)
    assert term["sft"].fingerprint == plain["sft"] and term["dpo"].fingerprint != plain["dpo"]
    replay = "stages.dpo.replay.sources"
    for override in (
        "stages.dpo.ptx_coef=0.5",
        f"{replay}=[{{data: lab/general, weight: 2}}, {{stage: sft}}]",
        f"{replay}=[{{stage: sft}}, {{data: lab/general, weight: 3}}]",
        "stages.dpo.replay.ratio=0.3",
    ):
        assert made(RECIPE + TERM, override)["dpo"].fingerprint != term["dpo"].fingerprint, override
    same = {made(RECIPE, f"stages.dpo.replay={one}")["dpo"].fingerprint for one in (
        "{stage: sft, ratio: 0.2}", "{ratio: 0.2, sources: [{stage: sft}]}", "{data: chats.jsonl, ratio: 0.2}",
        "{ratio: 0.2, sources: [{data: chats.jsonl, weight: 7}]}",
    )}  # fmt: skip
    assert len(same) == 1, "a source alone has all the weight, and rows count by their content"


@pytest.mark.usefixtures("folder")
def test_the_skills_of_the_lab_are_covered_where_its_own_set_is_replayed() -> None:
    assert not made(RECIPE)["sft"].replays, "of other files it is not known what they cover"
    assert made(RECIPE + TERM)["sft"].replays
    assert not made(RECIPE + TERM, "stages.dpo.replay.ratio=0")["sft"].replays


@pytest.mark.usefixtures("folder")
def test_a_source_of_which_no_row_is_replayed_is_told() -> None:
    sources = "{ratio: 0.5, sources: [{data: lab/general, weight: 9}, {data: old.jsonl, weight: 1}]}"
    _, found = prepared(RECIPE, f"stages.sft.replay={sources}")
    assert "stage sft: none of its 3 replayed rows is from old.jsonl" in found.notes
    _, found = prepared(RECIPE, f"stages.sft.replay={sources.replace('9', '2')}")
    assert not any("replayed rows is from" in note for note in found.notes)


@pytest.mark.usefixtures("folder")
def test_a_stage_without_rows_to_replay_is_refused() -> None:
    """One that could have had some, by what it declares."""
    program = "from align.stage.declaration import Stage\n\n"
    program += "STAGE = Stage('mine', frozenset({'chat', 'preference'}), print)\n"
    Path("mine.py").write_text(program, encoding="utf-8")
    text = RECIPE.partition("pipeline")[0] + "forgetting: {probes: none}\nstages:\n"
    text += "  pairs: {stage: ./mine.py, data: pairs.jsonl}\n"
    text += "  sft: {policy: pairs, data: chats.jsonl, replay: {stage: pairs, ratio: 0.5}}\n"
    with pytest.raises(AlignError) as error:
        prepared(text)
    assert error.value.what == "stage 'pairs' has no answers or texts that stage 'sft' could replay"


@pytest.mark.usefixtures("folder")
def test_of_a_stage_that_was_not_looked_up_nothing_is_known() -> None:
    """Rows of the Hub are not read with --offline; then the stage has none, which is no fault."""
    text = RECIPE.replace("{data: chats.jsonl, replay: {data: old.jsonl, ratio: 0.5}}", "{data: some/where}")
    chain = loaded(text + "    replay: {stage: sft, ratio: 0.2}\n")
    assert prepare(chain, offline=True).rows["dpo"].replay[0].examples == []


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "source", ["data: old.jsonl", "self: {rows: 8}", "sources: [{data: old.jsonl}, {self: {rows: 8}}]"]
)
def test_a_ratio_of_0_is_no_replay_however_often_a_stage_is_tried(source: str) -> None:
    """No rows are read or written for it, and the stage is the one without a replay."""
    off = RECIPE.replace("data: old.jsonl, ratio: 0.5", f"{source}, ratio: 0")
    again = "forgetting: {probes: lab, on_violation: [retry, warn], retry: {replay: 4, learning_rate: 0.5}}"
    chain, found = prepared(off.replace("forgetting: {probes: none}", again))
    run = RunDir(Path("run"))
    asked = tickets.build(chain, found, run)
    first, second = asked["sft"], tickets.attempt(chain.stages[0], chain, asked, run, 2)
    none = RECIPE.replace(", replay: {data: old.jsonl, ratio: 0.5}", "")
    assert first.fingerprint == made(off)["sft"].fingerprint == made(none)["sft"].fingerprint
    for ticket in (first, second):
        assert (ticket.replay, ticket.writing, ticket.replay_sources, ticket.replay_ratio) == (None, None, [], 0.0)
    assert second.training["learning_rate"] == first.training["learning_rate"] / 2


# ---- rows that the policy writes, as one of several sources ---------------------------------------------------------

SELF = "    replay: {ratio: 0.5, sources: [{self: {rows: 8}, weight: 2}, {data: old.jsonl}, {stage: sft}]}\n"


@pytest.mark.usefixtures("folder")
def test_what_the_policy_writes_is_one_of_several_sources() -> None:
    """Its place among the parts of a ticket, and its share once it is written; before, nothing is replayed."""
    ticket, run = made(RECIPE + SELF)["dpo"], RunDir(Path("run"))
    assert ticket.writing is not None and ticket.writing.keys["rows"] == 8
    assert [(part.name, part.weight, part.count, part.written) for part in ticket.replay_sources] == [
        ("the policy itself", 2.0, 0, True), ("old.jsonl", 1.0, 4, False), ("stage sft", 1.0, 3, False),
    ]  # fmt: skip
    task = [{"text": f"New {n}."} for n in range(12)]
    assert (before := learnt(run, ticket, task, mixes=True)).rows == task and before.data["replay_rows"] == 0
    own = [{"text": f"Written {n}."} for n in range(5)]
    found = learnt(run, ticket, task, mixes=True, written=own)
    assert found.rows[:12] == task and Counter(found.groups) == {0: 12, 1: 6, 2: 3, 3: 3}
    rows = [(number, row) for number, row in zip(found.groups, found.rows, strict=True) if number]
    assert {row["text"] for number, row in rows if number == 1} == {row["text"] for row in own}
    assert all(row["text"].startswith("Text") for number, row in rows if number == 2)
    assert all("messages" in row for number, row in rows if number == 3)
    assert [one["rows"] for one in found.data["replay_sources"]] == [5, 4, 3]
    beside = learnt(run, ticket, task, mixes=False, written=own)
    assert beside.rows == task and [len(source.rows) for source in beside.replay] == [5, 4, 3]


@pytest.mark.usefixtures("folder")
def test_where_the_policy_stands_among_the_sources_is_in_the_fingerprint() -> None:
    found = made(RECIPE + SELF)["dpo"].fingerprint
    replay = "stages.dpo.replay.sources"
    for override in (
        f"{replay}=[{{data: old.jsonl}}, {{self: {{rows: 8}}, weight: 2}}, {{stage: sft}}]",
        f"{replay}=[{{self: {{rows: 8}}}}, {{data: old.jsonl}}, {{stage: sft}}]",
        f"{replay}=[{{self: {{rows: 9}}, weight: 2}}, {{data: old.jsonl}}, {{stage: sft}}]",
        f"{replay}=[{{data: old.jsonl}}, {{stage: sft}}]",
    ):
        assert made(RECIPE + SELF, override)["dpo"].fingerprint != found, override
    alone = made(RECIPE, "stages.dpo.replay={self: {rows: 8}, ratio: 0.5}")["dpo"].fingerprint
    assert alone == made(RECIPE, "stages.dpo.replay={sources: [{self: {rows: 8}, weight: 3}], ratio: 0.5}")[
        "dpo"
    ].fingerprint  # fmt: skip
