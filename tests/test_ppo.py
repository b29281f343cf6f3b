"""PPO: every critic with every reference, every parameterization, resumption, and what must be exact is."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from align.errors import AlignError
from align.lab import data
from align.rl import rollouts
from align.rl.rollouts import Rollout
from align.run_folder import files as run_files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Reward, Ticket
from align.trainers.ppo import PpoTrainer
from align.worker import execute
from models import BASE, FULL, LORA, QLORA, Stages, changed, lab_tokenizer, preferences, settings

FUNCTIONS = Path(__file__).parent / "rewards_for_tests.py"
METHODS = {
    "full": FULL,
    "lora": LORA,
    "qlora": QLORA,
    "spectrum": settings("spectrum"),
    "adapter": settings("adapter", adapter={"r": 8}),
}
TINY = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "num_generations": 1,
    "max_completion_length": 8,
    "max_steps": 8,  # two rollouts
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def function(name: str, weight: float = 1.0) -> Reward:
    return Reward(name=name, kind="function", weight=weight, path=str(FUNCTIONS), function=name)


def trained_reward(stages: Stages, policy: Policy, method: dict[str, Any], dtype: str = "float32") -> Reward:
    ticket = stages.ticket("reward", "reward", policy, method, rows=preferences(16), dtype=dtype, max_steps=2)
    return Reward(name="reward", kind="stage", weight=1.0, stage="reward", model=stages.execute(ticket))


def ppo(
    stages: Stages,
    policy: Policy,
    method: dict[str, Any],
    reward: Reward,
    *,
    id: str = "ppo",
    dtype: str = "float32",
    replay: list[dict[str, Any]] | None = None,
    training: dict[str, Any] | None = None,
    **keys: Any,
) -> Ticket:
    rows = data.rows("lab/helpdesk", n=24)
    asked = {"dtype": dtype, "rewards": [reward], "rows": rows, "replay": replay, "keys": keys}
    rate = 3e-4 if method["method"] in ("full", "spectrum") else 5e-3
    return stages.ticket(id, "ppo", policy, method, **asked, **{**TINY, "learning_rate": rate, **(training or {})})


def run(stages: Stages, ticket: Ticket) -> list[Rollout]:
    stages.execute(ticket)
    return rollouts.read(stages.run.stage(ticket.stage).rollouts)


# critics and references

SETUPS = [
    ("lora", "adapter", "auto"),
    ("lora", "adapter", "model"),
    ("lora", "head", "auto"),
    ("lora", "model", "auto"),
    ("lora", "model", "model"),
    ("full", "head", "auto"),
    ("full", "head", "model"),
    ("full", "model", "auto"),
    ("full", "model", "model"),
    ("spectrum", "head", "auto"),
    ("qlora", "adapter", "auto"),
    ("adapter", "adapter", "auto"),
]


@pytest.mark.parametrize(("method", "critic", "reference"), SETUPS)
def test_the_kl_is_exactly_0_at_the_start_and_then_is_not(
    stages: Stages, method: str, critic: str, reference: str
) -> None:
    dtype = "bfloat16" if method == "qlora" else "float32"
    ticket = ppo(stages, BASE, METHODS[method], function("short"), dtype=dtype, critic=critic, reference=reference)
    first, second = run(stages, ticket)
    assert first.kl == 0.0
    assert second.kl not in (None, 0.0)


@pytest.mark.parametrize("second", ["lora", "adapter", pytest.param("ia3", marks=pytest.mark.slow)])
def test_the_reference_of_a_continued_or_stacked_policy_is_the_one_that_came_in(stages: Stages, second: str) -> None:
    """LoRA on itself goes on with the same adapter; another method goes on top. IA3 is what TRL's own copy loses."""
    method = settings("ia3") if second == "ia3" else METHODS[second]
    policy = stages.execute(stages.ticket("sft", "sft", BASE, METHODS["lora"], dtype="float32"))
    reward = trained_reward(stages, policy, METHODS["lora"])
    rate = {"training": {"learning_rate": 0.05}} if second == "ia3" else {}
    first, last = run(stages, ppo(stages, policy, method, reward, **rate))
    assert first.kl == 0.0
    assert last.kl not in (None, 0.0)
    if second == "ia3":  # onto a policy of the same kind: continued
        third = ppo(stages, stages.outcomes["ppo"].policy or policy, method, function("short"), id="again", **rate)
        again, last = run(stages, third)
        assert again.kl == 0.0 and last.kl not in (None, 0.0)


def test_values_start_as_the_reward_model_scores(stages: Stages) -> None:
    """At an answer's last token, where the reward model was trained to judge."""
    reward = trained_reward(stages, BASE, METHODS["lora"])
    seen: list[torch.Tensor] = []
    with spying("_record", lambda self, out, mask, scores, scored, kl, values, returns: seen.extend([values, scores])):
        run(stages, ppo(stages, BASE, METHODS["lora"], reward, critic="adapter"))
    assert seen[0].abs().max() > 0


@contextmanager
def spying(name: str, see: Any) -> Any:
    """Look at the arguments of the trainer's first call of a method."""
    own, done = getattr(PpoTrainer, name), []

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            see(self, *args, **kwargs)
        return own(self, *args, **kwargs)

    with mock.patch.object(PpoTrainer, name, called):
        yield


# what is trained, and resumption


@pytest.mark.parametrize("method", METHODS)
def test_a_ppo_stage_trains_what_it_says(stages: Stages, method: str) -> None:
    dtype = "bfloat16" if method == "qlora" else "float32"
    reward = trained_reward(stages, BASE, METHODS[method], dtype)
    run(stages, ppo(stages, BASE, METHODS[method], reward, dtype=dtype))
    job, outcome = stages.jobs["ppo"], stages.outcomes["ppo"]
    moved = changed(stages.before["ppo"], job.model)
    policy = {name for name in moved if ".align_value." not in name}
    if method in ("lora", "qlora", "adapter"):
        assert policy and all(".default." in name for name in policy)
        assert moved - policy  # the critic's adapter learnt, and is no part of the policy
        assert not any("reward" in name for name in moved)
    elif method == "full":
        assert policy == {name for name, _ in job.model.named_parameters()}
    else:
        assert {name.removesuffix(".weight") for name in policy} == set(outcome.trained)
    files = load_file(next(stages.run.stage("ppo").model.glob("*.safetensors")))
    assert not any("critic" in name or "value" in name or "score" in name for name in files)
    critic = load_file(stages.run.stage("ppo").critic / "critic.safetensors")
    assert any("head" in name for name in critic)
    assert not hasattr(
        job.model.get_base_model() if hasattr(job.model, "get_base_model") else job.model, "align_critic"
    )


RESUMED = [
    pytest.param(
        method,
        at,
        marks=[] if (method, at) in (("lora", 4), ("lora", 3), ("full", 3)) else pytest.mark.slow,
        id=f"{method}, {where}",
    )
    for method in METHODS
    for at, where in ((4, "at a rollout's end"), (3, "inside a rollout"))
]


@pytest.mark.parametrize(("method", "at"), RESUMED)
def test_a_resumed_run_has_the_same_weights_critic_and_coefficient(tmp_path: Path, method: str, at: int) -> None:
    dtype = "bfloat16" if method == "qlora" else "float32"

    def hashes(name: str, *, resume: bool) -> dict[str, str]:
        stages = Stages(RunDir(tmp_path / name))
        reward = trained_reward(stages, BASE, METHODS[method], dtype)
        saving = {"save_strategy": "steps", "save_steps": at, "save_total_limit": 5, "max_steps": 10}
        ticket = ppo(stages, BASE, METHODS[method], reward, dtype=dtype, training=saving)
        stages.execute(ticket)
        here = stages.run.stage("ppo")
        if resume:
            here.outcome.unlink()
            ticket.resume_from = f"checkpoints/checkpoint-{at}"
            stages.execute(ticket)
        files = [*here.model.glob("*.safetensors"), here.critic / "critic.safetensors", here.rollouts]
        return {path.name: run_files.file_sha256(path) for path in files}

    whole = hashes("whole", resume=False)
    assert hashes("resumed", resume=True) == whole
    assert "rollouts.jsonl" in whole  # with the coefficient, the KL and the samples of every rollout


# the loss


@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_ratio_of_the_first_update_is_1(stages: Stages, minibatches: int) -> None:
    """Also among several: it is a batch from which the old log-probabilities were made."""
    ratios: list[torch.Tensor] = []
    training = {"steps_per_generation": minibatches, "per_device_train_batch_size": 8, "num_iterations": 1}

    def see(self: Any, log_probs: torch.Tensor, old: torch.Tensor, *rest: Any) -> None:
        ratios.append((log_probs - old).detach())

    with spying("_measure", see):
        run(stages, ppo(stages, BASE, METHODS["lora"], function("short"), training=training))
    assert ratios[0].abs().max() == 0


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_checkpointed_activations_change_nothing(stages: Stages, critic: str) -> None:
    """As on a GPU, where they are the default: transformers enables them in its own way."""
    plain = run(stages, ppo(stages, BASE, METHODS["lora"], function("short"), id="plain", critic=critic))
    on = {"gradient_checkpointing": True}
    again = run(stages, ppo(stages, BASE, METHODS["lora"], function("short"), id="on", critic=critic, training=on))
    assert again[1].kl == pytest.approx(plain[1].kl, abs=1e-4)
    assert again[1].explained_variance == pytest.approx(plain[1].explained_variance, abs=1e-3)


def test_replayed_rows_are_learnt_beside_the_answers(stages: Stages) -> None:
    """With no reward to speak of, the text of the replay is what changes the policy."""
    rows = [{"text": "The moon is made of old green cheese, they say in the village."}] * 8
    ticket = ppo(
        stages,
        BASE,
        METHODS["lora"],
        function("level", weight=0.0),
        replay=rows,
        kl={"controller": "fixed", "coef": 0.0},
        training={"max_steps": 24, "logging_steps": 1},
    )
    run(stages, ticket)
    losses = stages.logged("ppo", "loss/ptx")
    assert losses[-1] < 0.7 * losses[0]


def test_a_warming_critic_leaves_the_policy_alone(stages: Stages) -> None:
    for critic in ("adapter", "head"):
        ticket = ppo(stages, BASE, METHODS["lora"], function("short"), id=critic, critic=critic, critic_warmup=2)
        assert [one.kl for one in run(stages, ticket)] == [0.0, 0.0]
        moved = changed(stages.before[critic], stages.jobs[critic].model)
        assert not any(".default." in name for name in moved)


def test_target_kl_ends_the_updates_of_a_rollout(stages: Stages) -> None:
    free = run(stages, ppo(stages, BASE, METHODS["lora"], function("short"), id="free"))
    held = run(stages, ppo(stages, BASE, METHODS["lora"], function("short"), id="held", target_kl=1e-9))
    assert free[0].stopped == 0
    assert held[0].stopped is not None and held[0].stopped >= 0.5
    assert free[0].approx_kl is not None and held[0].approx_kl is not None
    assert abs(held[0].approx_kl) < abs(free[0].approx_kl)


def test_the_end_of_an_answer_is_worth_something(stages: Stages) -> None:
    plain = run(stages, ppo(stages, BASE, METHODS["lora"], function("level"), id="plain"))
    dear = run(stages, ppo(stages, BASE, METHODS["lora"], function("level"), id="dear", missing_eos_penalty=2.0))
    assert plain[0].score == pytest.approx(1.0)
    assert dear[0].score == pytest.approx(1.0 - 2.0 * dear[0].missing_eos)
    assert dear[0].missing_eos > 0


def test_rewards_are_summed_by_their_weights(stages: Stages) -> None:
    ticket = ppo(stages, BASE, METHODS["lora"], function("short", 2.0))
    ticket.rewards.append(function("varied", -0.5))
    ticket.keys["reward"] = ["short", "varied"]
    first = run(stages, ticket)[0]
    assert first.score == pytest.approx(2.0 * first.rewards["short"] - 0.5 * first.rewards["varied"], abs=1e-4)


# what a reward function may do wrong


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "raises",
            r"the reward function 'raises' of rewards_for_tests.py raised KeyError: 'missing' \(line 21; the first",
        ),
        ("exits", "the reward function 'exits' of rewards_for_tests.py raised SystemExit: 3"),
        ("none_for_all", "none of the 8 answers of a rollout could be scored: 'none_for_all' returned None for each"),
        ("too_few", "the reward function 'too_few' of rewards_for_tests.py returned 7 scores for 8 answers"),
        ("not_a_number", "the reward function 'not_a_number' of rewards_for_tests.py returned nan for the prompt '"),
    ],
)
def test_a_wrong_reward_function_is_told_by_name(stages: Stages, name: str, said: str) -> None:
    with pytest.raises(AlignError, match=said):
        run(stages, ppo(stages, BASE, METHODS["lora"], function(name)))


def test_answers_without_a_score_are_left_out(stages: Stages) -> None:
    first = run(stages, ppo(stages, BASE, METHODS["lora"], function("none_for_some")))[0]
    assert first.episodes == 4 and first.score == 1.0


def test_a_reward_that_scored_nothing_has_no_mean(stages: Stages) -> None:
    """Not NaN, which no strict reader of JSON takes."""
    ticket = ppo(stages, BASE, METHODS["lora"], function("level"))
    ticket.rewards.append(function("none_for_all"))
    ticket.keys["reward"] = ["level", "none_for_all"]
    assert run(stages, ticket)[0].rewards == {"level": 1.0, "none_for_all": None}
    assert "NaN" not in (stages.run.stage("ppo").root / "rollouts.jsonl").read_text()


def test_a_level_reward_raises_an_alarm_and_can_stop_the_stage(stages: Stages) -> None:
    training = {"max_steps": 16}
    ticket = ppo(stages, BASE, METHODS["lora"], function("level"), training=training)
    assert [alarm.name for one in run(stages, ticket) for alarm in one.alarms] == ["flat_reward"]
    assert any("flat reward in rollout 3" in said for said in stages.outcomes["ppo"].warnings)
    ticket = ppo(stages, BASE, METHODS["lora"], function("level"), id="strict", training=training, on_alarm="stop")
    with pytest.raises(AlignError, match="flat reward"):
        stages.execute(ticket)


def test_an_adapter_critic_needs_a_frozen_base(stages: Stages) -> None:
    ticket = ppo(stages, BASE, METHODS["full"], function("short"), critic="adapter")
    with pytest.raises(AlignError, match="needs a frozen base"):
        execute.do(stages.run, ticket, lambda: False)


def test_a_run_that_ended_and_was_not_measured_keeps_its_figures(stages: Stages) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5}
    ticket = ppo(stages, BASE, METHODS["lora"], function("level"), training={**saving, "max_steps": 12})
    first = run(stages, ticket)
    metrics, said = stages.outcomes["ppo"].metrics, stages.outcomes["ppo"].warnings
    stages.run.stage("ppo").outcome.unlink()
    ticket.resume_from = "checkpoints/checkpoint-12"
    assert run(stages, ticket) == first
    again = stages.outcomes["ppo"]
    for figure in ("rollouts", "score_first", "score_last", "kl", "alarms"):
        assert again.metrics[figure] == metrics[figure]
    assert again.warnings == said and said


def test_a_model_with_dropout_of_its_own_starts_at_its_reference(stages: Stages, tmp_path: Path) -> None:
    """OPT keeps its rates as numbers, which TRL does not switch off; the hidden states of some of them have another
    width outside their layers."""
    config = OPTConfig(
        vocab_size=800, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.update({"dropout": 0.3, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1})
    config.eos_token_id = 4
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    lab_tokenizer().save_pretrained(tmp_path / "opt")
    base = Policy(base=BaseModelIdentity(name="opt", path=str(tmp_path / "opt"), identity="1" * 64))
    first, second = run(stages, ppo(stages, base, METHODS["lora"], trained_reward(stages, base, METHODS["lora"])))
    assert first.kl == 0.0 and second.kl not in (None, 0.0)
