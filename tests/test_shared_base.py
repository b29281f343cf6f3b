"""A reward model on the policy's base scores as it does alone, whatever else its adapters and the policy's train."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align.policy import stack
from align.recipe.load import load
from align.results import find, policy_switch
from align.rl.scoring import OwnModel, Question, SharedModel
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Reward
from models import BASE, Stages, lab_tokenizer, preferences, settings

QUICK: dict[str, Any] = {"max_steps": 3, "learning_rate": 2e-2, "bf16": False}
PPO = {**QUICK, "max_steps": 2, "num_generations": 1, "steps_per_generation": 2, "max_completion_length": 6}
Seen = list[tuple[Any, list[float], list[list[int]]]]


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path / "run"))


def gpt2(folder: Path) -> Policy:
    """A base with biases, which are not 0."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 800, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=4, pad_token_id=0))
    model.save_pretrained(folder)
    lab_tokenizer().save_pretrained(folder)
    return Policy(base=BaseModelIdentity(name="gpt2", path=str(folder), identity="1" * 64))


def chain(stages: Stages, base: Policy, sft: dict[str, Any], own: dict[str, Any], *, beside: bool) -> Seen:
    """SFT, a reward model and PPO; what every scorer was asked and answered in it.

    Args:
        own: the parameterization of the reward model, and of PPO where it is not SFT's.
        beside: the reward model starts from the base, not from SFT.
    """
    policy = stages.execute(stages.ticket("sft", "sft", base, sft, dtype="float32", **QUICK))
    start = base if beside else policy
    asked = {"rows": preferences(12), "dtype": "float32"}
    found = stages.execute(stages.ticket("reward", "reward", start, own, **asked, **QUICK))
    reward = Reward(name="reward", kind="stage", weight=1.0, stage="reward", model=found)
    seen: Seen = []

    def watched(kind: Any) -> Any:
        true = kind.__call__

        def call(self: Any, question: Question) -> list[float]:
            answers: list[float] = true(self, question)
            seen.append((self, answers, self.closed.rows(question)))
            return answers

        return mock.patch.object(kind, "__call__", call)

    with watched(SharedModel), watched(OwnModel):
        keys = {"critic": "head"}
        stages.execute(stages.ticket("ppo", "ppo", policy, own, dtype="float32", rewards=[reward], keys=keys, **PPO))
    alone = stack.load_reward(found, {"dtype": "float32"}, stages.run.root)
    for _, answers, rows in seen:
        for answer, ids in zip(answers, rows, strict=True):
            with torch.no_grad():
                assert answer == pytest.approx(float(alone(input_ids=torch.tensor([ids])).logits[0, 0]), abs=1e-4)
    return seen


@pytest.mark.parametrize("beside", [True, False])
def test_biases_of_the_base_are_not_another_models(beside: bool, stages: Stages, tmp_path: Path) -> None:
    """From the base it has a base of its own; from SFT it stands on the same biases, and shares them."""
    biased, plain = settings("lora", lora={"r": 4, "bias": "all"}), settings("lora", lora={"r": 4})
    seen = chain(stages, gpt2(tmp_path / "gpt2"), biased, plain, beside=beside)
    assert {type(scorer) for scorer, _, _ in seen} == {OwnModel if beside else SharedModel}


@pytest.mark.parametrize("whole", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_modules_that_are_trained_whole(whole: list[str], stages: Stages) -> None:
    """A reward model has no head for tokens: its adapter is saved without one, and goes on the policy's base again."""
    method = settings("lora", lora={"r": 4, "modules_to_save": whole})
    seen = chain(stages, BASE, method, method, beside=False)
    assert {type(scorer) for scorer, _, _ in seen} == {SharedModel}
    config = files.read_json(stages.run.stage("reward").model / "adapter_config.json")
    assert sorted({*config["modules_to_save"]} - {"classifier", "score"}) == [n for n in whole if n != "lm_head"]
    assert stages.logged("ppo", "kl")[0] == 0.0
    before, after = stages.before["ppo"], stages.jobs["ppo"].model
    for name, tensor in after.named_parameters():
        if "modules_to_save.default" in name:
            assert not torch.equal(before[name], tensor), "PPO trains it"
        elif "modules_to_save" in name:
            assert torch.equal(before[name], tensor), "the reference keeps its own"


def test_biases_are_not_switched(stages: Stages, tmp_path: Path) -> None:
    """In a talk `/use base` would be the base with the biases of SFT: such a policy stands alone."""
    base = gpt2(tmp_path / "gpt2")
    for bias in ("all", "none"):
        method = settings("lora", lora={"r": 4, "bias": bias})
        stages.execute(stages.ticket("sft", "sft", base, method, dtype="float32", **QUICK))
        with mock.patch.object(find, "finished", lambda folder: stages.outcomes):
            there = policy_switch.policies(stages.run.root, stages.outcomes["sft"])
        assert [*there] == (["sft"] if bias == "all" else ["base", "sft"])


@pytest.mark.parametrize(
    "method",
    [
        "{method: lora, lora: {bias: lora_only}}",
        "{method: boft, peft: {bias: all}}",
        "{method: qlora, lora: {bias: all}}",
    ],
)
def test_no_method_trains_biases_in_ppo(method: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = "name: chain\nmodel: {base: lab}\npipeline: rlhf\nstages:\n  sft: {data: lab/helpdesk}\n"
    text += "  reward: {data: lab/helpdesk_preferences}\n  ppo: {data: lab/helpdesk, parameterization: METHOD}\n"
    path.write_text(text.replace("METHOD", "{method: lora}"))
    assert len(load(path, []).stages) == 3
    with pytest.raises(Exception) as error:
        path.write_text(text.replace("METHOD", method))
        load(path, [])
    assert getattr(error.value, "what", "") == (
        "stage 'ppo' cannot train biases of the base, because they would change the reference too"
    )
