"""Every training argument of TRL's configs has a verdict, and the page that shows them is as it should be."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from itertools import chain
from pathlib import Path

import pytest

import arguments_page
from align.libraries import fields
from align.libraries.trl import known
from align.recipe import argument_values, optimization, verdicts

STAGES = arguments_page.stages()
CONFIGS = sorted({stage.arguments for stage in STAGES.values() if stage.arguments})
DATA = {
    "ACTS": verdicts.ACTS,
    "BESIDE": verdicts.BESIDE,
    "NOTED": verdicts.NOTED,
    "ALSO": verdicts.ALSO,
    "NEED_A_GPU": verdicts.NEED_A_GPU,
    "ENGINE": verdicts.ENGINE,
    "RENAMED": verdicts.RENAMED,
    "ONLINE": verdicts.ONLINE,
}
REFUSED = {*verdicts.ENGINE, *verdicts.RENAMED}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_argument_of_trl_has_a_verdict(config: str) -> None:
    """What TRL or transformers comes to have is looked at: does it act, beside what, or is it refused?"""
    elsewhere = {*REFUSED, *verdicts.NOTHING[config], *chain(*(s.reserved for s in STAGES.values()))}
    elsewhere |= {name for stage in STAGES.values() for name in stage.keys.model_fields}
    assert sorted(set(known(config)) - verdicts.ACTS - elsewhere) == []


@pytest.mark.parametrize("name", DATA)
def test_no_verdict_is_on_an_argument_that_is_gone(name: str) -> None:
    assert sorted(set(DATA[name]) - {*chain(*map(known, CONFIGS))}) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_what_does_nothing_is_there_in_some_config(config: str) -> None:
    assert sorted(set(verdicts.NOTHING[config]) - {*chain(*map(known, CONFIGS))}) == []


def test_an_argument_has_one_verdict() -> None:
    assert sorted(verdicts.ACTS & REFUSED) == []
    everywhere = set.intersection(*(set(found) for found in verdicts.NOTHING.values()))
    assert sorted(verdicts.ACTS & everywhere) == []
    assert set(verdicts.BESIDE) | set(verdicts.NOTED) <= verdicts.ACTS
    assert {name for found in verdicts.NOTHING.values() for name in found} - everywhere <= verdicts.ACTS


def test_what_an_argument_needs_is_an_argument_or_a_key() -> None:
    keys = {name for stage in STAGES.values() for name in stage.keys.model_fields}
    wanted = {other for beside in (*verdicts.BESIDE.values(), *verdicts.NOTED.values()) for other in beside}
    assert sorted(wanted - keys - {*chain(*map(known, CONFIGS))}) == []


def test_the_page_is_this_one() -> None:
    page = Path(__file__).parents[1] / "docs" / "training_arguments.md"
    told = "python tests/arguments_page.py > docs/training_arguments.md"
    assert page.read_text(encoding="utf-8") == arguments_page.page(), told


# ---- against the source of TRL and transformers ----------------------------------------------------------------------

TRL, TRANSFORMERS = fields.folder("trl"), fields.folder("transformers")
ALIGN = fields.folder("align")
OWN = {  # what reads `args` in a stage, besides what all trainers have
    "sft": ["trainers/sft.py", "data/tokens.py"],
    "dpo": ["trainers/dpo.py", "data/tokens.py"],
    "kto": ["trainers/kto.py", "data/tokens.py"],
    "reward": ["trainers/reward.py"],
    "ppo": ["trainers/ppo.py", "trainers/online.py", "trainers/rollout_record.py"],
    "rloo": ["trainers/critic_free.py", "trainers/online.py", "trainers/rollout_record.py"],
    "grpo": ["trainers/critic_free.py", "trainers/online.py", "trainers/rollout_record.py"],
    "sdft": ["trainers/sdft.py", "trainers/rollout_record.py"],
}
SHARED = ["trainer.py", "trainer_callback.py", "trainer_optimizer.py", "training_args.py"]


@lru_cache
def reads(stage: str) -> set[str]:
    """The names that the code of a stage's trainer reads of its `args`, by whatever name it has them."""
    config = STAGES[stage].arguments
    assert config is not None
    name = config.removesuffix("Config").lower()
    places = (TRL / "trainer", TRL / "experimental" / name)
    trainer = next(place / f"{name}_trainer.py" for place in places if (place / f"{name}_trainer.py").is_file())
    shared = [TRL / "experimental" / "utils.py"] if trainer.parent == places[1] else []
    files = [trainer, *shared, *(TRANSFORMERS / name for name in SHARED), *(ALIGN / name for name in OWN[stage])]
    files += [ALIGN / "stage" / "job.py", ALIGN / "trainers" / "base.py"]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            read = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            if read and re.search(r"\b(args|self)$", ast.unparse(node.value)):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_what_acts_is_read_by_the_trainer(stage: str) -> None:
    """Nothing is taken that no line of the trainer looks at."""
    acting = [name for name, found in arguments_page.table().items() if getattr(found.get(stage), "kind", "") == "acts"]
    unread = [name for name in acting if name not in reads(stage)]
    assert unread == []


def test_padding_free_still_does_nothing_in_dpo() -> None:
    source = (TRL / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8")
    assert "self.padding_free = False" in source


@pytest.mark.parametrize("stage", ["dpo", "kto", "reward", "rloo", "grpo"])
def test_no_labels_are_smoothed_outside_sft(stage: str) -> None:
    """transformers makes a smoother; a trainer with a loss of its own does not ask it."""
    source = (TRL / "trainer" / f"{stage}_trainer.py").read_text(encoding="utf-8")
    assert "label_smoother" not in source


def _function(file: Path, name: str) -> ast.FunctionDef:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)


SCHEDULES = {
    "cosine": "get_cosine_schedule_with_warmup",
    "cosine_with_restarts": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "polynomial": "get_polynomial_decay_schedule_with_warmup",
    "inverse_sqrt": "get_inverse_sqrt_schedule",
    "cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
    "cosine_warmup_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "warmup_stable_decay": "get_wsd_schedule",
}
GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}  # by the trainer


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_what_transformers_says(name: str) -> None:
    made = _function(TRANSFORMERS / "optimization.py", SCHEDULES[name])
    assert set(optimization.SCHEDULES[name]) == {argument.arg for argument in made.args.args} - GIVEN


def test_no_schedule_is_left_out() -> None:
    choices = argument_values.choices(known("SFTConfig")["lr_scheduler_type"])
    assert set(choices) == {*optimization.SCHEDULES, "linear", "constant", "constant_with_warmup"}


OPTIMIZERS = {
    "sgd": "_get_sgd",
    "adagrad": "_get_adagrad",
    "rmsprop": "_get_rmsprop",
    "ademamix": "_get_bitsandbytes_optimizer",
    "galore_": "_get_galore_optimizer",
    "apollo_": "_get_apollo_optimizer",
    "grokadamw": "_get_grokadamw",
    "adamw_torch_4bit": "_get_torchao_optimizer",
    "schedule_free_": "_get_schedule_free_optimizer",
    "stable_adamw": "_get_stable_adamw",
    "adamw_anyprecision": "_get_adamw_anyprecision",
}
UNFIT = {"weight_decay", "block_size"}  # overruled by the argument of that name; handed on as text


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_reads_what_transformers_says(name: str) -> None:
    made = ast.unparse(_function(TRANSFORMERS / "trainer_optimizer.py", OPTIMIZERS[name]))
    read = set(re.findall(r"optim_args\.(?:get|pop)\('(\w+)'", made)) | set(re.findall(r"'(\w+)' in ctx\.optim_", made))
    for listed in re.findall(r"for key in \(([^)]+)\)", made):
        read |= set(re.findall(r"'(\w+)'", listed))
    assert set(optimization.OPTIM_ARGS[name]) == read - UNFIT


def test_the_other_optimizers_read_nothing() -> None:
    made = [
        node
        for node in ast.parse((TRANSFORMERS / "trainer_optimizer.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "ctx.optim_args" in ast.unparse(node)
    ]
    assert {node.name for node in made} == set(OPTIMIZERS.values())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("trainer/grpo_config.py", "importance_sampling_level"),
        ("trainer/grpo_config.py", "multi_objective_aggregation"),
        ("trainer/grpo_config.py", "scale_rewards"),
        ("trainer/grpo_config.py", "loss_type"),
        ("trainer/grpo_config.py", "vllm_importance_sampling_mode"),
        ("trainer/grpo_config.py", "vllm_mode"),
        ("trainer/dpo_config.py", "f_divergence_type"),
    ],
)
def test_values_that_trl_names_in_its_help_are_those(file: str, name: str) -> None:
    config = "GRPOConfig" if "grpo" in file else "DPOConfig"
    argument = known(config)[name]
    assert argument.default in argument_values.choices(argument, config)
    told = set(re.findall(r"[`']'?(\w+)'?[`']", argument.help))
    assert set(argument_values.choices(argument, config)) <= told


def test_caches_are_those_of_transformers() -> None:
    source = (TRANSFORMERS / "generation" / "configuration_utils.py").read_text(encoding="utf-8")
    theirs = set(re.findall(r'"(\w+)"', "".join(re.findall(r"^(?:STATIC|DYNAMIC)_CACHE_IMPLEM.*$", source, re.M))))
    ours = argument_values.choices(known("GRPOConfig")["cache_implementation"])
    assert set(ours) == theirs - {"quantized"}  # which needs a package for itself
