"""Reward models: every parameterization, what is trained and saved, what plain transformers and PEFT load, figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.policy import stack
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from align.trainers.reward import doubt, figures
from models import BASE, FULL, LORA, QLORA, Stages, changed, lab_tokenizer, preferences, settings

METHODS = {
    "full": FULL,
    "lora": LORA,
    "qlora": QLORA,
    "spectrum": settings("spectrum"),
    "adapter": settings("adapter", adapter={"r": 8}),
}


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def score_of(model: Any, row: dict[str, Any]) -> float:
    (pair,) = encode.pairs([row], TextTokenizer.of(lab_tokenizer()))
    return float(model(input_ids=torch.tensor([pair.chosen.ids])).logits.squeeze())


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_stage_trains_what_it_says_and_loads_again(stages: Stages, method: str) -> None:
    ticket = stages.ticket(
        "reward", "reward", BASE, METHODS[method], rows=preferences(16), held=preferences(40)[16:], dtype="float32"
    )
    model = stages.execute(ticket)
    job, outcome = stages.jobs["reward"], stages.outcomes["reward"]
    assert outcome.policy is None and outcome.reward == model
    trained = {name for name, p in job.model.named_parameters() if p.requires_grad}
    moved = changed(stages.before["reward"], job.model)
    assert moved == trained
    assert any("score" in name for name in trained)
    if method in ("lora", "qlora", "adapter"):
        assert all("score" in name or ".default." in name for name in trained)
    losses = stages.logged("reward", "loss")
    assert losses[-1] < losses[0]
    row = preferences(1)[0]
    again = stack.load_reward(model, ticket.model, stages.run.root)
    assert score_of(again, row) == pytest.approx(score_of(job.model.eval(), row), abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_plain_transformers_and_peft_load_a_reward_model(stages: Stages, method: str) -> None:
    model = stages.execute(stages.ticket("reward", "reward", BASE, METHODS[method], dtype="float32"))
    folder = stages.run.stage("reward").model
    kind: Any = AutoModelForSequenceClassification if method == "full" else AutoPeftModelForSequenceClassification
    plain = kind.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    row = preferences(1)[0]
    ours = stack.load_reward(model, {"dtype": "float32"}, stages.run.root)
    assert score_of(plain, row) == pytest.approx(score_of(ours, row), abs=1e-5)


@pytest.mark.parametrize("second", ["lora", "adapter", "full"])
def test_a_reward_model_starts_from_a_policy(stages: Stages, second: str) -> None:
    """Continued, on top, or merged: before the first step its trunk is the policy's."""
    policy = stages.execute(stages.ticket("sft", "sft", BASE, LORA, dtype="float32"))
    ticket = stages.ticket("reward", "reward", policy, METHODS[second], dtype="float32", learning_rate=0.0)
    model = stages.execute(ticket)
    ids = torch.tensor(encode.prompt_ids([preferences(1)[0]["prompt"]], TextTokenizer.of(lab_tokenizer())))
    plain = stack.load_policy(policy, {"dtype": "float32"}, stages.run.root)
    reward = stack.load_reward(model, {"dtype": "float32"}, stages.run.root)
    expected = plain.get_base_model().model(input_ids=ids).last_hidden_state
    base = reward.get_base_model() if hasattr(reward, "get_base_model") else reward
    torch.testing.assert_close(base.model(input_ids=ids).last_hidden_state, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_reward_model_has_the_same_weights(tmp_path: Path, method: str) -> None:
    def run(name: str, *, resume: bool) -> dict[str, str]:
        stages = Stages(RunDir(tmp_path / name))
        ticket = stages.ticket("reward", "reward", BASE, METHODS[method], save_strategy="steps", save_steps=2)
        stages.execute(ticket)
        if resume:
            here = stages.run.stage("reward")
            (here.outcome).unlink()
            ticket.resume_from = "checkpoints/checkpoint-2"
            stages.execute(ticket)
        return {path.name: files.file_sha256(path) for path in stages.run.stage("reward").model.glob("*.safetensors")}

    assert run("whole", resume=False) == run("resumed", resume=True)


def test_margins_are_learnt(stages: Stages) -> None:
    rows = [row | {"margin": 3.0} for row in preferences(16)]
    plain = stages.ticket("plain", "reward", BASE, LORA, rows=preferences(16))
    wide = stages.ticket("wide", "reward", BASE, LORA, rows=rows)
    stages.execute(plain)
    stages.execute(wide)
    first = stages.logged("plain", "loss")[0], stages.logged("wide", "loss")[0]
    assert first[0] == pytest.approx(math.log(2), abs=0.05)
    assert first[1] == pytest.approx(math.log1p(math.exp(3.0)), abs=0.05)


def test_figures_of_a_perfect_an_undecided_and_a_wrong_model() -> None:
    right = figures([2.0, 3.0], [0.0, 1.0])
    assert right["pair_accuracy"] == 1 and right["pair_margin"] == 2
    assert right["calibration_error"] == pytest.approx(1 - 1 / (1 + math.exp(-2)))
    level = figures([1.0, 1.0], [1.0, 1.0])
    assert level["pair_accuracy"] == 0.5 and level["pair_loss"] == pytest.approx(math.log(2))
    assert level["calibration_error"] == pytest.approx(0.0)
    wrong = figures([-50.0], [900.0])
    assert wrong["pair_accuracy"] == 0 and wrong["pair_loss"] == pytest.approx(950)
    assert sum(wrong["score_histogram"]["chosen"]) == 1


def test_a_model_that_pairs_do_not_show_to_be_better_than_chance_is_told_with_its_interval() -> None:
    """By the tables of Wilson's interval: 2 of 5 are 0.118 to 0.769, 5 of 5 are 0.566 to 1, 0 of 5 are 0 to 0.434."""
    assert doubt(0.4, 5) == (
        "the reward model may be no better than chance: correct on 2 of 5 held-out pairs (0.400, 95 % interval 0.118 "
        "to 0.769, chance is 0.5); hold out more pairs (`eval_data`), or train on more and clearer pairs before you "
        "train on its scores"
    )
    assert doubt(1.0, 5) is None
    assert doubt(0.0, 5) == (
        "the reward model ranks held-out pairs worse than chance: correct on 0 of 5 held-out pairs (0.000, 95 % "
        "interval 0.000 to 0.434, chance is 0.5); check whether chosen and rejected are swapped before you train on "
        "its scores"
    )
    assert doubt(0.6, 60) is not None and doubt(0.65, 60) is None
    assert figures([2.0, 3.0], [0.0, 1.0])["pair_accuracy_ci95"] == pytest.approx([0.3424, 1.0], abs=1e-4)


def test_a_weak_reward_model_is_heard_in_its_outcome(stages: Stages) -> None:
    """Its pairs are the same but for which side is which, so that no model can be right on more than half."""
    held = preferences(4)
    held += [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in held]
    stages.execute(stages.ticket("reward", "reward", BASE, LORA, rows=preferences(8), held=held))
    said = [text for text in stages.outcomes["reward"].warnings if "may be no better than chance" in text]
    assert len(said) == 1 and "correct on 4 of 8 held-out pairs (0.500, " in said[0]
    told = (stages.run.stage("reward").root / "progress.jsonl").read_text()
    assert said[0] in told


def test_what_comes_in_is_a_policy(stages: Stages) -> None:
    model = stages.execute(stages.ticket("reward", "reward", BASE, LORA))
    assert isinstance(model, Policy) and [adapter.name for adapter in model.adapters] == ["reward"]
