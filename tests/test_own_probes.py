"""Probes of one's own: what a row asks, and which half it stands in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bad_input_driver
from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.battery import skill as battery
from align.forgetting.keys import ForgettingKeys
from align.forgetting.own import items, scorers
from align.forgetting.own.keys import ProbeFile
from align.forgetting.own.kinds import Scorer, Task
from align.forgetting.probes import Exact, Texts
from align.forgetting.statistics import paired_binary, verdict
from align.preflight import probe_sizes
from align.preflight.check import Prepared, prepare
from align.preflight.own_probes import OwnProbe
from align.recipe import load

HALVES = {
    "gate": ["Sort: c b a", "Sort: c d a", "Sort: c f a", "Sort: c h a"],
    "report": ["Sort: c e a", "Sort: c g a"],
}


def own(folder: Path, rows: list[dict[str, Any]], metric: str) -> probes.Probe:
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = ForgettingKeys.model_validate({"probes": {"own": {"data": "own.jsonl", "metric": metric}}})
    (found,) = probes.load(keys, folder)
    return found


def asked(probe: probes.Probe) -> dict[str, list[str]]:
    assert isinstance(probe, Exact)
    return {split: [one.prompt for one in items] for split, items in probe.items.items()}


def test_a_row_keeps_its_half_when_others_are_added(tmp_path: Path) -> None:
    """And from one version to the next: a limit is judged on the same rows as before."""
    rows = [{"prompt": f"Sort: c {x} a", "completion": f"a {x} c"} for x in "bdefgh"]
    assert asked(own(tmp_path, rows, "accuracy")) == HALVES
    more = [{"prompt": f"Sort: {x} b a", "completion": f"a b {x}"} for x in "xyz"]
    later = asked(own(tmp_path, [*more, *reversed(rows)], "accuracy"))
    assert {split: [one for one in items if " c " in one][::-1] for split, items in later.items()} == HALVES


def test_texts_are_halved_in_the_same_way(tmp_path: Path) -> None:
    found = own(tmp_path, [{"text": prompt} for prompts in HALVES.values() for prompt in prompts], "perplexity")
    assert isinstance(found, Texts) and found.texts == HALVES


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "completion": "4"},
        {
            "prompt": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "2 + 2?"},
            ],
            "completion": [{"role": "assistant", "content": "4"}],
        },
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "4"},
            ]
        },
    ],
    ids=["texts", "turns", "a talk"],
)
def test_a_row_asks_its_last_question(row: dict[str, Any]) -> None:
    assert probes.question(row) == ("2 + 2?", "4")


def read(folder: Path, *rows: dict[str, Any], **keys: Any) -> items.Halves:
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return items.read("own", ProbeFile.model_validate({"data": "own.jsonl", **keys}, strict=True), folder)


SUMS = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)]
SYSTEM = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, SYSTEM[1]]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2 + 2?", "answer": "4"}, "2 + 2?"),
        ({"prompt": "2 + 2?", "completion": "4"}, "2 + 2?"),
        ({"messages": SYSTEM, "answer": "4"}, SYSTEM),
        ({"messages": [*TALK, {"role": "assistant", "content": "4"}]}, TALK),
    ],
    ids=["answer", "completion", "messages and answer", "last message"],
)
def test_forms_of_a_row(row: dict[str, Any], prompt: Any, tmp_path: Path) -> None:
    found = read(tmp_path, row, *SUMS, metric="contains")
    (item,) = [one for half in found.values() for one in half if one.question == "2 + 2?"]
    assert (item.prompt, item.answer, str(item.place).rpartition(":")[2]) == (prompt, "4", "1")


def test_a_seed_makes_equal_halves_and_another_seed_makes_others(tmp_path: Path) -> None:
    halves = {seed: read(tmp_path, *SUMS, metric="exact", seed=seed) for seed in (0, 1)}
    gates = {seed: {one.prompt for one in found["gate"]} for seed, found in halves.items()}
    for seed, found in halves.items():
        assert len(found["gate"]) == len(found["report"]) == 20
        assert gates[seed].isdisjoint(one.prompt for one in found["report"])
    assert gates[0] != gates[1]
    again = read(tmp_path, *reversed(SUMS), metric="exact", seed=0)
    assert {one.prompt for one in again["gate"]} == gates[0], "whatever the order of the rows"


def test_two_files_are_the_two_halves(tmp_path: Path) -> None:
    for name, rows in (("a", SUMS[:3]), ("b", SUMS[3:9])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = ProbeFile.model_validate({"data": {"gate": "a.jsonl", "report": "b.jsonl"}, "metric": "choice"})
    with pytest.raises(AlignError, match="needs 'choices'"):
        items.read("own", keys, tmp_path)
    found = items.read("own", keys.model_copy(update={"metric": "exact"}), tmp_path)
    assert [one.id for one in found["gate"]] == ["own-gate-0", "own-gate-1", "own-gate-2"]
    assert [one.prompt for one in found["report"]] == [row["prompt"] for row in SUMS[3:9]]


def test_a_labelled_answer_counts_where_it_is_desirable(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["answer"], "label": n % 4 > 0} for n, row in enumerate(SUMS)]
    found = read(tmp_path, *rows, metric="exact")
    asked_ = {str(one.prompt) for half in found.values() for one in half}
    assert asked_ == {row["prompt"] for row in rows if row["label"]}


def measured_by(folder: Path, metric: str, forgetting: str = "") -> Prepared:
    (folder / "sums.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Sort: c {x} a", "completion": f"a {x} c"}) + "\n" for x in "bdefgh")
    )
    (folder / "prose.jsonl").write_text(
        "".join(json.dumps({"text": f"There were {n} birds."}) + "\n" for n in range(6))
    )
    (folder / "score.py").write_text("def right(prompt, completion):\n    return True\n")
    (folder / "recipe.yaml").write_text(
        f"name: x\nmodel: {{base: lab}}\nforgetting:\n  max_drop: 0.9\n  probes:\n    sums: {{data: sums.jsonl, "
        f"metric: {metric}}}\n    prose: {{data: prose.jsonl, metric: perplexity}}\n{forgetting}"
        "stages: {sft: {data: lab/helpdesk}}\n"
    )
    return prepare(load.load(folder / "recipe.yaml"))


FORMERLY = "18af84b5cf9c997d0fe6b3b02876dd6489dec7fad516f1721efe9705791aaf41"  # before there were other metrics


def test_what_was_measured_before_is_not_measured_again(tmp_path: Path) -> None:
    assert measured_by(tmp_path, "accuracy").probes == FORMERLY
    assert measured_by(tmp_path, "exact").probes == FORMERLY


def test_what_another_score_comes_of_is_another_probe(tmp_path: Path) -> None:
    found = [measured_by(tmp_path, metric).probes for metric in ("exact", "contains", "regex", "./score.py:right")]
    found.append(measured_by(tmp_path, "exact", "    general: true\n").probes)
    found.append(measured_by(tmp_path, "contains, tokens: 5").probes)
    assert len(set(found)) == 6
    before = measured_by(tmp_path, "./score.py:right").probes
    assert before == found[3]
    real = Path.write_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", lambda self, text, *_, **__: real(self, text.replace("True", "False")))
        assert measured_by(tmp_path, "./score.py:right").probes != before, "of another function"


def test_shipped_sets_stand_among_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS), encoding="utf-8")
    file = {"data": "own.jsonl", "metric": "contains"}
    keys = ForgettingKeys.model_validate({"probes": {"lab": True, "sums": file}, "max_drop": {"copy": 0.3}})
    found = [name for probe in probes.load(keys, tmp_path) for name in probes.called(probe)]
    alone = [name for probe in probes.load(ForgettingKeys(probes="lab"), tmp_path) for name in probes.called(probe)]
    assert found == [*alone, "sums"] == probes.names(keys)
    general = ForgettingKeys.model_validate({"probes": {"general": True, "sums": file}, "items": 10})
    names = [name for probe in probes.load(general, tmp_path) for name in probes.called(probe)]
    assert len(names) == len(battery.names()) + 2 and names[-1] == "sums"
    assert names == probes.names(general)
    keys = ForgettingKeys.model_validate({"probes": {"lab": True, "copy": file}})
    with pytest.raises(AlignError) as raised:
        probes.load(keys, tmp_path)
    assert str(raised.value) == "two probes are called 'copy'\n  -> rename your own: a shipped one has that name"


@pytest.mark.parametrize("limit", [0.02, 0.05, 0.1, 0.25, 0.9])
def test_the_fewest_items_that_can_show_that_nothing_was_lost(limit: float) -> None:
    needed = probe_sizes.fewest(limit)
    assert needed is not None
    same = {n: paired_binary([1.0] * n, [1.0] * n) for n in (needed - 1, needed)}
    assert [verdict(change, limit) for change in same.values()] == ["UNCLEAR", "OK"]


def test_a_probe_that_is_too_small_is_told_how_many_items_it_needs(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS), encoding="utf-8")
    file = {"data": "own.jsonl", "seed": 0}
    said = (
        "the probe 'own' has 20 items in the gate and 20 items in the report, too few to show that a drop stays within "
        "0.1: that takes 26 in each half, and a few hundred to detect a drop"
    )
    for metric, drop, expected in (("exact", 0.1, [said]), ("contains", 0.1, [said]), ("exact", 0.2, [])):
        probe, found = probes.own("own", ProbeFile.model_validate({**file, "metric": metric}), tmp_path)
        own_ = OwnProbe("own", probe, metric, found)
        assert list(probe_sizes.notes([own_], ForgettingKeys(max_drop=drop))) == expected
    task = Task("own", "x", "", own=True, group=False, limit=51, field=None, sha256="", version="")
    of_a_task = said.replace("20 items in the gate and 20", "26 items in the gate and 25")
    for one, expected in ((task, [of_a_task]), (replace(task, group=True), [])):
        assert list(probe_sizes.notes([OwnProbe("own", one, "", {})], ForgettingKeys(max_drop=0.1))) == expected


def test_probes_that_are_too_small_are_told_in_one_sentence() -> None:
    def task(name: str, limit: int) -> OwnProbe:
        return OwnProbe(name, Task(name, "x", "", True, False, limit, None, "", ""), "", {})

    few = "too few to show that a drop stays within 0.1: that takes 26 in each half, and a few hundred to detect a drop"
    same = [task(name, 40) for name in ("law", "style", "sums")]
    assert list(probe_sizes.notes([*same, task("large", 52)], ForgettingKeys())) == [
        f"the probes 'law', 'style' and 'sums' each have 20 items in the gate and 20 items in the report, {few}"
    ]
    other = task("dates", 7)
    assert list(probe_sizes.notes([same[0], other], ForgettingKeys())) == [
        "the probe 'law' has 20 items in the gate and 20 items in the report; the probe 'dates' has 4 items in the "
        f"gate and 3 items in the report, {few}"
    ]
    found = list(probe_sizes.notes(same, ForgettingKeys.model_validate({"max_drop": {"sums": 0.2, "law": 0.05}})))
    assert [text.split(" has ")[0] for text in found] == ["the probe 'law'", "the probe 'style'"]
    assert [text.split("that takes ")[1].split()[0] for text in found] == [str(probe_sizes.fewest(0.05)), "26"]


def scorer(folder: Path, metric: str, *, offline: bool = True) -> Scorer:
    return scorers.find(ProbeFile(data="own.jsonl", metric=metric), [], folder, offline=offline)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's libraries."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_MODULES_CACHE", raising=False)
    return tmp_path / "hf"


def test_a_metric_is_taken_from_the_cache_of_evaluate(cache: Path, tmp_path: Path) -> None:
    kept = cache / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--same" / "0123" / "same.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("import json\n", encoding="utf-8")
    found = scorer(tmp_path, "evaluate:same")
    assert (found.metric, found.name, found.path) == ("evaluate", "same", str(kept))
    kept.write_text("import json\nfrom nowhere_to_be_found.inner import score\n", encoding="utf-8")
    with pytest.raises(AlignError) as raised:
        scorer(tmp_path, "evaluate:same")
    assert str(raised.value) == (
        "the metric 'same' needs the package 'nowhere_to_be_found' (line 2 of same.py), which is not installed\n"
        "  -> pip install nowhere-to-be-found"
    )
    assert raised.value.exit == 4


IN_A_FUNCTION = """\
import evaluate

class Mine(evaluate.Metric):
    def _compute(self, predictions, references):
        import json, yaml_of_nobody.scores
"""


@pytest.mark.parametrize(
    ("files", "needs"),
    [
        ({"mine": IN_A_FUNCTION}, ("yaml_of_nobody", 5, "mine")),
        ({"mine": "from .helper import f\n", "helper": "x = 1\nimport not_there.at_all\n"}, ("not_there", 2, "helper")),
        ({"mine": "import helper\n", "helper": "import mine, json\n"}, None),
        (
            {"mine": "from . import helper\n", "helper": "with open('x') as f:\n    import gone\n"},
            ("gone", 2, "helper"),
        ),
        ({"mine": "try:\n    import fast_one\nexcept ImportError:\n    import json\n"}, None),
        ({"mine": "try:\n    import fast_one\nexcept (OSError, ImportError):\n    fast_one = None\n"}, None),
        ({"mine": "try:\n    import fast_one\nexcept OSError:\n    raise\n"}, ("fast_one", 2, "mine")),
        ({"mine": "try:\n    import fast_one\nfinally:\n    pass\n"}, ("fast_one", 2, "mine")),
        ({"mine": "import contextlib\nwith contextlib.suppress(ImportError):\n    import fast_one\n"}, None),
        (
            {"mine": "import contextlib\nwith contextlib.suppress(OSError):\n    import slow_one\n"},
            ("slow_one", 3, "mine"),
        ),
        ({"mine": "\ufeffimport json\n"}, None),  # a mark of the order of bytes, as editors on Windows write it
        ({"mine": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import stubs_alone\n"}, None),
        ({"mine": "import torch\nimport datasets.features, os.path\n"}, None),
    ],
)
def test_a_package_that_a_metric_of_ones_own_needs_is_missed_before_training(
    files: dict[str, str], needs: tuple[str, int, str] | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.py").write_text(text, encoding="utf-8")
    if needs is None:
        assert scorer(tmp_path, "evaluate:./mine").name == "mine"
        return
    with pytest.raises(AlignError) as raised:
        scorer(tmp_path, "evaluate:./mine")
    package, line, file = needs
    what = f"the metric './mine' needs the package '{package}' (line {line} of {file}.py), which is not installed"
    assert (raised.value.what, raised.value.exit) == (what, 4)
    assert raised.value.remedy == f"pip install {package.replace('_', '-')}"


def test_an_import_that_evaluate_would_misread_is_refused_before_training(tmp_path: Path) -> None:
    """It reads `datasets,` as the name of a package, and asks for it once the model is loaded."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("import json\nimport datasets, evaluate\n", encoding="utf-8")
    with pytest.raises(AlignError) as raised:
        scorer(tmp_path, "evaluate:./mine")
    what = "the metric './mine' has an import that `evaluate` cannot read: `import datasets, evaluate`"
    assert (raised.value.what, raised.value.remedy) == (what, "write each import in a line of its own")
    assert raised.value.place is not None and raised.value.place.line == 2


def test_a_package_is_installed_by_the_name_that_pip_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def f():\n    from sklearn.metrics import f1_score\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AlignError) as raised:
        scorer(tmp_path, "evaluate:./mine.py")
    assert raised.value.remedy == "pip install scikit-learn"


@pytest.mark.parametrize(
    ("name", "known", "asked"),
    [
        ("same", "evaluate-measurement/same", ["metric", "comparison", "measurement"]),
        ("mine/same", "mine/same", ["mine/same"]),
        ("same", "", ["metric", "comparison", "measurement"]),
    ],
)
def test_a_metric_is_fetched_from_the_hub(
    name: str, known: str, asked: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def fetched(space: str, **keys: Any) -> str:
        looked.append(space)
        assert keys["repo_type"] == "space" and not keys["local_files_only"]
        if space != known:
            raise bad_input_driver.refused("RepositoryNotFoundError")
        (tmp_path / "same.py").write_text("import json\n", encoding="utf-8")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    if known:
        assert scorer(tmp_path, f"evaluate:{name}", offline=False).path == str(tmp_path / "same.py")
    else:
        with pytest.raises(AlignError) as raised:
            scorer(tmp_path, f"evaluate:{name}", offline=False)
        assert str(raised.value) == (
            "`evaluate` has no metric 'same'\n  -> metrics are listed at https://huggingface.co/evaluate-metric; one "
            "of your own is `evaluate:./my_metric`"
        )
    assert looked == [one if "/" in one else f"evaluate-{one}/same" for one in asked]
