"""Losses and figures of held-out rows: those of a computation by hand, in batches of any size, by any number of
processes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import LlamaForSequenceClassification
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

import models
import runs
from align.data import tokens
from align.lab import data
from align.trainers.dpo import DpoTrainer
from align.trainers.held_out import batches_of
from align.trainers.kto import KtoTrainer, other_answers
from align.trainers.means import GREATEST, Tally
from align.trainers.reward import RewardTrainer
from align.trainers.sft import SftTrainer

SIZES = (1, 2, 8, 16)  # of 21 rows, so that the last batch of all but the first is short
HELD = 21
Rows = dict[str, list[Any]]


def common(folder: Path, size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": size,
        "max_steps": 1,
        "disable_tqdm": True,
    }


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """Another model of the same shape, in the same module: what training would make of the one that came in."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def logits(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].double()
    return found


def of_tokens(model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of an answer's tokens, by themselves, without padding."""
    each = logits(model, [*prompt, *answer]).log_softmax(-1)
    return each.gather(-1, torch.tensor([*prompt, *answer][1:])[:, None])[-len(answer) :, 0]


def assert_alike(found: Sequence[dict[str, float]], expected: dict[str, float]) -> None:
    """Every batch size gives the expected figures, to 1e-6 of their size; log ratios, as differences of sums of 100
    nats in float32, to 5e-6."""
    for size, metrics in zip(SIZES, found, strict=True):
        for name, value in expected.items():
            ratio = name == "kl" or name.startswith("rewards/")
            near = pytest.approx(value, rel=1e-6, abs=5e-6 if ratio else 1e-9)
            assert metrics[f"eval_{name}"] == near, (size, name)


# sft


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_the_loss_of_sft_is_the_mean_over_trained_tokens(tmp_path: Path, loss: str) -> None:
    """Short and long answers in one set: 20 of one word, and one of many."""
    rows = [talk(f"Is pier {n} open?", "Yes." if n % 2 else "No.") for n in range(HELD - 1)]
    rows.insert(9, talk("Tell me about the piers.", " ".join(f"Pier {n} is open until the evening." for n in range(9))))
    model, found = models.tiny_llama(), []
    for size in SIZES:
        args = SFTConfig(**common(tmp_path, size), dataset_kwargs={"skip_prepare_dataset": True}, loss_type=loss)
        columns = tokens.together(
            tokens.language_modeling(rows, None, models.lab_tokenizer(), args, completion_only=True)
        )
        held = Dataset.from_dict(columns)
        trainer = SftTrainer(
            model=copy.deepcopy(model),
            args=args,
            processing_class=models.lab_tokenizer(),
            train_dataset=held,
            eval_dataset=held,
        )
        found.append(trainer.evaluate())
    each, entropies, right = [], [], []
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        row, kept = logits(model, ids), torch.tensor(labels[1:]) != -100
        every = row.log_softmax(-1)
        each.append(every.gather(-1, torch.tensor(ids[1:])[:, None])[kept, 0])
        entropies.append(-(every.exp() * every).sum(-1)[kept])
        right.append((row.argmax(-1) == torch.tensor(ids[1:]))[kept].double())
    log_probs = torch.cat(each)
    losses = -log_probs * (log_probs.exp() if loss == "dft" else 1)
    assert_alike(
        found,
        {
            "loss": losses.mean().item(),
            "entropy": torch.cat(entropies).mean().item(),
            "mean_token_accuracy": torch.cat(right).mean().item(),
        },
    )
    by_row = sum(-part.mean().item() for part in each) / len(each)
    assert loss == "dft" or abs(found[0]["eval_loss"] - by_row) > 1e-3, "the two means differ on these rows"


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


# dpo


def pair_columns(args: Any) -> Rows:
    return tokens.together(tokens.preference(models.preferences(HELD), models.lab_tokenizer(), args))


def with_masks(columns: Rows, names: dict[str, str]) -> Rows:
    """Masks that leave out every third token of an answer, and its last."""
    masks = {
        mask: [[int(at % 3 != 1 and at < len(ids) - 1) for at in range(len(ids))] for ids in columns[answer]]
        for mask, answer in names.items()
    }
    return {**columns, **masks}


def dpo_figures(
    folder: Path, masked: bool, beta: float = 0.3, **given: Any
) -> tuple[list[dict[str, float]], list[list[torch.Tensor]]]:
    """Of each batch size; and of each pair the log-probabilities of the tokens that count: policy and reference of the
    chosen answer, and of the rejected one."""
    came_in, found = models.tiny_llama(), []
    for size in SIZES:
        args = DPOConfig(**common(folder / str(size), size), precompute_ref_log_probs=True, beta=beta, **given)
        columns = pair_columns(args)
        if masked:
            columns = with_masks(columns, {"chosen_mask": "chosen_ids", "rejected_mask": "rejected_ids"})
        held = Dataset.from_dict(columns)
        (folder / str(size)).mkdir(exist_ok=True)
        trainer = DpoTrainer(
            model=copy.deepcopy(came_in),
            args=args,
            processing_class=models.lab_tokenizer(),
            reference_file=folder / str(size) / "reference.safetensors",
            train_dataset=held,
            eval_dataset=held,
        )
        moved(trainer.model)
        found.append(trainer.evaluate())
    policy, pairs = moved(copy.deepcopy(came_in)), []
    for at, prompt in enumerate(columns["prompt_ids"]):
        parts = []
        for side in ("chosen", "rejected"):
            mask = torch.tensor(columns[f"{side}_mask"][at] if masked else [1] * len(columns[f"{side}_ids"][at])).bool()
            parts += [of_tokens(model, prompt, columns[f"{side}_ids"][at])[mask] for model in (policy, came_in)]
        pairs.append(parts)
    return found, pairs


@pytest.mark.parametrize("masked", [False, True])
def test_the_figures_of_dpo_are_means_over_pairs(tmp_path: Path, masked: bool) -> None:
    found, pairs = dpo_figures(tmp_path, masked)
    sums = torch.stack([torch.stack([part.sum() for part in parts]) for parts in pairs])
    chosen, rejected = 0.3 * (sums[:, 0] - sums[:, 1]), 0.3 * (sums[:, 2] - sums[:, 3])
    expected = {
        "loss": -F.logsigmoid(chosen - rejected).mean().item(),
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": (chosen > rejected).double().mean().item(),
        "logps/chosen": sums[:, 0].mean().item(),
        "logps/rejected": sums[:, 2].mean().item(),
    }
    assert abs(expected["rewards/margins"]) > 0.05
    assert_alike(found, expected)
    for name in ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"):
        values = [metrics[f"eval_{name}"] for metrics in found]
        assert values == pytest.approx([values[0]] * 4, rel=1e-6), name


@pytest.mark.parametrize("loss", ["sigmoid_norm", "ipo", "sft"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_by_length_counts_the_tokens_that_count(tmp_path: Path, masked: bool, loss: str) -> None:
    found, pairs = dpo_figures(tmp_path, masked, loss_type=[loss])
    means = torch.stack([(p - r).mean() for parts in pairs for p, r in (parts[:2], parts[2:])]).reshape(-1, 2)
    gap = means[:, 0] - means[:, 1]
    losses = {
        "sigmoid_norm": -F.logsigmoid(0.3 * gap),
        "ipo": (gap - 1 / 0.6) ** 2,
        "sft": -torch.cat([parts[0] for parts in pairs]),  # over tokens, as TRL has it within a batch
    }
    assert_alike(found, {"loss": losses[loss].mean().item()})


def test_losses_of_several_kinds_add_up(tmp_path: Path) -> None:
    """Each over what it is a mean over."""
    found, pairs = dpo_figures(tmp_path, True, loss_type=["sigmoid", "sft"], loss_weights=[0.5, 2.0])
    sums = torch.stack([torch.stack([part.sum() for part in parts]) for parts in pairs])
    margins = 0.3 * (sums[:, 0] - sums[:, 1] - sums[:, 2] + sums[:, 3])
    by_token = -torch.cat([parts[0] for parts in pairs]).mean()
    assert_alike(found, {"loss": (0.5 * -F.logsigmoid(margins).mean() + 2 * by_token).item()})


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_sorted_pairs_are_those_of_all_held_out_rows(tmp_path: Path, loss: str) -> None:
    found, pairs = dpo_figures(tmp_path, False, loss_type=[loss], label_smoothing=0.1)
    sums = torch.stack([torch.stack([part.sum() for part in parts]) for parts in pairs])
    policy, reference = sums[:, 0] - sums[:, 2], sums[:, 1] - sums[:, 3]
    if loss == "aot_unpaired":
        policy, reference = sums[:, 0] - sums[:, 1], sums[:, 2] - sums[:, 3]
    gap = 0.3 * (policy.sort().values - reference.sort().values)
    expected = (-F.logsigmoid(gap) * 0.9 - F.logsigmoid(-gap) * 0.1).mean().item()
    assert_alike(found, {"loss": expected})


# kto


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_figures_of_kto_are_means_over_answers(tmp_path: Path, masked: bool, loss: str) -> None:
    came_in, found = models.tiny_llama(), []
    for size in SIZES:
        given = {"beta": 0.3, "undesirable_weight": 1.5, "loss_type": loss, "train_sampling_strategy": "random"}
        args = KTOConfig(**common(tmp_path / str(size), size), precompute_ref_log_probs=True, **given)
        columns = tokens.together(tokens.unpaired(models.preferences(11), models.lab_tokenizer(), args))
        columns = {name: values[:HELD] for name, values in columns.items()}  # eleven desirable, ten not
        if masked:
            columns = with_masks(columns, {"completion_mask": "completion_ids"})
        held = Dataset.from_dict(columns)
        (tmp_path / str(size)).mkdir()
        trainer = KtoTrainer(
            model=copy.deepcopy(came_in),
            args=args,
            processing_class=models.lab_tokenizer(),
            reference_file=tmp_path / str(size) / "reference.safetensors",
            train_dataset=held,
            eval_dataset=held,
        )
        moved(trainer.model)
        found.append(trainer.evaluate())
    policy = moved(copy.deepcopy(came_in))
    prompts = [tuple(ids) for ids in columns["prompt_ids"]]
    others = other_answers(range(HELD), HELD, prompts)
    masks = columns.get("completion_mask", [[1] * len(ids) for ids in columns["completion_ids"]])

    def ratio(row: int, answer: int) -> torch.Tensor:
        sums = [
            (of_tokens(model, prompts[row], columns["completion_ids"][answer]) * torch.tensor(masks[answer])).sum()
            for model in (policy, came_in)
        ]
        return sums[0] - sums[1]

    ratios = torch.stack([ratio(row, row) for row in range(HELD)])
    kl = torch.stack([ratio(row, others[row]) for row in range(HELD)]).mean().clamp(min=0)
    desirable = torch.tensor(columns["label"])
    if loss == "apo_zero_unpaired":
        kl = torch.zeros(())
    losses = torch.where(
        desirable, 1 - torch.sigmoid(0.3 * (ratios - kl)), 1.5 * (1 - torch.sigmoid(0.3 * (kl - ratios)))
    )
    chosen, rejected = 0.3 * ratios[desirable].mean().item(), 0.3 * ratios[~desirable].mean().item()
    expected = {
        "loss": losses.mean().item(),
        "kl": kl.item(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
    }
    assert_alike(found, expected)
    for name in ("entropy", "logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected"):
        values = [metrics[f"eval_{name}"] for metrics in found]
        assert values == pytest.approx([values[0]] * 4, rel=1e-6), name


# reward


@pytest.mark.parametrize("margins", [False, True])
def test_the_figures_of_a_reward_model_are_means_over_pairs(tmp_path: Path, margins: bool) -> None:
    rows = [row | ({"margin": at % 3 / 2} if margins else {}) for at, row in enumerate(models.preferences(HELD))]
    columns, model, found = tokens.together(tokens.reward(rows, models.lab_tokenizer())), scoring(), []
    for size in SIZES:
        held = Dataset.from_dict(columns)
        trainer = RewardTrainer(
            model=copy.deepcopy(model),
            args=RewardConfig(**common(tmp_path, size), center_rewards_coefficient=0.1),
            processing_class=models.lab_tokenizer(),
            train_dataset=held,
            eval_dataset=held,
        )
        found.append(trainer.evaluate())
    with torch.no_grad():
        scores = torch.tensor(
            [
                [float(model(input_ids=torch.tensor([columns[f"{side}_ids"][at]])).logits) for at in range(HELD)]
                for side in ("chosen", "rejected")
            ],
            dtype=torch.float64,
        )
    gap = scores[0] - scores[1]
    wanted = torch.tensor([row.get("margin", 0.0) for row in rows])
    expected = {
        "loss": (-F.logsigmoid(gap - wanted) + 0.1 * (scores[0] + scores[1]) ** 2).mean().item(),
        "accuracy": (gap > 0).double().mean().item(),
        "margin": gap.mean().item(),
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
    }
    for size, metrics in zip(SIZES, found, strict=True):
        for name, value in expected.items():
            near = pytest.approx(value, rel=1e-6, abs=1e-9 if name == "loss" else 1e-6)
            assert metrics[f"eval_{name}"] == near, (size, name)


def scoring() -> LlamaForSequenceClassification:
    config = models.tiny_llama().config
    config.num_labels = 1
    torch.manual_seed(2)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight *= 20
    return model.eval()


# the parts


def test_held_out_rows_are_dealt_out_once() -> None:
    assert batches_of(5, 2) == [[0, 1], [2, 3], [4]]
    assert batches_of(1, 16) == [[0]]
    for rows in (1, 7, 16, 21):
        for size in SIZES:
            for processes in (1, 2, 3):
                every = batches_of(rows, size)
                mine = [row for rank in range(processes) for batch in every[rank::processes] for row in batch]
                assert sorted(mine) == list(range(rows))


class Two:
    """What a tally asks of accelerate, in the first of two processes, of which the other has this tally."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, other: Tally) -> None:
        self.other = other

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        rows = [[self.other.totals.get(name, 0.0), self.other.weights.get(name, 0.0)] for name in self.other.units]
        return torch.cat([own, torch.tensor([rows], dtype=torch.float64)])


def test_a_tally_of_two_processes() -> None:
    """Of figures that one of them has not, too."""
    units = {"loss": "tokens", "best": GREATEST, "mine": "rows", "nobody's": "rows"}
    one, two = Tally(units), Tally(units)
    for tally, name, value, weight in (
        (one, "loss", 2.0, 3.0),
        (one, "loss", 1.0, 1.0),
        (one, "best", -3.0, 1.0),
        (one, "mine", 0.5, 2.0),
        (one, "nobody's", math.nan, 0.0),
        (two, "loss", 5.0, 4.0),
        (two, "best", -7.0, 1.0),
        (two, "best", -1.0, 1.0),
    ):
        tally.add(name, value, weight)
    assert one.values() == {"loss": 1.75, "best": -3.0, "mine": 0.5}
    assert one.over_processes(Two(two)).values() == {"loss": 3.375, "best": -1.0, "mine": 0.5}


RECIPE = """\
name: held
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {policy: base, data: {source: lab/helpdesk, limit: 24}, eval_data: PATH/talks.jsonl, training: TRAINING}
  dpo: {policy: base, data: PAIRS, eval_data: PATH/pairs.jsonl, training: TRAINING}
  kto: {policy: base, data: PAIRS, eval_data: PATH/pairs.jsonl, training: TRAINING}
  judge: {stage: reward, policy: base, data: PAIRS, eval_data: PATH/pairs.jsonl, training: TRAINING}
"""
TRAINING = (
    "{bf16: false, max_steps: 3, per_device_train_batch_size: 8, gradient_accumulation_steps: 1, eval_steps: 1, "
    "save_strategy: 'no', logging_steps: 1, per_device_eval_batch_size: 8, warmup_steps: 0, "
    "optim: sgd, learning_rate: 0.3}"  # Adam makes a step of full size from a gradient that is rounding alone
)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path: Path) -> None:
    """21 held-out rows, 13 pairs: in batches of 16 and two processes one of them has nothing, or next to nothing."""
    for name, rows in (("talks", data.rows("lab/helpdesk", n=45)[24:]), ("pairs", models.preferences(37)[24:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "held.yaml"
    pairs = "{source: lab/helpdesk_preferences, limit: 24}"
    for word, meant in (("TRAINING", TRAINING), ("PATH", str(tmp_path)), ("PAIRS", pairs)):
        recipe.write_text((RECIPE if word == "TRAINING" else recipe.read_text()).replace(word, meant), encoding="utf-8")
    halved = [
        f"stages.{stage}.training.{name}={value}"
        for stage in ("sft", "dpo", "kto", "judge")
        for name, value in (("per_device_train_batch_size", 4), ("per_device_eval_batch_size", 16))
    ]
    runs.run(recipe, tmp_path / "one")
    runs.run(recipe, tmp_path / "two", "--processes", "2", *(word for one in halved for word in ("--set", one)))
    for stage in ("sft", "dpo", "kto", "judge"):
        one, two = figures(tmp_path / "one", stage), figures(tmp_path / "two", stage)
        assert runs.outcome(tmp_path / "two", stage)["world_size"] == 2
        assert len(one) == len(two) == 4, "before the first step, too"
        for first, second in zip(one, two, strict=True):
            assert first.keys() == second.keys()
            assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
            for name, value in first.items():
                assert second[name] == pytest.approx(value, rel=1e-5, abs=2e-5), (stage, name)
        assert one[0]["eval_loss"] != one[2]["eval_loss"], "something was learnt"


def figures(folder: Path, stage: str) -> list[dict[str, float]]:
    """What each evaluation logged, but for times."""
    lines = (folder / "stages" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if "eval_loss" in entry]
    spoken = ("runtime", "per_second", "num_tokens")
    return [
        {name: value for name, value in entry.items() if name.startswith("eval_") and not name.endswith(spoken)}
        for entry in entries
    ]
