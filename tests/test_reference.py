"""The reference of DPO and KTO is rounded as the policy is: batch for batch, by the same pass; and it is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.oft.layer import MultiplicativeDropoutLayer
from safetensors.torch import load_file, save_file
from torch import nn
from trl import DPOConfig, DPOTrainer

import models
from align.data import tokens
from align.lab import MODEL_DIR
from align.parameterization import method as methods
from align.policy import load as loading
from align.policy import stack
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from align.trainers import kept_reference
from align.trainers.dpo import DpoTrainer
from align.trainers.kept_reference import KeptReference
from align.trainers.step_rows import StepRows, StepSampler
from models import BASE, FULL, LORA, QLORA, Stages, preferences

MORE = pytest.mark.slow  # bfloat16 is slow on many processors
STILL = {"learning_rate": 1e-12, "bf16": True, "train_sampling_strategy": "random", "max_steps": 9}


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def bfloat16(stages: Stages, program: str, method: dict[str, Any], policy: Policy = BASE, **more: Any) -> None:
    """Nine steps of four rows each at a rate of nothing: two epochs and more of 14 rows, whose last batch is filled."""
    given = {"rows": preferences(14), "held": preferences(27)[14:], "dtype": "bfloat16", **STILL, **more}
    stages.execute(stages.ticket(program, program, policy, method, **given))


@pytest.mark.parametrize(
    ("method", "accumulation"),
    [
        ("qlora", 2),
        *(pytest.param(*one, marks=MORE) for one in [("lora", 1), ("lora", 2), ("qlora", 1), ("full", 1), ("full", 2)]),
    ],
)
def test_dpo_begins_at_log_2_in_bfloat16(stages: Stages, method: str, accumulation: int) -> None:
    parts = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    bfloat16(stages, "dpo", {"lora": LORA, "qlora": QLORA, "full": FULL}[method], eval_steps=3, **parts)
    margins, losses = stages.logged("dpo", "rewards/margins"), stages.logged("dpo", "loss")
    assert len(margins) == len(losses) == 9
    assert margins == [0.0] * 9
    assert losses == pytest.approx([math.log(2)] * 9, abs=1e-6)
    assert stages.logged("dpo", "rewards/chosen") == [0.0] * 9
    assert stages.logged("dpo", "eval_rewards/margins") == [0.0] * 4
    assert stages.logged("dpo", "eval_loss") == pytest.approx([math.log(2)] * 4, abs=1e-6)


@MORE
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_twice_are_so_in_the_reference(stages: Stages, reentrant: bool) -> None:
    """Checkpoints of the old kind run without gradients, in which 4-bit products take another way."""
    twice = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    bfloat16(stages, "dpo", QLORA, **twice)
    assert stages.logged("dpo", "rewards/chosen") == stages.logged("dpo", "rewards/margins") == [0.0] * 9


@pytest.mark.parametrize("method", [pytest.param("lora", marks=MORE), "qlora"])
def test_a_policy_that_is_trained_further_begins_at_log_2(stages: Stages, method: str) -> None:
    """Its adapter is no zero, and acts in both."""
    settings = {"lora": LORA, "qlora": QLORA}[method]
    policy = stages.execute(stages.ticket("sft", "sft", BASE, settings, dtype="bfloat16", bf16=True))
    bfloat16(stages, "dpo", settings, policy)
    assert stages.logged("dpo", "rewards/margins") == stages.logged("dpo", "rewards/rejected") == [0.0] * 9
    assert stages.logged("dpo", "eval_rewards/chosen") == [0.0] * 6


@MORE
def test_an_adapter_can_be_trained_in_bfloat16_through_a_chain(stages: Stages) -> None:
    """As TRL trains it over a 4-bit base: the second stage trains the first's further, and both keep its dtype."""
    coarse = {**QLORA, "adapter_dtype": "bfloat16"}
    policy = stages.execute(stages.ticket("sft", "sft", BASE, coarse, dtype="bfloat16", bf16=True))
    bfloat16(stages, "dpo", coarse, policy, learning_rate=1e-3)
    folders = [stages.run.root / stages.outcomes[stage].policy.adapters[-1].path for stage in ("sft", "dpo")]
    kept = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    assert {tensor.dtype for weights in kept for tensor in weights.values()} == {torch.bfloat16}
    assert any(not torch.equal(tensor, kept[0][name]) for name, tensor in kept[1].items())
    assert stages.logged("dpo", "rewards/margins")[0] == 0.0


@pytest.mark.parametrize("method", [pytest.param("lora", marks=MORE), "qlora"])
def test_kto_begins_with_rewards_of_0_in_bfloat16(stages: Stages, method: str) -> None:
    """The KL too: answers to other prompts are compared in batches of their own."""
    bfloat16(stages, "kto", {"lora": LORA, "qlora": QLORA}[method])
    for figure in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
        logged = [*stages.logged("kto", figure), *stages.logged("kto", f"eval_{figure}")]
        assert logged == [0.0] * len(logged) != [], figure
    assert stages.logged("kto", "loss") == pytest.approx([0.5] * 9, abs=1e-6)


def adapted(method: str, **more: Any) -> PeftModel:
    """The lab model in bfloat16 under a new adapter."""
    settings = {"lora": LORA, "qlora": QLORA}[method] | more
    program = methods.load(method)
    keys = program.Keys.model_validate(settings)
    base = loading.load_weights(str(MODEL_DIR), {}, torch.bfloat16, program.quantization(keys))
    torch.manual_seed(0)
    model: PeftModel = stack.cast_trained(program.apply(base, keys, "default"), program.traits(keys).trained_in)
    return model


def common(folder: Path, **given: Any) -> DPOConfig:
    folder.mkdir(exist_ok=True)
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    order = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4, "seed": 3}
    return DPOConfig(output_dir=str(folder), **{**fixed, **order, "max_steps": 10, **given})


def trainer(model: nn.Module, args: DPOConfig, rows: list[dict[str, Any]]) -> DpoTrainer:
    tokenizer = models.lab_tokenizer()
    return DpoTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        reference_file=Path(args.output_dir) / "reference.safetensors",
        train_dataset=Dataset.from_dict(tokens.together(tokens.preference(rows, tokenizer, args))),
    )


@pytest.mark.parametrize(
    ("method", "more", "bf16", "near"),
    [
        pytest.param("lora", {}, True, 2e-3, marks=MORE),
        pytest.param("qlora", {"adapter_dtype": "bfloat16"}, True, 2e-3, marks=MORE),
        pytest.param("qlora", {}, True, 2e-3, marks=MORE),
        ("lora", {}, False, 1e-4),
    ],
)
def test_ten_steps_are_those_of_trl(tmp_path: Path, method: str, more: dict[str, str], bf16: bool, near: float) -> None:
    """TRL has its reference in an adapter of its own, beside the policy in every step, and tokenises by itself."""
    rows, rates = preferences(40), {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "bf16": bf16}
    ours = trainer(adapted(method, **more), common(tmp_path / "ours", precompute_ref_log_probs=True, **rates), rows)
    ours.train()
    theirs = DPOTrainer(
        model=adapted(method),
        args=common(tmp_path / "theirs", **rates),
        processing_class=models.lab_tokenizer(),
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]),
    )
    trained = {parameter.dtype for parameter in theirs.model.parameters() if parameter.requires_grad}
    assert trained == {torch.bfloat16 if method == "qlora" else torch.float32}
    if method == "qlora" and not more:  # ours stays float32 by default: TRL's with its cast undone
        for parameter in theirs.model.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    theirs.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, theirs)]
    assert len(losses[0]) == 10 and losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0][-1] < 0.69, "something is learnt"
    assert losses[0] == pytest.approx(losses[1], abs=near)


# what it is computed in, and where it is kept


@pytest.mark.parametrize(("epochs", "passes"), [(1.0, 4), (0.5, 2), (2.5, 10)])
def test_the_reference_takes_the_batches_of_the_steps_and_no_more(tmp_path: Path, epochs: float, passes: int) -> None:
    """14 rows in batches of four, of which the last is filled: as many passes as steps, each over a step's batch."""
    seen: list[dict[str, torch.Tensor]] = []
    own = DpoTrainer.reference_log_probs

    def looked(self: DpoTrainer, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        assert model.training and torch.is_grad_enabled()
        seen.append({name: tensor.clone() for name, tensor in batch.items()})
        return own(self, model, batch)

    args = {"max_steps": -1, "num_train_epochs": epochs, "bf16": False, "train_sampling_strategy": "random"}
    with mock.patch.object(DpoTrainer, "reference_log_probs", looked):
        one = trainer(models.tiny_llama(), common(tmp_path, precompute_ref_log_probs=True, **args), preferences(14))
    steps: list[dict[str, torch.Tensor]] = []
    step = one.training_step

    def watched(model: nn.Module, inputs: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        steps.append({name: tensor.clone() for name, tensor in inputs.items()})
        return step(model, inputs, *rest)

    one.training_step = watched
    one.train()
    assert len(seen) == len(steps) == one.steps() == one.state.global_step == passes
    for asked, trained in zip(seen, steps, strict=True):
        for name in ("input_ids", "attention_mask", "completion_mask"):
            assert torch.equal(asked[name], trained[name])


def test_places_are_the_rows_of_the_order_epoch_after_epoch() -> None:
    class Order:
        batch = 2

        def __len__(self) -> int:
            return 4

        def rows(self, number: int) -> list[int]:
            return [[2, 0, 1, 2], [1, 2, 0, 1]][number]

    rows = StepRows(Dataset.from_dict({"name": ["a", "b", "c"]}), Order(), 2)  # type: ignore[arg-type]
    rows.columns["beside"] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [rows[place]["name"] for place in range(8)] == list("cabcbcab")
    assert rows[3] == {"name": "c", "beside": 0.3} and len(rows) == 4
    sampler = StepSampler(rows)
    assert list(sampler) == [0, 1, 2, 3] and len(sampler) == 4
    sampler.set_epoch(1)
    assert list(sampler) == [4, 5, 6, 7]
    sampler.set_epoch(2)
    assert list(sampler) == [0, 1, 2, 3], "of rows whose epochs are alike"


def test_a_kept_reference_is_read_and_one_of_other_batches_is_not(tmp_path: Path) -> None:
    """A run may go on with other processes: its parts of a batch are others."""

    def made(size: int, accumulation: int) -> DpoTrainer:
        parts = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        given = {"precompute_ref_log_probs": True, "bf16": False, "max_steps": 2, **parts}
        return trainer(models.tiny_llama(), common(tmp_path, **given), preferences(8))

    file = tmp_path / "reference-train.safetensors"
    first = made(4, 1)
    kept = load_file(file)
    with mock.patch.object(KeptReference, "log_probs_of", side_effect=AssertionError("computed again")):
        again = made(4, 1)
    assert first.train_dataset.columns == again.train_dataset.columns
    save_file(kept, file)  # of what split is not known
    calls = []
    own = KeptReference.log_probs_of

    def counted(self: KeptReference, *rest: Any) -> Any:
        calls.append(rest)
        return own(self, *rest)

    with mock.patch.object(KeptReference, "log_probs_of", counted):
        made(4, 1)
        made(2, 2)
        made(2, 2)
    assert len(calls) == 2
    assert load_file(file)["rows"].tolist() == kept["rows"].tolist()


def test_no_dropout_is_in_the_reference() -> None:
    """Where it is in the policy, too: layers of it, and the numbers that attention and LoHa take."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    attention = nn.Identity()
    attention.attention_dropout = 0.25
    attention.rank_dropout = {"trained": 0.5, "other": 0}  # type: ignore[assignment]
    attention.rank_dropout_scale = {"trained": True}  # type: ignore[assignment]
    model.append(attention)
    model.append(MultiplicativeDropoutLayer(0.5))
    model.train()
    with kept_reference.without_dropout(model):
        assert torch.equal(model[:2](torch.ones(2, 4)), model[0](torch.ones(2, 4)))
        assert (model[1].p, attention.attention_dropout, model[3].p) == (0.0, 0.0, 0.0) and model.training
        assert attention.rank_dropout == {"trained": 0.0, "other": 0.0}
        assert attention.rank_dropout_scale == {"trained": True}
    assert (model[1].p, attention.attention_dropout, model[3].p) == (0.5, 0.25, 0.5)
    assert attention.rank_dropout == {"trained": 0.5, "other": 0}


def test_a_loha_adapter_that_drops_ranks_is_its_own_reference(stages: Stages) -> None:
    """PEFT keeps the rate of each adapter as a number; the reference of one that is trained further draws none."""
    loha = models.settings("loha", peft={"r": 4, "rank_dropout": 0.3})
    given: dict[str, Any] = {"dtype": "float32", "bf16": False, "max_steps": 1}
    policy = stages.execute(stages.ticket("sft", "sft", BASE, loha, **{**given, "learning_rate": 1e-2}))
    stages.execute(stages.ticket("dpo", "dpo", policy, loha, rows=preferences(4), **given))
    near = stages.outcomes["dpo"].proofs.start_kl
    assert near is not None and near.value == 0.0


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_tokens_beyond_the_shorter_answer_weigh_less_in_both(tmp_path: Path, alpha: float | None) -> None:
    """`ld_alpha` of the policy is that of the reference: before the first step no margin is there."""
    given = {"precompute_ref_log_probs": True, "bf16": False, "learning_rate": 0.0, "ld_alpha": alpha}
    one = trainer(models.tiny_llama(), common(tmp_path, **given), preferences(8))
    one.train()
    logged = [entry for entry in one.state.log_history if "loss" in entry]
    assert [entry["rewards/chosen"] for entry in logged] == [entry["rewards/margins"] for entry in logged] == [0.0] * 10
