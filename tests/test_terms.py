"""What a stage adds to its trainer's loss counts the same however an update is cut into micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from trl import SFTConfig

import gradient_sums
import models
from align.data import tokens
from align.lab import data
from align.trainers.sft import SftTrainer
from align.trainers.terms import Term

ROWS = data.rows("lab/helpdesk", n=8)
WEIGHT, RATE = 0.3, 1e-2


def penalty(model: nn.Module) -> torch.Tensor:
    """Half the sum of the squares of a matrix: its gradient is the matrix."""
    return model.get_parameter("model.layers.0.mlp.up_proj.weight").square().sum() / 2


def moved(folder: Path, accumulation: int, term: Term | None) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """How far one step of plain gradient descent over eight rows moves the matrix, and what was logged."""
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1, seed=3,
        max_steps=1, learning_rate=RATE, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0,
        per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation, disable_tqdm=True,
        train_sampling_strategy="sequential", gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    model, tokenizer = models.tiny_llama(), models.lab_tokenizer()
    columns = tokens.together(tokens.language_modeling(ROWS, None, tokenizer, args, completion_only=True))
    trainer = SftTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict(columns))
    trainer.terms = [term] if term is not None else []
    before = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach().clone()
    trainer.train()
    return model.get_parameter("model.layers.0.mlp.up_proj.weight").detach() - before, trainer.state.log_history


@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_a_term_weighs_the_same_in_every_number_of_parts(tmp_path: Path, accumulation: int) -> None:
    """SFT divides a sum over all tokens of an update by their number: a term must not be counted once a part."""
    plain, _ = moved(tmp_path, accumulation, None)
    with_it, log = moved(tmp_path, accumulation, Term("weights", penalty, lambda: WEIGHT))
    matrix = models.tiny_llama().get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    assert torch.allclose(with_it - plain, -RATE * WEIGHT * matrix, atol=1e-7)
    assert log[0]["loss/weights"] == pytest.approx(float(matrix.square().sum() / 2), rel=1e-5)


def test_a_term_may_have_nothing_to_add(tmp_path: Path) -> None:
    plain, _ = moved(tmp_path, 2, None)
    same, log = moved(tmp_path, 2, Term("weights", lambda _: None, lambda: WEIGHT))
    assert torch.equal(plain, same) and "loss/weights" not in log[0]


def test_a_term_of_no_weight_is_logged_and_moves_nothing(tmp_path: Path) -> None:
    plain, _ = moved(tmp_path, 2, None)
    same, log = moved(tmp_path, 2, Term("weights", penalty, lambda: 0.0))
    assert torch.equal(plain, same) and log[0]["loss/weights"] > 0


def trainer(folder: str, rows: int, accumulation: int, weight: float | None) -> SftTrainer:
    """One update over eight rows in micro-batches of `rows`, with the penalty or without."""
    args = SFTConfig(
        **gradient_sums.PLAIN, output_dir=folder, per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    model, tokenizer = models.tiny_llama(), models.lab_tokenizer()
    columns = tokens.together(tokens.language_modeling(ROWS, None, tokenizer, args, completion_only=True))
    made = SftTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict(columns))
    made.terms = [] if weight is None else [Term("weights", penalty, lambda: weight)]
    return made


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_of_a_term_is_its_own_times_its_weight(tmp_path: Path, accumulation: int) -> None:
    split = {"folder": str(tmp_path), "rows": 8 // accumulation, "accumulation": accumulation}
    whole = gradient_sums.of_update(trainer(**split, weight=WEIGHT))
    plain = gradient_sums.of_update(trainer(**split, weight=None))
    alone = gradient_sums.of_loss(models.tiny_llama(), penalty)
    assert gradient_sums.difference(whole, plain, [(WEIGHT, alone)]) < 1e-6 < gradient_sums.size(alone)


@pytest.mark.slow
def test_two_processes_step_by_the_gradients_of_one(tmp_path: Path) -> None:
    splits = [{"folder": str(tmp_path), "rows": 4 // parts, "accumulation": parts} for parts in (1, 4)]
    cases = [{**split, "weight": weight} for split in splits for weight in (WEIGHT, None)]
    found = gradient_sums.in_processes("test_terms:trainer", tmp_path, cases)
    alone = gradient_sums.of_loss(models.tiny_llama(), penalty)
    one = gradient_sums.of_update(trainer(str(tmp_path), 8, 1, None))
    for whole, plain in (found[:2], found[2:]):
        assert gradient_sums.difference(plain, one, []) < 1e-6
        assert gradient_sums.difference(whole, plain, [(WEIGHT, alone)]) < 1e-6
