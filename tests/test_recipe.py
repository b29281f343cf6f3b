"""A recipe as it is read: what is inherited, what `--set` changes, where everything stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align import shipped
from align.errors import AlignError, Place
from align.preflight.check import prepare
from align.recipe import document, resolved
from align.recipe import load as recipes
from align.recipe.plan import Loaded

RECIPE = """\
name: chain
model: {base: lab}
pipeline: sft_dpo
parameterization: {method: lora, lora: {r: 8, alpha: 16}}
replay: {data: lab/general, ratio: 0.2}
stages:
  sft: {data: lab/helpdesk, training: {learning_rate: 1e-4}}
  dpo: {data: lab/helpdesk_preferences, parameterization: {method: full}}
"""


def load(text: str, folder: Path, *overrides: str) -> Loaded:
    path = folder / "r.yaml"
    path.write_text(text)
    return recipes.load(path, overrides)


def test_stages_inherit_and_replace(tmp_path: Path) -> None:
    sft, dpo = load(RECIPE, tmp_path).stages
    assert (sft.policy, dpo.policy) == ("base", "sft")
    assert sft.method_keys.model_dump()["lora"]["r"] == 8
    assert dpo.method_keys.model_dump() == {"method": "full"}  # replaces the recipe's whole
    assert sft.replay is not None and sft.replay.ratio == 0.2
    assert dpo.replay is None  # a stage that cannot mix rows takes none
    assert sft.training["learning_rate"] == 1e-4  # the recipe's, over
    assert dpo.training["learning_rate"] == 1e-6  # the stage's own for full weights


@pytest.mark.parametrize(
    ("dtype", "quantization", "computed"),
    [
        ("auto", "{}", "bfloat16"),
        ("float32", "{}", "float32"),
        ("float16", "{bits: 4}", "float16"),
        ("float32", "{bits: 8}", "bfloat16"),
        ("float32", "{bnb_4bit_compute_dtype: bfloat16}", "bfloat16"),
    ],
)
def test_what_4_bit_weights_are_computed_in(tmp_path: Path, dtype: str, quantization: str, computed: str) -> None:
    sets = (f"model.dtype={dtype}", f"parameterization={{method: qlora, quantization: {quantization}}}")
    sft, _ = load(RECIPE, tmp_path, *sets).stages
    held = sft.method_keys.model_dump()["quantization"]
    assert held["bnb_4bit_compute_dtype"] == computed
    given = sft.method_keys.model_dump(exclude_unset=True)["quantization"]
    assert ("bnb_4bit_compute_dtype" in given) == ("compute" in quantization)


def test_the_lab_s_probes_are_for_the_lab(tmp_path: Path) -> None:
    assert load(RECIPE, tmp_path).recipe.forgetting.probes == "lab"
    assert load(RECIPE, tmp_path, "model.base=./mine").recipe.forgetting.probes == "general"
    assert load(RECIPE, tmp_path, "forgetting.probes=none").recipe.forgetting.probes == "none"


def test_a_stage_can_refuse_the_replay_of_the_recipe(tmp_path: Path) -> None:
    sft, _ = load(RECIPE, tmp_path, "stages.sft.replay=null").stages
    assert sft.replay is None


def test_set_reads_values_as_the_recipe_does(tmp_path: Path) -> None:
    found = load(RECIPE, tmp_path, "seed=3", "stages.dpo.beta=1e-1", "stages.sft.training.save_strategy=no")
    assert found.recipe.seed == 3
    assert found.stages[1].keys.model_dump()["beta"] == 0.1
    assert found.stages[0].training["save_strategy"] == "no"  # YAML 1.1 would have made it false


def test_only_the_first_equals_sign_parts_key_and_value(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        load(RECIPE, tmp_path, "name=x=y")
    assert error.value.place == Place("--set name=x=y")


def test_the_last_set_of_a_key_counts_and_is_named(tmp_path: Path) -> None:
    assert load(RECIPE, tmp_path, "seed=3", "seed=4").recipe.seed == 4
    with pytest.raises(AlignError) as error:
        load(RECIPE, tmp_path, "seed=3", "seed=x")
    assert error.value.place == Place("--set seed=x")


def test_set_makes_the_mappings_on_its_way(tmp_path: Path) -> None:
    found = load(
        RECIPE.replace("parameterization: {method: lora, lora: {r: 8, alpha: 16}}\n", ""),
        tmp_path,
        "parameterization.method=lora",
        "parameterization.lora.r=4",
        "launch.processes=2",
    )
    assert found.stages[0].method_keys.model_dump()["lora"]["r"] == 4
    assert found.recipe.launch.processes == 2


def test_what_stands_beside_a_key_that_was_set_stands_in_the_file() -> None:
    read = document.parse("stages:\n  sft: {data: x}\n", "r.yaml")
    read.set("stages.sft.beta=1")
    read.set("launch.processes=2")
    assert read.place(("stages", "sft", "data")) == Place("r.yaml", 2, 9)
    assert read.place(("stages", "sft", "beta")) == Place("--set stages.sft.beta=1")
    for path in (("launch",), ("launch", "processes"), ("launch", "other")):  # a mapping that --set made
        assert read.place(path) == Place("--set launch.processes=2")


@pytest.mark.parametrize("text", ["=1", "stages..beta=1", ".seed=1", "seed.=1", "seed"])
def test_a_path_without_a_name_is_no_key(text: str) -> None:
    with pytest.raises(AlignError) as error:
        document.parse("seed: 0\n", "r.yaml").set(text)
    said = f"--set {text}: this is not KEY=VALUE\n  -> for example, write --set stages.dpo.beta=0.2"
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("replay.dataset=x", "unknown key 'replay.dataset'\n  -> did you mean 'data'?"),  # the place is this mapping
        ("forgetting.lr=1", "unknown key 'forgetting.lr'\n  -> known here: probes, items, budget, answers, max_drop, "
         "max_mean_drop, max_perplexity_ratio, max_kl, on_violation, retry, interpolate, every, watch, early_stop, "
         "budgets, on_budget"),
        ("model=tiny", "'model' must be a mapping, not 'tiny'\n  -> write `model: {base: tiny}`"),
        ("model=3", "'model' must be a mapping, not 3\n  -> known there: base, revision, dtype, attn_implementation, "
         "chat_template, eos_token, pad_token, trust_remote_code"),
    ],
)  # fmt: skip
def test_what_a_mapping_may_hold_is_told(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        load(RECIPE, tmp_path, override)
    assert str(error.value) == f"--set {override}: {said}"


def test_a_share_and_a_number_of_rows_to_hold_out(tmp_path: Path) -> None:
    assert load(RECIPE, tmp_path, "stages.sft.eval_data=0.05").stages[0].keys.eval_data == 0.05
    number = load(RECIPE, tmp_path, "stages.sft.eval_data=100").stages[0].keys.eval_data
    assert (number, type(number)) == (100, int)
    found = prepare(load(RECIPE, tmp_path, "stages.sft.eval_data=100"))
    assert 0 < len(found.rows["sft"].evaluation) <= 100


def test_no_recipe_wide_parameterization_is_full(tmp_path: Path) -> None:
    text = RECIPE.replace("parameterization: {method: lora, lora: {r: 8, alpha: 16}}\n", "")
    assert [plan.method_keys.method for plan in load(text, tmp_path).stages] == ["full", "full"]


@pytest.mark.parametrize("name", [n for n in shipped.names("recipes") if not n.startswith("gpu/")])
def test_a_resolved_recipe_gives_the_same_run(name: str, tmp_path: Path) -> None:
    """Written out and read again nothing changes, which is what makes a run folder repeatable."""
    found = recipes.load(recipes.locate(name))
    first = resolved.resolved(found)
    resolved.write(tmp_path / "again.yaml", found)
    assert resolved.resolved(recipes.load(tmp_path / "again.yaml")) == first


@pytest.mark.parametrize("beside", [True, False], ids=["in the current folder", "beside the recipe"])
def test_a_resolved_recipe_can_be_moved(beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are written out; what is no path stays as it is, whatever folder has its name."""
    (tmp_path / "own").mkdir()
    for name in ("reward", "sft", "lab"):
        (tmp_path / "own" / name).mkdir()
    (tmp_path / "own" / "judge.py").write_text("def short(completions, **_):\n    return [0.0 for _ in completions]\n")
    text = """\
name: x
model: {base: lab}
pipeline: rlhf
forgetting: {probes: none}
stages:
  sft: {data: lab/helpdesk}
  reward: {data: lab/helpdesk_preferences}
  ppo: {data: lab/helpdesk, reward: [reward, {source: "judge.py:short", weight: 0.5}]}
"""
    monkeypatch.chdir(tmp_path / "own" if beside else tmp_path)
    found = resolved.resolved(load(text, tmp_path / "own"))
    assert found["model"]["base"] == "lab"
    assert [entry["stage"] for entry in found["stages"].values()] == ["sft", "reward", "ppo"]
    sources = [one["source"] for one in found["stages"]["ppo"]["reward"]]
    assert sources == ["reward", f"{(tmp_path / 'own' / 'judge.py').resolve()}:short"]


ROLLOUT = "name: x\nmodel: {base: lab}\nstages: {rloo: {data: lab/helpdesk, reward: x, training: %s}}\n"


@pytest.mark.parametrize(
    ("rows", "passes", "iterations", "accumulation", "processes", "said"),
    [
        (3, 1, 1, 1, 2, ""),  # three pairs of answers
        (3, 1, 1, 1, 1, "a rollout of stage 'rloo' has 3 answers (per_device_train_batch_size x steps_per_generation x "
         "processes), which is not a multiple of num_generations, 2"),
        (2, 2, 2, 4, 1, ""),  # one update of the rollout, gone through twice
        (2, 2, 1, 4, 1, "a rollout of stage 'rloo' is 2 passes (steps_per_generation x num_iterations), which is not a "
         "multiple of gradient_accumulation_steps, 4: an update would mix two rollouts"),
        (1, 1, 1, 1, 1, "stage 'rloo' would learn from one answer at a time, with nothing to compare it with"),
    ],
)  # fmt: skip
def test_a_rollout_has_whole_groups_and_whole_updates(
    rows: int, passes: int, iterations: int, accumulation: int, processes: int, said: str, tmp_path: Path
) -> None:
    training = f"{{per_device_train_batch_size: {rows}, steps_per_generation: {passes}, num_generations: 2, "
    training += f"num_iterations: {iterations}, gradient_accumulation_steps: {accumulation}}}"
    told = ""
    try:
        load(ROLLOUT % training, tmp_path, f"launch.processes={processes}")
    except AlignError as error:
        told = error.what
    assert told == said


def test_notes_on_a_policy_over_a_base_in_another_precision(tmp_path: Path) -> None:
    def noted(*overrides: str) -> list[str]:
        return [text for text in load(RECIPE, tmp_path, *overrides).warnings if "quantisation" in text]

    quantised = "parameterization.method=qlora"
    own = "stages.dpo.parameterization={method: %s}"
    assert noted(quantised, own % "qlora") == noted(own % "lora") == []
    assert noted(quantised, own % "full") == [], "its base is not held in any other precision"
    computed = own % "qlora, quantization: {bnb_4bit_compute_dtype: bfloat16}"
    assert noted(quantised, "model.dtype=float32", computed) == [], "the same weights, computed in another"
    assert noted(quantised, own % "qlora, quantization: {bnb_4bit_quant_type: fp4}") != []
    what = "'sft' was trained on a base with different quantisation (4 or 8 bits, or none)"
    assert noted(quantised, own % "lora") == [f"stage dpo: {what}, so its starting policy is slightly different"]


def test_a_note_on_a_branch_from_the_base_in_another_precision_than_the_base_row(tmp_path: Path) -> None:
    """The base is measured once, as the first stage loads it."""

    def noted(*overrides: str) -> list[str]:
        apart = ("stages.dpo.policy=base", "forgetting.probes=lab", *overrides)
        return [text for text in load(RECIPE, tmp_path, *apart).warnings if "is measured as" in text]

    quantised, plain = "parameterization={method: qlora}", "stages.dpo.parameterization={method: lora}"
    said = (
        "stage dpo: the base is measured as 'sft' loads it, with different quantisation (4 or 8 bits, or none), so "
        "what quantising costs is part of the changes"
    )
    assert noted(quantised, plain) == noted(quantised, plain.replace("lora", "full")) == [said]
    assert noted(quantised, plain.replace("lora", "qlora")) == noted("parameterization={method: full}", plain) == []
    assert noted(quantised, plain, "stages.dpo.policy=sft") == noted(quantised, plain, "forgetting.probes=none") == []


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_every_shipped_recipe_is_right(name: str) -> None:
    found = prepare(recipes.load(recipes.locate(name)), offline=True)
    assert set(found.rows) == {plan.id for plan in recipes.load(recipes.locate(name)).stages}


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_every_shipped_recipe_opens_with_its_manners(name: str) -> None:
    path = recipes.locate(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = [line for line in lines if not line.startswith("# yaml-language-server")][:3]
    assert [line.split(":")[0] for line in opening] == ["# What it is for", "# What it needs", "# How to run it"]


@pytest.mark.parametrize("given", ["dpo_qlora", "dpo_qlora.yaml", "recipes/dpo_qlora.yaml", "./recipes/dpo_qlora.yaml"])
def test_a_shipped_recipe_by_name(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.locate(given) == shipped.folder("recipes") / "dpo_qlora.yaml"


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpo_qlora.yaml").write_text(RECIPE)
    assert recipes.locate("dpo_qlora.yaml") == Path("dpo_qlora.yaml")


def places(text: str) -> dict[str, str]:
    read = document.parse(text, "r.yaml")
    return {path: str(read.place([int(p) if p.isdigit() else p for p in path.split(".")])) for path in PATHS}


PATHS = ("a", "a.b", "a.b.1", "a.b.9", "a.none", "merged.x", "none")


def test_places() -> None:
    text = "base: &base {x: 1}\na:\n  b: [1,\n      2]\nmerged:\n  <<: *base\n"
    assert places(text) == {
        "a": "r.yaml:2:1",
        "a.b": "r.yaml:3:3",
        "a.b.1": "r.yaml:4:7",
        "a.b.9": "r.yaml:3:3",  # the deepest that there is
        "a.none": "r.yaml:2:1",
        "merged.x": "r.yaml:5:1",  # it came in by the merge key and has no line of its own
        "none": "r.yaml:1:1",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("4.0e-3", 0.004), ("yes", "yes"), ("no", "no"), ("true", True), ("010", 10), ("~", None)],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = document.parse(f"a: {text}\n", "r.yaml")
    read.set(f"b={text}")
    assert read.data == {"a": value, "b": value}
    assert type(read.data["a"]) is type(value)
