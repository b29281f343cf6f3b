"""What align relies on inside TRL, transformers and accelerate. Each test names the method that moved."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import DPOConfig, DPOTrainer, KTOTrainer, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import add_fused_lm_head

import models
from align.data import tokens
from align.lab import data
from align.stage import program
from align.trainers import dpo, kept_reference, kto, reward
from align.trainers.base import BaseTrainer
from align.trainers.checkpoints import PortableCheckpoints
from align.trainers.dpo import DpoTrainer
from align.trainers.held_out import HeldOut
from align.trainers.kept_reference import KeptReference
from align.trainers.means import Means
from align.trainers.near import NearIncoming
from align.trainers.sft import SftTrainer

SHARED = {
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["self", "args", "kwargs"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "_send_telemetry": ["self"],
}
OF_CHECKPOINTS = {
    "save_model": ["self", "output_dir", "_internal_call"],
    "create_optimizer": ["self", "model"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
OF_DPO = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_set_signature_columns_if_needed": ["self"],
    "_get_train_sampler": ["self", "train_dataset"],
}
OF_MEANS = {
    "compute_loss": SHARED["compute_loss"],
    "log": ["self", "logs", "start_time"],
}
OF_HELD_OUT = {
    "get_eval_dataloader": ["self", "eval_dataset"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "evaluation_loop": [
        *("self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    ],
}
OVERRIDDEN = [
    *((SFTTrainer, name, parameters) for name, parameters in {**SHARED, **OF_CHECKPOINTS}.items()),
    *((DPOTrainer, name, parameters) for name, parameters in {**SHARED, **OF_DPO}.items()),
    *(
        (trainer, name, parameters)
        for trainer in (SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer)
        for name, parameters in {**OF_MEANS, **OF_HELD_OUT}.items()
    ),
]


@pytest.mark.parametrize(
    ("trainer", "name", "parameters"), OVERRIDDEN, ids=[f"{t.__name__}.{n}" for t, n, _ in OVERRIDDEN]
)
def test_an_overridden_method_is_as_it_was(trainer: type, name: str, parameters: list[str]) -> None:
    method = getattr(trainer, name, None)
    assert method is not None, f"{trainer.__name__}.{name} is gone: our override of it is never called"
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"{trainer.__name__}.{name} takes {found} now, it took {parameters}"


def test_we_override_what_we_mean_to_and_nothing_else() -> None:
    """A method of ours whose name TRL comes to use would be called by it."""
    meant = {
        BaseTrainer: set(SHARED),
        PortableCheckpoints: set(OF_CHECKPOINTS),
        SftTrainer: set(),
        NearIncoming: {"compute_loss"},
        KeptReference: set(OF_DPO),
        DpoTrainer: set(),
    }
    meant |= {Means: set(OF_MEANS), HeldOut: set(OF_HELD_OUT), reward.RewardTrainer: {"_prepare_dataset"}}
    every = (SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer)
    for ours, theirs in (
        *((mixed, theirs) for mixed in (Means, HeldOut) for theirs in every),
        (reward.RewardTrainer, RewardTrainer),
        (BaseTrainer, SFTTrainer),
        (BaseTrainer, DPOTrainer),
        (PortableCheckpoints, SFTTrainer),
        (SftTrainer, SFTTrainer),
        (NearIncoming, SFTTrainer),
        (KeptReference, DPOTrainer),
        (KeptReference, KTOTrainer),
        (DpoTrainer, DPOTrainer),
    ):
        own = {name for name, value in vars(ours).items() if inspect.isfunction(value) and not name.startswith("__")}
        clash = {name for name in own if hasattr(theirs, name)}
        assert clash == meant[ours], f"{ours.__name__} and {theirs.__name__} share {sorted(clash ^ meant[ours])}"


CALLED = [
    (_BaseTrainer.__init__, "_send_telemetry"),
    (Trainer.get_train_dataloader, "_get_train_sampler"),
    (Trainer.get_eval_dataloader, "_get_eval_sampler"),
    (Trainer.train, "_load_from_checkpoint"),
    (SFTTrainer._save_checkpoint, "create_model_card"),
    (DPOTrainer._save_checkpoint, "create_model_card"),
    (DPOTrainer.__init__, "_prepare_dataset"),
    (DPOTrainer.__init__, "_precompute_ref_logps"),
    *((Trainer.evaluate, name) for name in ("get_eval_dataloader", "evaluation_loop", "log")),
    (Trainer.evaluation_loop, "prediction_step"),
    *((trainer.log, "_metrics") for trainer in (SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer)),
    *((trainer.compute_loss, "_metrics") for trainer in (SFTTrainer, RewardTrainer)),
    *((trainer._compute_loss, "aux_loss_enabled") for trainer in (DPOTrainer, KTOTrainer)),
    (SFTTrainer.compute_loss, "aux_loss_enabled"),
    *((DPOTrainer._compute_loss, name) for name in ("_metrics", "ld_alpha", "loss_types", "loss_weights")),
    (KTOTrainer._compute_loss, "_compute_kl_logps"),
    (Trainer._run_epoch, "get_batch_samples"),
]


@pytest.mark.parametrize(("caller", "name"), CALLED, ids=[f"{c.__qualname__}-{n}" for c, n in CALLED])
def test_an_overridden_method_is_still_called_from_where_it_was(caller: Callable[..., Any], name: str) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(caller)))
    named = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    assert name in named, f"{caller.__qualname__} no longer uses self.{name}"


def test_the_columns_of_the_reference_have_trls_names() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    for column in dpo.COLUMNS:
        assert f'inputs["{column}"]' in source, f"DPOTrainer._compute_loss no longer reads {column}"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SftTrainer, SFTTrainer.compute_loss),
        (DpoTrainer, DPOTrainer._compute_loss),
        (kto.KtoTrainer, KTOTrainer._compute_loss),
        (reward.RewardTrainer, RewardTrainer.compute_loss),
    ],
    ids=["sft", "dpo", "kto", "reward"],
)
def test_every_figure_that_trl_logs_is_a_mean_over_something(ours: Any, theirs: Callable[..., Any]) -> None:
    """One that it adds would be logged as the mean of the batches' means."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(theirs)))
    found = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "self._metrics[mode]"
        and isinstance(node.slice, ast.Constant)
    }
    no_means = {"num_tokens", "aux_loss", "rewards/margins" if ours is kto.KtoTrainer else None}
    assert found - no_means == set(ours.units)


def test_the_losses_of_the_recipe_are_those_of_trl() -> None:
    program.load("dpo", Path.cwd())
    ours = sys.modules["align.stages.dpo"].LOSSES
    tree = ast.parse(textwrap.dedent(inspect.getsource(DPOTrainer._compute_loss)))
    theirs = [
        node.comparators[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and ast.unparse(node.left) == "loss_type"
        and isinstance(node.comparators[0], ast.Constant)
    ]
    assert len(theirs) > 10, "DPOTrainer._compute_loss no longer compares loss_type"
    assert set(ours) == set(theirs), f"stages/dpo.py LOSSES differs in {sorted(set(ours) ^ set(theirs))}"
    assert len(ours) == len(set(ours))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (SFTConfig, {"completion_only_loss", "dataset_kwargs", "packing", "max_length", "truncation_mode"}),
        (DPOConfig, {"beta", "loss_type", "loss_weights", "label_smoothing", "precompute_ref_log_probs", "max_length"}),
    ],
)
def test_the_arguments_that_the_engine_sets_are_there(config: type, names: set[str]) -> None:
    engine = {"output_dir", "seed", "report_to", "run_name", "disable_tqdm", "use_cpu", "dataloader_pin_memory", "bf16"}
    engine |= {"train_sampling_strategy", "gradient_checkpointing", "ddp_find_unused_parameters", "eval_strategy"}
    gone = (names | engine) - {field.name for field in fields(config)}
    assert not gone, f"{config.__name__} has no {sorted(gone)} any more"


def test_a_fused_head_gives_the_log_probabilities_of_labels() -> None:
    model = models.tiny_llama()
    add_fused_lm_head(model)
    ids = torch.randint(5, 800, (2, 9))
    labels = ids.clone()
    labels[0, :4] = -100
    found = model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert hasattr(found, "log_probs"), "the output of fused_lm_head=True has no log_probs any more"
    logits = model(input_ids=ids).logits.float()
    expected = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
    assert found.log_probs.shape == (2, 8)
    torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-5)


@pytest.fixture
def pairs() -> Dataset:
    args = DPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none")
    return Dataset.from_dict(tokens.together(tokens.preference(models.preferences(8), models.lab_tokenizer(), args)))


def dpo_trainer(kind: type[DPOTrainer], pairs: Dataset, folder: Path, **given: Any) -> DPOTrainer:
    args = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=4,
        max_steps=2,
        precompute_ref_log_probs=True,
        beta=0.3,
    )
    given.setdefault("model", models.tiny_llama())
    return kind(args=args, processing_class=models.lab_tokenizer(), train_dataset=pairs, **given)


def test_constructing_a_trainer_of_trl_calls_what_we_override(pairs: Dataset, tmp_path: Path) -> None:
    called = []

    class Watched(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            called.append("_prepare_dataset")
            return dataset

        def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
            called.append("_precompute_ref_logps")
            return dataset

        def _send_telemetry(self) -> None:
            called.append("_send_telemetry")

    dpo_trainer(Watched, pairs, tmp_path)
    for name in ("_prepare_dataset", "_precompute_ref_logps", "_send_telemetry"):
        assert called.count(name) == 1, f"DPOTrainer.__init__ called {name} {called.count(name)} times, not once"


def test_the_loss_is_against_the_columns_of_the_reference(pairs: Dataset, tmp_path: Path) -> None:
    trainer = dpo_trainer(DpoTrainer, pairs, tmp_path, reference_file=tmp_path / "reference.safetensors")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    policy = kept_reference.answer_log_probs(trainer.model, batch).detach()
    chosen, rejected = policy.chunk(2)
    torch.testing.assert_close(batch["ref_chosen_logps"], chosen, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch["ref_rejected_logps"], rejected, rtol=0, atol=1e-4)
    shift = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for column, sign in zip(dpo.COLUMNS, (1.0, -1.0), strict=True):
        moved = {**batch, column: batch[column] - shift}
        loss = trainer.compute_loss(trainer.model, moved)
        expected = -torch.nn.functional.logsigmoid(0.3 * sign * shift).mean()
        torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-4, msg=f"the loss does not read {column}")


def test_accelerate_deals_whole_batches_in_turn() -> None:
    batches = BatchSampler(SequentialSampler(range(24)), batch_size=3, drop_last=False)
    for processes in (1, 2, 4):
        for rank in range(processes):
            mine = list(BatchSamplerShard(batches, num_processes=processes, process_index=rank))
            expected = [list(range(3 * b, 3 * b + 3)) for b in range(rank, 8, processes)]
            assert mine == expected, "accelerate's BatchSamplerShard deals batches out otherwise"


def test_the_trainer_lets_accelerate_deal_so() -> None:
    defaults = AcceleratorConfig()
    assert (defaults.split_batches, defaults.dispatch_batches, defaults.even_batches) == (False, None, True)


def test_the_trainer_sees_the_rows_of_our_order(tmp_path: Path) -> None:
    """Over two epochs and a half, with two accumulated batches in an update; and `used` names exactly these rows."""
    rows = data.rows("lab/helpdesk", n=22)
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=7,
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="random",
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=False,
    )
    columns = tokens.together(
        tokens.language_modeling(rows, [0] * 16 + [1] * 6, models.lab_tokenizer(), args, completion_only=True)
    )
    trainer = SftTrainer(
        model=models.tiny_llama(),
        args=args,
        processing_class=models.lab_tokenizer(),
        train_dataset=Dataset.from_dict(columns),
    )
    number = {tuple(ids): i for i, ids in enumerate(columns["input_ids"])}
    assert len(number) == 22, "the rows can be told apart"
    seen: list[list[int]] = []
    step = trainer.training_step

    def watched(model: torch.nn.Module, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        ids = [row[mask == 1].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        seen.append([number[tuple(row)] for row in ids])
        return step(model, inputs, *rest)

    trainer.training_step = watched
    order = trainer.row_order()
    trainer.train()
    expected = [i for epoch in range(3) for i in order.rows(epoch)][: 7 * 8]
    assert [i for batch in seen for i in batch] == expected
    assert trainer.row_order().used(2) == set(expected[:16])
    assert {i for batch in seen[:4] for i in batch} == trainer.row_order().used(2)
