"""What PPO and its kin rely on inside TRL's online trainers. Each test names the method that moved."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import Trainer
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import utils as trl_utils
from trl.trainer.utils import add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

from align.errors import AlignError
from align.run_folder.paths import RunDir
from align.trainers.base import BaseTrainer
from align.trainers.minibatches import Minibatches
from align.trainers.online import Online, fitting_tiles
from align.trainers.ppo import PpoTrainer
from align.trainers.rollout_checkpoints import RolloutCheckpoints
from align.trainers.rollout_record import RolloutRecord
from models import BASE, LORA, Stages
from test_ppo import function, ppo
from test_rl_passes import tiny_llama

LOG_PROBS = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
OF_CHECKPOINTS = {
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
OF_RECORD = {
    "_get_train_sampler": ["self"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
}
OF_ONLINE = {
    "_generate_single_turn": ["self", "prompt_ids"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_get_per_token_logps_and_entropies": [*LOG_PROBS, "compute_aux_loss"],
    "_generate_and_score_completions": ["self", "inputs"],
}
OF_PPO = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_clip_grad_norm": ["self", "model"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "create_optimizer": ["self", "model"],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
}
OF_MINIBATCHES = {
    "_get_per_token_logps_and_entropies": LOG_PROBS,
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
}
OURS = {**OF_MINIBATCHES, **OF_CHECKPOINTS, **OF_RECORD, **OF_ONLINE, **OF_PPO}
OVERRIDDEN = [(RLOOTrainer, name, start) for name, start in OURS.items()]


@pytest.mark.parametrize(("trainer", "name", "start"), OVERRIDDEN, ids=[f"{t.__name__}.{n}" for t, n, _ in OVERRIDDEN])
def test_an_overridden_method_is_as_it_was(trainer: type, name: str, start: list[str]) -> None:
    method = getattr(trainer, name, None)
    assert method is not None, f"{trainer.__name__}.{name} is gone: our override of it is never called"
    found = list(inspect.signature(method).parameters)
    assert found[: len(start)] == start, f"{trainer.__name__}.{name} takes {found} now; it began with {start}"


def test_we_override_what_we_mean_to_and_nothing_else() -> None:
    every = (
        (Minibatches, OF_MINIBATCHES),
        (RolloutCheckpoints, OF_CHECKPOINTS),
        (RolloutRecord, OF_RECORD),
        (Online, OF_ONLINE),
        (PpoTrainer, OF_PPO),
    )
    for ours, theirs, meant in ((ours, RLOOTrainer, meant) for ours, meant in every):
        own = {name for name, value in vars(ours).items() if inspect.isfunction(value) and not name.startswith("__")}
        clash = {name for name in own if hasattr(theirs, name) or hasattr(BaseTrainer, name)}
        unmeant = clash - set(meant) - {"progress", "restore"}
        assert not unmeant, f"{ours.__name__} and {theirs.__name__} share {sorted(unmeant)}"
        assert set(meant) <= clash, f"{theirs.__name__} has no {sorted(set(meant) - clash)} any more"


CALLED = [
    (RLOOTrainer._generate, "_generate_single_turn"),
    (RLOOTrainer._generate_and_score_completions, "_generate"),
    (RLOOTrainer._generate_and_score_completions, "_calculate_rewards"),
    (RLOOTrainer._generate_and_score_completions, "_get_per_token_logps_and_entropies"),
    (RLOOTrainer._prepare_inputs, "_generate_and_score_completions"),
    (RLOOTrainer._prepare_inputs, "_buffered_inputs"),
    (RLOOTrainer._prepare_inputs, "_step"),
    (RLOOTrainer.compute_loss, "_compute_loss"),
    (RLOOTrainer.get_train_dataloader, "_get_train_sampler"),
    (RLOOTrainer.training_step, "_step"),
    (Trainer._run_epoch, "_clip_grad_norm"),
    (Trainer._prepare_for_training, "_load_optimizer_and_scheduler"),
    (Trainer._save_checkpoint, "save_model"),
]


@pytest.mark.parametrize(("caller", "name"), CALLED, ids=[f"{c.__qualname__}-{n}" for c, n in CALLED])
def test_what_is_overridden_or_read_is_still_used_where_it_was(caller: Callable[..., Any], name: str) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(caller)))
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    assert name in used, f"{caller.__qualname__} no longer uses self.{name}"


def test_the_reference_that_trl_would_make_needs_what_we_stand_in_for() -> None:
    """`without_reference` answers these two calls; another way of making one would go past it."""
    source = inspect.getsource(RLOOTrainer.__init__)
    for call in ('model.add_adapter("ref", default_config)', "model.get_parameter(ref_name)"):
        assert call in source, f"RLOOTrainer.__init__ no longer calls {call}"


def test_the_rollouts_tensors_have_trls_names() -> None:
    source = inspect.getsource(RLOOTrainer._generate_and_score_completions)
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logps", "advantages"):
        assert f'"{name}":' in source, f"the rollout of RLOOTrainer has no {name} any more"


def test_the_old_log_probabilities_come_minibatch_by_minibatch() -> None:
    """The call that has a `batch_size` is the one without a gradient, over a whole rollout."""
    source = inspect.getsource(RLOOTrainer._generate_and_score_completions)
    assert "batch_size = self.args.per_device_train_batch_size" in source
    assert "batch_size" not in inspect.getsource(RLOOTrainer._compute_loss)


def test_the_head_reads_the_width_of_its_tiles_at_each_call() -> None:
    """`fitting_tiles` sets it."""
    asked: list[int] = []
    model = tiny_llama()
    add_fused_lm_head(model)
    own = trl_utils._ChunkedLogProbFunction.apply

    def apply(*arguments: Any) -> Any:
        asked.append(arguments[5])
        return own(*arguments)

    ids = torch.ones(1, 3, dtype=torch.long)
    with mock.patch.object(trl_utils._ChunkedLogProbFunction, "apply", apply):
        with fitting_tiles(model):
            model(input_ids=ids, labels=ids, fused_lm_head=True)
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert asked == [model.config.vocab_size, 32768]


def test_a_rollout_is_shuffled_and_dealt_out_with_what_we_add() -> None:
    """Rows stay together, and a number that is no row's goes to every part."""
    rows = {"ids": torch.arange(8).view(8, 1), "mask": torch.arange(8).view(8, 1) * 10, "tokens": torch.tensor(3.5)}
    shuffled = shuffle_sequence_dict(dict(rows))
    assert torch.equal(shuffled["ids"] * 10, shuffled["mask"]) and sorted(shuffled["ids"].flatten().tolist()) == [
        *range(8)
    ]
    parts = split_tensor_dict(shuffled, 4)
    assert [len(part["ids"]) for part in parts] == [2] * 4
    assert all(part["tokens"] == 3.5 for part in parts)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            RLOOConfig,
            {
                "num_generations",
                "num_iterations",
                "steps_per_generation",
                "max_completion_length",
                "temperature",
                "beta",
            }
            | {"reward_weights", "reward_clip_range", "disable_dropout", "generation_batch_size", "epsilon_high"},
        ),
        (RewardConfig, {"center_rewards_coefficient", "max_length", "disable_dropout"}),
    ],
)
def test_the_arguments_that_we_set_or_read_are_there(config: type, names: set[str]) -> None:
    gone = names - {field.name for field in fields(config)}
    assert not gone, f"{config.__name__} has no {sorted(gone)} any more"


def test_the_reward_trainer_asks_for_its_rows_where_it_did() -> None:
    assert "_prepare_dataset" in inspect.getsource(RewardTrainer.__init__)
    source = inspect.getsource(RewardTrainer.compute_loss)
    assert "chunks=2" in source and '"margin" in inputs' in source


@pytest.mark.parametrize("moved", ["_get_per_token_logps_and_entropies", "_calculate_rewards"])
def test_a_rollout_that_makes_other_calls_is_refused(tmp_path: Path, moved: str) -> None:
    """As if a new TRL made the call twice."""
    own = getattr(RLOOTrainer, moved)
    ticket = ppo(stages := Stages(RunDir(tmp_path)), BASE, LORA, function("short"))

    def twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        if moved == "_calculate_rewards":
            self.seen.rewards.append(torch.zeros(1))
        else:
            self.seen.log_probs.append(torch.zeros(1))
        return own(self, *args, **kwargs)

    with (
        mock.patch.object(RLOOTrainer, moved, twice),
        pytest.raises(AlignError, match=r"trl 1\.\S+ no longer makes one"),
    ):
        stages.execute(ticket)
