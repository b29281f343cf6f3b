"""`training:` against the source of TRL: names, kinds and values, as TRL itself has them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from align import shipped
from align.libraries.trl import known, of_generation
from align.recipe import argument_values, training_arguments
from align.stage import program

CONFIGS = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "RLOOConfig", "GRPOConfig")
ASK_TRL = """\
import dataclasses, json, sys, trl
from transformers.utils.generic import ExplicitEnum
found = {}
for name in sys.argv[1:]:
    fields = {}
    for field in dataclasses.fields(getattr(trl, name)):
        default = None if field.default is dataclasses.MISSING else field.default
        default = default.value if isinstance(default, ExplicitEnum) else default
        choices = field.metadata.get("choices")
        fields[field.name] = [default, sorted(map(str, choices)) if choices else None]
    found[name] = fields
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
enums = (IntervalStrategy, SaveStrategy, SchedulerType, OptimizerNames)
found["enums"] = {enum.__name__: [member.value for member in enum] for enum in enums}
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="session")
def trl() -> dict[str, Any]:
    """What TRL says of its own arguments; importing it takes seconds."""
    done = subprocess.run([sys.executable, "-c", ASK_TRL, *CONFIGS], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_names_defaults_and_choices_are_those_of_trl(config: str, trl: dict[str, Any]) -> None:
    ours, theirs = known(config), trl[config]
    # TRL may hide a field of transformers' from its own config; nothing else may be there that it does not have
    assert set(ours) == set(theirs)
    for name, (default, choices) in theirs.items():
        if ours[name].default is not None:
            assert ours[name].default == default, name
        if choices and ours[name].choices:
            assert sorted(ours[name].choices) == choices, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "enum"),
    [
        ("eval_strategy", "IntervalStrategy"),
        ("save_strategy", "SaveStrategy"),
        ("lr_scheduler_type", "SchedulerType"),
        ("optim", "OptimizerNames"),
    ],
)
def test_values_are_those_of_the_enums(argument: str, enum: str, trl: dict[str, Any]) -> None:
    assert list(known("SFTConfig")[argument].choices) == trl["enums"][enum]


@pytest.mark.parametrize("name", shipped.names("stages"))
def test_the_defaults_of_a_shipped_stage_may_be_set(name: str) -> None:
    declared = program.load(name, shipped.folder("stages")).stage
    for family in declared.defaults.values():
        assert declared.arguments is not None
        assert training_arguments.check(declared.arguments, family, frozenset()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1),  # a whole number is a number
        ("max_length", None),
        ("bf16", None),
        ("warmup_steps", 0.1),
        ("lr_scheduler_type", "cosine"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("optim", "adamw_torch"),
        ("eval_strategy", "no"),
        ("train_sampling_strategy", "random"),
        ("dataloader_multiprocessing_context", None),
        ("debug", ["underflow_overflow"]),
        ("optim_target_modules", ["q_proj"]),
        ("warmup_steps", 1),
        ("save_steps", 100.0),
        ("label_smoothing_factor", 0),
        ("max_steps", -1),  # as it is anyhow
        ("use_cache", False),  # which does nothing, and is as it is anyhow
        ("bf16", True),
    ],
)
def test_right_values(name: str, value: Any) -> None:
    assert training_arguments.check("SFTConfig", {name: value}, frozenset()) == []


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("max_steps", True, "'{key}' must be a whole number, not true"),
        ("max_steps", 1.5, "'{key}' must be a whole number, not 1.5"),
        ("max_steps", None, "'{key}' must be a whole number, not null"),
        ("learning_rate", "1e-4", "'{key}' must be a number, not '1e-4'"),
        ("learning_rate", -1e-4, "'{key}' must be at least 0, not -0.0001"),
        ("learning_rate", float("nan"), "'{key}' must be a finite number, not nan"),
        ("packing", "yes", "'{key}' must be true or false, not 'yes'"),
        ("eval_strategy", False, "'{key}' cannot be false"),
        ("lr_scheduler_kwargs", [1], "'{key}' must be a mapping or null, not a list"),
        ("gradient_accumulation_steps", 0, "'{key}' must be at least 1, not 0"),
        ("save_steps", 1.5, "'{key}' must be a share of all steps below 1, or a whole number, not 1.5"),
        ("label_smoothing_factor", 1.0, "'{key}' must be below 1, not 1.0"),
        ("num_train_epochs", 0, "'{key}' must be above 0, not 0"),
        ("max_steps", 0, "'{key}' must be at least 1, not 0"),
        ("use_cache", True, "the training argument 'use_cache' has no effect here"),
    ],
)
def test_wrong_values(name: str, value: Any, what: str) -> None:
    (fault,) = training_arguments.check("SFTConfig", {name: value}, frozenset())
    assert (fault.name, fault.what) == (name, what)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "what"),
    [
        ("top_p", 1.0, 1.1, "'{key}' must be at most 1, not 1.1"),
        ("temperature", 0.1, 0.0, "'{key}' must be above 0, not 0.0"),
        ("top_k", 0, -1, "'{key}' must be at least 0, not -1"),
    ],
)
def test_bounds_of_sampling(name: str, right: float, wrong: float, what: str) -> None:
    assert training_arguments.check("RLOOConfig", {name: right}, frozenset()) == []
    (fault,) = training_arguments.check("RLOOConfig", {name: wrong}, frozenset())
    assert (fault.name, fault.what) == (name, what)


@pytest.mark.parametrize("value", [[1, 1], [5, -5], [1], [1, 2, 3], [True, 2], "1, 2"])
def test_a_range_is_two_numbers_the_lower_first(value: Any) -> None:
    argument = known("RLOOConfig")["reward_clip_range"]
    fault = argument_values.fault(argument, value)
    assert fault is not None
    assert argument_values.fault(argument, [-5, 5]) is argument_values.fault(argument, None) is None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}, []),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, []),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"num_cycles": 0.5}},
            ["the schedule 'cosine_with_min_lr' needs 'min_lr'"],
        ),
        ({"optim": "rmsprop", "optim_args": "momentum=0.9"}, []),
        (  # not what `rmsprop` takes
            {"optim": "rmsprop_bnb", "optim_args": "momentum=0.9"},
            ["the optimizer 'rmsprop_bnb' takes no `optim_args`"],
        ),
        ({"bf16": True, "fp16": False}, []),
        ({"bf16": True, "fp16": True}, ["`bf16` and `fp16` cannot both be on"]),
    ],
)
def test_what_goes_together(training: dict[str, Any], said: list[str]) -> None:
    assert [fault.what for fault in training_arguments.check("SFTConfig", training, frozenset())] == said


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"no_repeat_ngram_size": 3, "typical_p": 0.9}, None),
        ({"top_p": 0.9}, ("'{key}.top_p' has its own argument", "write `top_p` next to `generation_kwargs`")),
        (
            {"max_new_tokens": 9},
            (
                "'{key}.max_new_tokens' has its own argument",
                "write `max_completion_length` next to `generation_kwargs`",
            ),
        ),
        (
            {"no_repeat_ngram": 3},
            ("unknown key '{key}.no_repeat_ngram'", "did you mean 'no_repeat_ngram_size'?"),
        ),
    ],
)
def test_what_sampling_may_be_told(given: dict[str, Any], fault: tuple[str, str] | None) -> None:
    found = training_arguments.check("GRPOConfig", {"generation_kwargs": given}, frozenset())
    assert [(one.what, one.remedy) for one in found] == ([fault] if fault else [])


@pytest.mark.slow
def test_the_keys_of_generation_are_those_of_transformers() -> None:
    ask = "import json; from transformers import GenerationConfig; print(json.dumps(list(vars(GenerationConfig()))))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    theirs = {name for name in json.loads(done.stdout.splitlines()[-1]) if not name.startswith("_")}
    assert theirs - of_generation() <= {"transformers_version"}


def test_a_name_that_belongs_to_another_stage_is_not_known_here() -> None:
    (fault,) = training_arguments.check("SFTConfig", {"beta": 0.1}, frozenset())
    assert fault.what == "trl.SFTConfig has no argument 'beta'"


def test_a_mistyped_key_of_the_stage_is_recognised() -> None:
    (fault,) = training_arguments.check("SFTConfig", {"completion_only": True}, frozenset({"completion_only_loss"}))
    assert fault.remedy == "did you mean 'completion_only_loss'?"
