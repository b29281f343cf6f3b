"""What `check` says of training arguments that stop no run, and the arguments that a stage really gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.libraries.trl import known
from align.preflight.check import prepare
from align.recipe import load, other_tools, run_length, verdicts
from align.recipe import plan as recipe_plan

CHATS = [
    {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"{n + 1}"}]}
    for n in range(24)
]
PAIRS = [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": f"{n}"} for n in range(24)]
HEAD = "name: x\nmodel: {base: lab, dtype: float32}\nparameterization: {method: lora}\nforgetting: {probes: none}\n"


def loaded(folder: Path, stage: str, training: dict[str, Any], **keys: Any) -> recipe_plan.Loaded:
    """A recipe of one stage on 24 rows."""
    name = "pairs" if stage in ("dpo", "kto", "reward") else "chats"
    rows = PAIRS if name == "pairs" else CHATS
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if stage in ("ppo", "rloo", "grpo"):
        (folder / "judge.py").write_text("def short(completions):\n    return [1.0 for _ in completions]\n")
        keys["reward"] = "judge.py:short"
    entry = {"data": f"{name}.jsonl", "training": training, **keys}
    (folder / "recipe.yaml").write_text(f"{HEAD}stages: {json.dumps({stage: entry})}\n")
    return load.load(folder / "recipe.yaml")


def notes(folder: Path, stage: str, training: dict[str, Any], **keys: Any) -> list[str]:
    """All but what is said of the rows."""
    return [note for note in prepare(loaded(folder, stage, training, **keys)).notes if "memorise" not in note]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("{probes: lab, items: 40}", ["`items` does nothing: it is for the probes of `general`"]),
        (
            "{probes: general, items: 40, budget: 0.2, on_budget: stop}",
            [
                "`budget` does nothing: it chooses the number of items of `general` with `items: auto`",
                "`on_budget: stop` does nothing: there are no `budgets`",
            ],
        ),
        ("{probes: general, budget: 0.2, budgets: {wall_time: 2h}, on_budget: stop}", []),
        ("{probes: {general: true, law: {data: a.jsonl, metric: exact}}, items: 40, budget: 0.1}", []),
    ],
)
def test_keys_of_forgetting_with_nothing_to_act_on_are_noted(tmp_path: Path, keys: str, said: list[str]) -> None:
    head = HEAD.replace("{probes: none}", keys)
    (tmp_path / "recipe.yaml").write_text(f"{head}stages: {{sft: {{data: lab/helpdesk}}}}\n")
    assert load.load(tmp_path / "recipe.yaml").warnings == [f"forgetting: {text}" for text in said]


@pytest.mark.parametrize(
    ("stage", "training", "steps", "share"),
    [
        ("sft", {"warmup_steps": 50, "max_steps": 3}, 3, 4),
        ("dpo", {"warmup_steps": 6, "num_train_epochs": 2}, 6, 83),  # 24 rows in batches of 8, twice
        ("kto", {"warmup_steps": 10, "num_train_epochs": 1}, 6, 50),  # both answers of a pair
        ("rloo", {"warmup_steps": 10, "num_train_epochs": 1}, 8, 70),  # two rollouts of 16 prompts, each four passes
    ],
)
def test_a_warm_up_that_is_longer_than_the_run_is_noted(
    tmp_path: Path, stage: str, training: dict[str, Any], steps: int, share: int
) -> None:
    wanted = training["warmup_steps"]
    text = f"stage {stage}: the warm-up takes {wanted} steps but the run has {steps}, so the learning rate reaches"
    assert notes(tmp_path, stage, training) == [f"{text} {share} % of the requested value: lower warmup_steps"]


def test_a_warm_up_that_ends_with_the_run_is_noted_and_a_shorter_one_is_not(tmp_path: Path) -> None:
    (said,) = notes(tmp_path, "sft", {"warmup_steps": 3, "max_steps": 3})
    assert said.endswith("the run has 3, so the learning rate reaches 67 % of the requested value: lower warmup_steps")
    assert notes(tmp_path, "sft", {"warmup_steps": 2, "max_steps": 3}) == []
    assert notes(tmp_path, "sft", {"warmup_steps": 3, "max_steps": 1}) == [], "one step in all has no warm-up"


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"max_steps": 3, "num_train_epochs": 2}, "`num_train_epochs` has no effect with `max_steps: 3`"),
        ({"save_strategy": "no", "save_steps": 100}, "`save_steps` has no effect with `save_strategy: no`"),
        ({"save_strategy": "no", "save_total_limit": 5}, "`save_total_limit` has no effect with `save_strategy: no`"),
        ({"logging_strategy": "no", "logging_steps": 1}, "`logging_steps` has no effect with `logging_strategy: no`"),
    ],
)
def test_what_is_passed_over_is_noted(tmp_path: Path, training: dict[str, Any], said: str) -> None:
    assert notes(tmp_path, "sft", training) == [f"stage sft: {said}"]


@pytest.mark.parametrize("stage", ["ppo", "rloo", "grpo"])
def test_a_ratio_that_is_always_1_is_noted(tmp_path: Path, stage: str) -> None:
    once = {"epsilon": 0.1, "steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 1}
    said = f"stage {stage}: `epsilon` has no effect: a rollout has only one update, made by the policy that sampled it"
    assert notes(tmp_path, stage, once) == [said]
    assert notes(tmp_path, stage, once | {"num_iterations": 2}) == []


def test_an_evaluation_after_the_end_is_noted(tmp_path: Path) -> None:
    (found,) = notes(tmp_path, "sft", {"eval_steps": 500, "max_steps": 3}, eval_data=0.2)
    assert (
        found == "stage sft: `eval_steps: 500` is more than the 3 steps of the run: held-out rows are never evaluated"
    )


def test_an_evaluation_at_the_end_is_none_after_it(tmp_path: Path) -> None:
    assert notes(tmp_path, "sft", {"eval_steps": 3, "max_steps": 3}, eval_data=0.2) == []


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward", "ppo", "rloo", "grpo"])
def test_nothing_is_said_of_the_defaults(tmp_path: Path, stage: str) -> None:
    assert notes(tmp_path, stage, {"num_train_epochs": 1}) == []
    assert notes(tmp_path, stage, {"max_steps": 100}) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_more_processes_make_fewer_steps(tmp_path: Path, processes: int) -> None:
    (plan,) = loaded(tmp_path, "sft", {"num_train_epochs": 3, "per_device_train_batch_size": 4}).stages
    assert run_length.steps(plan, 24, processes) == 18 // processes


def test_a_batch_that_is_not_full_is_a_step(tmp_path: Path) -> None:
    (plan,) = loaded(tmp_path, "sft", {"num_train_epochs": 1, "per_device_train_batch_size": 5}).stages
    assert run_length.steps(plan, 24, 1) == 5
    (plan,) = loaded(tmp_path, "sft", {"num_train_epochs": 0.1, "per_device_train_batch_size": 24}).stages
    assert run_length.steps(plan, 24, 1) == 1


def test_the_length_of_a_run_of_packed_rows_is_not_known(tmp_path: Path) -> None:
    (plan,) = loaded(tmp_path, "sft", {"packing": True}).stages
    assert run_length.steps(plan, 24, 1) is None


def test_a_default_that_would_do_nothing_is_left_out(tmp_path: Path) -> None:
    """The recipe that a run writes down holds no warm-up that its schedule has not, and can be read again."""
    (plan,) = loaded(tmp_path, "sft", {"lr_scheduler_type": "constant", "save_strategy": "no"}).stages
    assert {"warmup_steps", "save_steps", "save_total_limit"} & set(plan.training) == set()
    (plan,) = loaded(tmp_path, "sft", {}).stages
    assert {"warmup_steps", "save_steps", "save_total_limit"} <= set(plan.training)
    (plan,) = loaded(tmp_path, "sft", {"save_strategy": "no", "save_steps": 100}).stages
    assert plan.training["save_steps"] == 100, "what the recipe says stands in what is written down"


@pytest.mark.parametrize("stage", ["ppo", "rloo", "grpo"])
def test_a_warm_up_acts_in_the_stages_that_sample_answers(tmp_path: Path, stage: str) -> None:
    (plan,) = loaded(tmp_path, stage, {"warmup_steps": 2, "max_steps": 8}).stages
    assert plan.training["lr_scheduler_type"] == "constant_with_warmup"


# ---- names of other tools --------------------------------------------------------------------------------------------


def test_a_name_of_another_tool_is_none_of_ours() -> None:
    keys = {"base", "revision", "dtype", "data", "eval_data", "reward", "beta", "loss_type", "name", "seed"}
    ours = {*keys, *known("SFTConfig"), *known("GRPOConfig")} - set(verdicts.ENGINE)
    assert sorted(set(other_tools._OURS) & ours) == []


@pytest.mark.parametrize("place", sorted(set(other_tools._OURS.values())))
def test_a_place_is_one_of_a_recipe(place: str, tmp_path: Path) -> None:
    head, _, own = place.partition(".")
    if head == "training":
        assert own in verdicts.ACTS
    else:
        schema = json.loads((Path(__file__).parents[1] / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
        assert head in schema["properties"] or head in schema["$defs"]["stage"]["properties"]
        assert own.rpartition(".")[2] in json.dumps(schema)


@pytest.mark.parametrize(
    ("name", "at", "said"),
    [
        ("lr", (), "write it as `stages.sft.training.learning_rate`"),
        ("lr", ("stages", "a", "training"), "write `learning_rate`"),
        ("LR", ("stages", "a"), "write it as `stages.a.training.learning_rate`"),
        ("lora_r", ("stages", "a", "training"), "write it as `parameterization.lora.r`"),
        ("lora_r", ("stages", "a", "parameterization", "lora"), "write `r`"),
        ("lora_r", ("stages", "a", "parameterization"), "write it as `stages.a.parameterization.lora.r`"),
        ("lora_r", ("parameterization",), "write it as `parameterization.lora.r`"),
        ("lora_r", ("parameterization", "lora"), "write `r`"),
        ("max_samples", ("stages", "a", "data"), "write `limit`"),
        (
            "warmup_ratio",
            ("stages", "a", "training"),
            "write `warmup_steps`, where a number below 1 is a share of all steps",
        ),
        ("load_in_4bit", ("model",), "write it as `parameterization.method`, with the value `qlora`"),
        ("whatever", (), ""),
    ],
)
def test_the_place_of_a_name_of_another_tool(name: str, at: tuple[str, ...], said: str) -> None:
    assert other_tools.remedy(name, at, "sft") == said


@pytest.mark.parametrize(
    ("name", "keys", "known"),
    [
        ("lr", {"training.learning_rate"}, True),
        ("lr", {"data", "training.beta"}, False),
        ("kl_coef", {"kl", "data"}, True),  # whose place is `kl.coef`
        ("kl_coef", {"data"}, False),
        ("LORA_R", set(), True),  # of the recipe itself
        ("whatever", {"data"}, False),
    ],
)
def test_a_name_is_known_where_a_stage_has_a_place_for_it(name: str, keys: set[str], known: bool) -> None:
    assert other_tools.is_known(name, keys) == known
