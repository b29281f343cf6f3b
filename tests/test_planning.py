"""`align plan`: what is said of a stage before it runs, against what it takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import allocated
import planned
import runs
from align.errors import AlignError
from align.lab import MODEL_DIR
from align.planning import depths, longest, memory, policies, target
from align.planning.questions import ask, lengths_of
from align.planning.records import Traced
from align.planning.trace.stage import trace
from align.preflight.check import prepare
from align.recipe import load as recipes
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity

GB = 2**30
ROOT = Path(__file__).parents[1]
PACKED = {"packing": True, "max_length": 256, "per_device_train_batch_size": 4}


def loaded(folder: Path, stages: dict[str, Any], **more: Any) -> Loaded:
    recipe = folder / "recipe.yaml"
    base = {"name": "small", "model": {"base": "lab"}, "forgetting": {"probes": "none"}, "stages": stages}
    recipe.write_text(json.dumps(base | more), encoding="utf-8")
    return recipes.load(recipe)


def plan_of(folder: Path, **keys: Any) -> StagePlan:
    return loaded(folder, {"sft": {"data": {"source": "lab/helpdesk", "limit": 8}, **keys}}).stages[0]


# The trace ---------------------------------------------------------------------------------------------------------


def off(folder: Path, method: str, program: str, **training: Any) -> tuple[float, Traced]:
    """The share by which a plan is off what the stage allocates."""
    stages, asked = planned.case(folder, MODEL_DIR, method, program, **training)
    found = trace(stages.run.root, asked)
    assert found.failed is None, found.failed
    took = allocated.peak(stages.run, asked.ticket)
    return memory.of_whole(found, asked.layers).peak / took - 1, found


@pytest.mark.parametrize(("method", "program"), [("full", "sft"), ("lora", "dpo")])
def test_a_plan_is_what_is_allocated(tmp_path: Path, method: str, program: str) -> None:
    assert abs(off(tmp_path, method, program)[0]) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("program", ["sft", "reward", "dpo", "kto", "ppo"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "spectrum", "adapter"])
def test_of_every_method_and_stage(tmp_path: Path, method: str, program: str) -> None:
    assert -0.03 < off(tmp_path, method, program)[0] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("training", [{"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
def test_with_what_changes_the_order_of_things(tmp_path: Path, training: dict[str, Any]) -> None:
    assert -0.03 < off(tmp_path, "full", "sft", **training)[0] < 0.05


def test_a_composition_says_what_training_keeps(tmp_path: Path) -> None:
    """float32 weights, as many gradients, twice as much in Adam."""
    stages, asked = planned.case(tmp_path, MODEL_DIR, "full", "sft")
    moments = trace(stages.run.root, asked).moments[4]
    updating = moments["updating"]
    weights = updating["weights"]
    assert weights == pytest.approx(4 * 1_924_800, rel=1e-3)
    assert updating["gradients"] == pytest.approx(weights, rel=1e-3)
    assert updating["optimizer"] == pytest.approx(2 * weights, rel=1e-3)
    most = max(moments.values(), key=lambda parts: sum(parts.values()))
    assert most["logits"] > 0 and most["activations"] > 0


def test_two_depths_tell_a_third(tmp_path: Path) -> None:
    stages, asked = planned.case(tmp_path, MODEL_DIR, "lora", "sft")
    found = trace(stages.run.root, asked.but(depths=(1, 2, 4)))
    two = Traced(stage="one", moments={depth: found.moments[depth] for depth in (1, 2)})
    four = Traced(stage="one", moments={4: found.moments[4]})
    assert memory.of_whole(two, 4).peak == pytest.approx(memory.of_whole(four, 4).peak, rel=1e-3)


def test_a_plan_runs_no_reward_function(tmp_path: Path) -> None:
    """It may cost money, or ask a server."""
    stages, asked = planned.case(tmp_path, MODEL_DIR, "lora", "ppo", max_completion_length=200)
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')\n")
    found = trace(stages.run.root, asked)
    assert found.failed is None
    assert found.moments[4]["sampling"]["key-value cache"] > 0


def test_packs_are_full(tmp_path: Path) -> None:
    found = loaded(tmp_path, {"sft": {"data": {"source": "lab/helpdesk", "limit": 8}, "training": PACKED}})
    prepared = prepare(found)
    base = BaseModelIdentity(name="lab", path=str(MODEL_DIR), identity="planned")
    lengths = lengths_of(found, prepared)
    where = (RunDir(tmp_path / "run"), target.asked("24GB"))
    asked = ask(found, prepared, found.stages[0], policies.handed_on(found.stages, base), *where, lengths)
    rows = prepared.rows["sft"].train
    most = longest.longest(rows, lengths, 1)[1]
    assert asked.ticket.train.count * most >= 3 * 4 * 256


def test_what_cannot_be_traced_says_why(tmp_path: Path) -> None:
    stages, asked = planned.case(tmp_path, MODEL_DIR, "qlora", "sft")
    eight = asked.ticket.parameterization | {
        "quantization": asked.ticket.parameterization["quantization"] | {"bits": 8}
    }
    ticket = asked.ticket.model_copy(update={"parameterization": eight})
    found = trace(stages.run.root, asked.but(ticket=ticket))
    assert found.moments == {} and found.failed == "NotImplementedError: products of 8-bit weights cannot be traced"


# What goes into it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "keys", "expected"),
    [
        ({"num_hidden_layers": 6}, {}, (6,)),
        ({"num_hidden_layers": 32}, {}, (2, 4)),
        ({"text_config": {"num_hidden_layers": 32}}, {}, (2, 4)),
        ({"num_hidden_layers": 26, "layer_types": [*["s"] * 5, "f"] * 4 + ["s", "s"]}, {}, (26,)),
        ({"num_hidden_layers": 24, "layer_types": [*["s"] * 5, "f"] * 4}, {}, (6, 12)),
        ({"num_hidden_layers": 61, "first_k_dense_replace": 3}, {}, (5, 7)),
        ({"num_hidden_layers": 30}, {"spectrum": {"snr_threshold": 0.75}}, (4, 8)),
        ({"num_hidden_layers": 30}, {"spectrum": {"layers_to_finetune": [1, 2]}}, (30,)),
        ({"num_hidden_layers": 30}, {"lora": {"layers_to_transform": [3]}}, (30,)),
    ],
)
def test_the_depths_lie_on_one_line(
    tmp_path: Path, config: dict[str, Any], keys: dict[str, Any], expected: tuple[int, ...]
) -> None:
    method = next(iter(keys), "lora")
    chosen = {
        "method": method,
        **{name: {k: v for k, v in one.items() if "layer" not in k} for name, one in keys.items()},
    }
    plan = plan_of(tmp_path, parameterization=chosen)
    whole = plan.method.Keys.model_validate({"method": method, **keys})
    assert depths.of(StagePlan(**{**vars(plan), "method_keys": whole}), config) == expected


def test_a_config_without_layers_has_no_depth() -> None:
    assert depths.layers({"hidden_size": 8}) is None


def test_the_policy_that_comes_in_is_foreseen(tmp_path: Path) -> None:
    rows = {"source": "lab/helpdesk_preferences", "limit": 8}
    found = loaded(
        tmp_path,
        {
            "one": {"stage": "sft", "data": {"source": "lab/helpdesk", "limit": 8}},
            "two": {"stage": "dpo", "policy": "one", "data": rows},
            "three": {"stage": "dpo", "policy": "two", "data": rows, "parameterization": {"method": "full"}},
        },
        parameterization={"method": "qlora"},
    )
    made = policies.handed_on(found.stages, BaseModelIdentity(name="lab", path="x", identity="x"))
    assert [one.name for one in made["one"].adapters] == ["one"] and made["one"].quantization is not None
    assert len(made["two"].adapters) == 1, "the same adapter, trained further"
    assert (made["three"].adapters, made["three"].weights) == ([], "stages/three/model")


def test_the_longest_batch_is_of_the_longest_rows(tmp_path: Path) -> None:
    texts = ["word " * size for size in (3, 30, 7, 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    found = loaded(tmp_path, {"sft": {"data": "rows.jsonl"}})
    prepared = prepare(found)
    lengths = lengths_of(found, prepared)
    batch, most = longest.longest(prepared.rows["sft"].train, lengths, 2)
    assert [len(one.value["text"].split()) for one in batch] == [30, 20] and most > 30
    mean = longest.mean_tokens(prepared.rows["sft"].train, lengths)
    assert mean is not None and 15 < mean < most


# The device --------------------------------------------------------------------------------------------------------


def test_the_size_of_a_gpu() -> None:
    assert target.asked("24GB").memory == target.asked("24 GiB").memory == target.asked("24").memory == 24 * GB
    assert target.asked("80gb").fits(70 * GB) and not target.asked("80gb").fits(79 * GB)
    for wrong in ("much", "0GB", "-3GB", "24TB"):
        with pytest.raises(AlignError) as refused:
            target.asked(wrong)
        assert refused.value.remedy == "write for example --gpu 24GB"


def test_a_gpu_computes_otherwise() -> None:
    gpu, cpu = target.asked("24GB"), target.Target("cpu", gpu=False, memory=None)
    assert gpu.arguments({}) == {"gradient_checkpointing": True, "bf16": True}
    assert gpu.arguments({"fp16": True}) == {"gradient_checkpointing": True}
    assert cpu.arguments({}) == {} and cpu.fits(1) is None


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a run of it of which the first stage is done."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = runs.write(folder, runs.RECIPE)
    runs.run(recipe, folder / "run", "--only", "sft")
    return recipe, folder / "run"


def said(recipe: Path, run: Path, cache: Path, *more: str) -> dict[str, Any]:
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        done = runs.align("plan", str(recipe), "--run-dir", str(run), "--json", *more)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_plan_of_a_run_that_is_half_done(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    found = said(recipe, run, tmp_path, "--gpu", "1GB")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    sft, dpo = found["stages"]
    assert (sft["action"], sft["why"]) == ("skip", "done already")
    assert (dpo["action"], dpo["why"]) == ("run", "nothing is there yet")
    assert sft["measured_peak_bytes"] > sft["peak_memory_bytes"] > 0, "the process has its libraries too"
    assert [stage["method"] for stage in found["stages"]] == ["trace", "trace"]
    assert (sft["steps"], sft["global_batch"], sft["rows"], dpo["steps"]) == (12, 8, 96, 8)
    assert sft["steps"] == runs.outcome(run, "sft")["steps"]
    assert sum(sft["parts"].values()) == sft["peak_memory_bytes"]
    assert sft["fits"] is True
    inherited = {one["key"]: (one["value"], one["source"]) for one in sft["inherited"]}
    assert inherited["parameterization.method"] == ("qlora", "recipe")
    assert inherited["training.save_total_limit"] == (2, "default")
    assert "training.max_steps" not in inherited

    weights = next((run / "stages/sft/model").glob("*.safetensors"))
    held = weights.read_bytes()
    weights.write_bytes(held[:-1])
    sft = said(recipe, run, tmp_path, "--gpu", "1GB")["stages"][0]
    assert (sft["action"], sft["why"]) == ("run", f"a file of its result is missing or cut, model/{weights.name}")
    weights.write_bytes(held)

    changed = said(recipe, run, tmp_path, "--gpu", "1GB", "--set", "stages.sft.training.learning_rate=2.0e-3")
    sft, dpo = changed["stages"]
    assert sft["action"] == "run" and sft["why"].startswith("its recipe changed")
    assert sft["peak_memory_bytes"] == found["stages"][0]["peak_memory_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--gpu", "24GB")])
@pytest.mark.parametrize("name", ["dpo_and_rlhf", "rlhf_full", "grpo_lora", "rloo_lora", "kto_lora"])
def test_shipped_recipes_are_traced(tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    found = said(ROOT / "recipes" / f"{name}.yaml", tmp_path / "run", tmp_path, *more)
    assert {stage["id"]: stage["not_traced"] for stage in found["stages"] if stage["method"] != "trace"} == {}


def test_a_second_plan_is_kept(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, run = finished
    first = said(recipe, run, tmp_path)
    kept = list((tmp_path / "align" / "plans").glob("*.json"))
    assert len(kept) == 2
    for path in kept:  # what is read again is what is said
        value = json.loads(path.read_text())
        for moments in value["moments"].values():
            for parts in moments.values():
                parts["weights"] = 10**12
        path.write_text(json.dumps(value))
    second = said(recipe, run, tmp_path)
    assert second["stages"][0]["parts"]["weights"] == 10**12 > first["stages"][0]["parts"]["weights"]


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = runs.write(tmp_path, runs.RECIPE.replace("method: qlora", "method: lora"))
    one = ("--set", "stages.sft.training.gradient_checkpointing=false", "--gpu", "0.57")
    said = " ".join(runs.align("plan", str(recipe), "--run-dir", str(tmp_path / "run"), *one).stdout.split())
    assert "sft: does not fit" in said and "dpo: does not fit" in said
    assert "--set 'stages.sft.training.gradient_checkpointing=true': " in said
    assert "--set 'stages.sft.training.per_device_train_batch_size=4' " in said
    assert "--set 'stages.sft.training.gradient_accumulation_steps=2': " in said


def test_a_formula_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = runs.RECIPE.replace("{method: qlora}", "{method: qlora, quantization: {bits: 8}}")
    recipe = runs.write(tmp_path, text)
    found = json.loads(runs.align("plan", str(recipe), "--run-dir", str(tmp_path / "run"), "--json").stdout)
    for stage in found["stages"]:
        assert stage["method"] == "formula" and stage["peak_memory_bytes"] > 0
        assert "8-bit" in stage["not_traced"]


def test_a_bad_size_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = runs.align("plan", str(tmp_path / "none.yaml"), "--gpu", "big", code=2)
    assert "--gpu big: this is no amount of memory" in " ".join(done.stderr.split())
