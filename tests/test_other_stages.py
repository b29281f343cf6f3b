"""RLOO, GRPO and KTO: what they train, that their reference is the policy that came in, resumption, and their keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer, KTOConfig, KTOTrainer, RLOOTrainer

from align.data import tokens
from align.data.order import RowOrder
from align.errors import AlignError, Faults
from align.lab import data
from align.policy import stack
from align.recipe import load, training_arguments
from align.rl import reference, rollouts
from align.rl.health import REMEDIES
from align.rl.recorder import WITHOUT_A_CRITIC
from align.rl.rollouts import Rollout
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Reward, Ticket
from align.stage import program as programs
from align.trainers.base import BaseTrainer
from align.trainers.critic_free import TrlLoss
from align.trainers.grpo import GrpoTrainer
from align.trainers.kto import KL_REFERENCE, REFERENCE, KtoTrainer, other_answers
from align.trainers.online import Online
from align.trainers.rloo import RlooTrainer
from models import BASE, FULL, LORA, Stages, changed, lab_tokenizer, preferences, settings
from test_ppo import function
from test_trl_online import OF_ONLINE, OF_RECORD

METHODS = {"full": FULL, "lora": LORA, "ia3": settings("ia3"), "adapter": settings("adapter", adapter={"r": 8})}
RATES = {"full": 3e-4, "ia3": 0.05}
TINY = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "num_generations": 2,
    "max_completion_length": 8,
    "max_steps": 8,  # two rollouts
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}
ONLINE = ("rloo", "grpo")


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def online(
    stages: Stages,
    program: str,
    policy: Policy,
    method: str,
    reward: Reward | None = None,
    *,
    id: str = "rl",
    beta: float = 0.1,
    **training: Any,
) -> Ticket:
    """Two rollouts of four prompts with two answers each."""
    chosen = {**TINY, "learning_rate": RATES.get(method, 5e-3), "bf16": False, **training}
    asked = {"dtype": "float32", "rewards": [reward or function("short")], "rows": data.rows("lab/helpdesk", n=24)}
    return stages.ticket(id, program, policy, METHODS[method], keys={"beta": beta}, **asked, **chosen)


def run(stages: Stages, ticket: Ticket) -> list[Rollout]:
    stages.execute(ticket)
    return rollouts.read(stages.run.stage(ticket.stage).rollouts)


def kto(stages: Stages, policy: Policy, method: str, *, id: str = "kto", **more: Any) -> Ticket:
    chosen = {"rows": preferences(12), "learning_rate": RATES.get(method, 5e-3), "bf16": False, **more}
    return stages.ticket(id, "kto", policy, METHODS[method], dtype="float32", **chosen)


def fine_tuned(stages: Stages) -> Policy:
    return stages.execute(stages.ticket("sft", "sft", BASE, LORA, dtype="float32"))


def assert_trained_as_declared(stages: Stages, id: str, method: str) -> None:
    job = stages.jobs[id]
    moved = changed(stages.before[id], job.model)
    if method == "full":
        assert moved == {name for name, _ in job.model.named_parameters()}
    else:
        assert moved == {name for name, p in job.model.named_parameters() if p.requires_grad}
        assert moved and all(".default" in name for name in moved)


# rloo and grpo


@pytest.mark.parametrize("program", ONLINE)
def test_a_reward_function_gets_the_columns_of_the_rows_that_its_prompts_come_from(
    stages: Stages, program: str
) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {number}"}],
            "columns": {"solution": number, "images": "a name that TRL takes for its own"}
            | ({"level": 7} if number == 1 else {}),
        }
        for number in range(8)
    ]
    ticket = stages.ticket(
        "rl",
        program,
        BASE,
        METHODS["lora"],
        dtype="float32",
        rewards=[function("solved")],
        rows=rows,
        keys={"beta": 0.0},
        **TINY,
        learning_rate=1e-3,
        bf16=False,
    )
    assert len(run(stages, ticket)) == 2


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("program", ONLINE)
def test_an_online_stage_trains_what_it_says_and_records_it(stages: Stages, program: str, method: str) -> None:
    reward_model = stages.execute(stages.ticket("reward", "reward", BASE, METHODS[method], rows=preferences(16)))
    reward = Reward(name="reward", kind="stage", weight=1.0, stage="reward", model=reward_model)
    first, second = run(stages, online(stages, program, BASE, method, reward))
    assert_trained_as_declared(stages, "rl", method)
    assert (first.kl, first.number, second.number, first.episodes, second.step) == (0.0, 1, 2, 8, 4)
    assert second.kl not in (None, 0.0)
    for one in (first, second):
        assert one.score_std > 0 and one.entropy is not None and one.entropy > 0 and 1 <= one.length <= 8
        assert None not in (one.policy_loss, one.clip_fraction, one.distinct_2, one.repetition) and one.coef is None
        assert one.rewards == {"reward": pytest.approx(one.score)} and len(one.samples) == 3
        assert sum(sample.kl for sample in first.samples) == 0
    metrics = stages.outcomes["rl"].metrics
    assert metrics["rollouts"] == 2 and metrics["alarms"] == []
    assert (metrics["score_first"], metrics["score_last"], metrics["kl"]) == (first.score, second.score, second.kl)
    names = load_file(next(stages.run.stage("rl").model.glob("*.safetensors")))
    assert not any("reward" in name or "critic" in name for name in names)


@pytest.mark.parametrize("second", ["lora", "adapter", pytest.param("ia3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", ONLINE)
def test_the_reference_of_a_continued_or_stacked_policy_is_the_one_that_came_in(
    stages: Stages, program: str, second: str
) -> None:
    policy = fine_tuned(stages)
    seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def see(self: Any, inputs: Any, out: dict[str, Any]) -> None:
        seen.append((self.seen.reference[0], out))

    with spying("_generate_and_score_completions", see):
        first, last = run(stages, online(stages, program, policy, second))
    assert first.kl == 0.0 and last.kl not in (None, 0.0)
    plain = stack.load_policy(policy, {"dtype": "float32"}, stages.run.root).eval()
    for theirs, out in seen:  # also after the policy has moved
        torch.testing.assert_close(theirs * out["completion_mask"], of_answers(plain, out), atol=2e-4, rtol=1e-4)
    if second == "ia3":  # onto a policy of the same kind: continued
        own = stages.outcomes["rl"].policy
        assert own is not None
        again, last = run(stages, online(stages, program, own, second, id="again"))
        assert again.kl == 0.0 and last.kl not in (None, 0.0)


def of_answers(model: Any, out: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a rollout's tokens, (answers, tokens), 0 at padding."""
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    keep = out["completion_ids"].size(1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1].float()
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, out["completion_ids"][..., None])[..., 0]
    return found * out["completion_mask"]


@contextmanager
def spying(name: str, see: Callable[..., None]) -> Any:
    """Look at what a method of the online trainers gives."""
    own = getattr(TrlLoss, name)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(self, *args, **kwargs)
        see(self, *args, found, **kwargs)
        return found

    with mock.patch.object(TrlLoss, name, called):
        yield


def test_the_kl_is_known_where_grpo_asks_for_no_log_probabilities(stages: Stages) -> None:
    """All updates of a rollout are one step: TRL takes the policy's own for those that it sampled with."""
    whole = {"gradient_accumulation_steps": 2, "num_iterations": 1, "max_steps": 3}
    found = run(stages, online(stages, "grpo", BASE, "lora", **whole))
    assert [one.step for one in found] == [0, 1, 2]
    assert found[0].kl == 0.0 and found[1].kl not in (None, 0.0)


@pytest.mark.parametrize("program", ONLINE)
def test_without_a_coefficient_there_is_no_reference(stages: Stages, program: str) -> None:
    with mock.patch.object(reference, "Swapped", side_effect=AssertionError("held twice")):
        found = run(stages, online(stages, program, BASE, "full", beta=0.0))
    assert [one.kl for one in found] == [None, None]
    assert all(sample.kl is None for one in found for sample in one.samples)
    assert stages.outcomes["rl"].metrics["kl"] is None


RESUMED = [
    pytest.param(method, at, marks=[] if at == 3 and method == "lora" else pytest.mark.slow, id=f"{method}, {where}")
    for method in ("lora", "full")
    for at, where in ((4, "at a rollout's end"), (3, "inside a rollout"))
]


@pytest.mark.parametrize(("method", "at"), RESUMED)
@pytest.mark.parametrize("program", ONLINE)
def test_a_resumed_online_stage_has_the_same_weights_and_record(
    tmp_path: Path, program: str, method: str, at: int
) -> None:
    adaptive = {"use_adaptive_entropy": True, "entropy_target": 3.0} if program == "grpo" else {}

    def hashes(name: str, *, resume: bool) -> dict[str, str]:
        stages = Stages(RunDir(tmp_path / name))
        saving = {"save_strategy": "steps", "save_steps": at, "save_total_limit": 5, "max_steps": 10}
        ticket = online(stages, program, BASE, method, **saving, **adaptive)
        stages.execute(ticket)
        here = stages.run.stage("rl")
        if resume:
            here.outcome.unlink()
            ticket.resume_from = f"checkpoints/checkpoint-{at}"
            stages.execute(ticket)
        return {path.name: files.file_sha256(path) for path in [*here.model.glob("*.safetensors"), here.rollouts]}

    whole = hashes("whole", resume=False)
    assert len(whole) == 2 and hashes("resumed", resume=True) == whole


def test_a_level_reward_is_told_with_what_these_stages_can_do(stages: Stages) -> None:
    ticket = online(stages, "rloo", BASE, "lora", function("level"), max_steps=16)
    assert [alarm.name for one in run(stages, ticket) for alarm in one.alarms] == ["flat_reward"]
    assert any("flat reward in rollout 3" in said for said in stages.outcomes["rl"].warnings)


@pytest.mark.parametrize("program", ONLINE)
def test_remedies_name_keys_that_the_stage_has(program: str) -> None:
    declared = programs.load(program, Path()).stage
    assert declared.arguments is not None
    own, trainers = (
        set(declared.keys.model_fields),
        set(training_arguments.open_to_users(declared.arguments, declared.reserved)),
    )
    for name, remedy in ({**REMEDIES, **WITHOUT_A_CRITIC}).items():
        if name == "dead_critic":
            continue
        for key in re.findall(r"`([\w.]+)`", remedy):
            assert key.removeprefix("training.") in (trainers if key.startswith("training.") else own), (name, key)


def test_a_run_that_ends_within_a_rollout_tells_of_it(stages: Stages) -> None:
    (only,) = run(stages, online(stages, "rloo", BASE, "lora", max_steps=2))
    assert only.clip_fraction is not None
    assert stages.outcomes["rl"].metrics["rollouts"] == 1


def test_the_stage_of_rewards_in_the_docs_runs_and_resumes(stages: Stages, tmp_path: Path) -> None:
    """`Online` alone: without a record of rollouts, and with exact resumption inside one."""
    page = (Path(__file__).parents[1] / "docs" / "stages.md").read_text(encoding="utf-8")
    file = tmp_path / "own_rloo.py"
    file.write_text(next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "RLOO" in code))
    rows = data.rows("lab/helpdesk", n=24)
    training = {**TINY, "max_steps": 4, "save_strategy": "steps", "save_steps": 3, "learning_rate": 5e-3}
    ticket = stages.ticket("own", str(file), BASE, LORA, rewards=[function("short")], rows=rows, **training)
    stages.execute(ticket)
    weights = stages.run.stage("own").model / "adapter_model.safetensors"
    whole = files.file_sha256(weights)
    stages.run.stage("own").outcome.unlink()
    ticket.resume_from = "checkpoints/checkpoint-3"
    stages.execute(ticket)
    assert files.file_sha256(weights) == whole


# kto


@pytest.mark.parametrize("method", ["lora", "full", pytest.param("ia3", marks=pytest.mark.slow)])
def test_the_reference_of_kto_is_the_policy_that_came_in(stages: Stages, method: str) -> None:
    policy = fine_tuned(stages)
    rows, held = preferences(12), preferences(20)[12:]
    stages.execute(kto(stages, policy, method, rows=rows, held=held))
    assert_trained_as_declared(stages, "kto", method)
    assert stages.logged("kto", "kl")[0] == pytest.approx(0.0, abs=1e-4)
    assert stages.logged("kto", "loss")[0] == pytest.approx(0.5, abs=1e-3)
    assert stages.logged("kto", "loss")[-1] < 0.5 and stages.logged("kto", "eval_loss")
    plain = stack.load_policy(policy, {"dtype": "float32"}, stages.run.root).eval()
    for name, batch, asked in (("train", 4, rows), ("eval", 16, held)):
        columns = tokens.together(
            tokens.unpaired(asked, lab_tokenizer(), KTOConfig(output_dir="", use_cpu=True, bf16=False))
        )
        count = len(columns["label"])
        order = list(range(count))
        if name == "train":
            order = RowOrder(columns[tokens.LENGTH], [0] * count, batch, "group_by_length", 3).rows(0)
        found = load_file(stages.run.stage("kto").root / f"reference-{name}.safetensors")
        assert found["rows"].tolist() == order
        prompts, answers = columns["prompt_ids"], columns["completion_ids"]
        others, used = other_answers(order, batch, [tuple(ids) for ids in prompts]), order[:16]  # four steps of four
        for column, taken in ((REFERENCE, order), (KL_REFERENCE, others)):
            expected = [of_row(plain, prompts[row], answers[taken[at]]) for at, row in enumerate(used)]
            torch.testing.assert_close(found[column][: len(used)], torch.tensor(expected), atol=5e-4, rtol=1e-4)
            assert found[column][len(used) :].isnan().all()


def of_row(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())


def test_a_pair_gives_one_desirable_and_one_undesirable_answer() -> None:
    rows = preferences(3)
    columns = tokens.together(
        tokens.unpaired(rows, lab_tokenizer(), KTOConfig(output_dir="", use_cpu=True, bf16=False))
    )
    assert columns["label"] == [True] * 3 + [False] * 3
    for i, row in enumerate(rows):
        chosen, rejected = (lab_tokenizer().decode(columns["completion_ids"][i + k]) for k in (0, 3))
        assert row["chosen"][0]["content"] in chosen and row["rejected"][0]["content"] in rejected
        assert columns["prompt_ids"][i] == columns["prompt_ids"][i + 3]
    with pytest.raises(AlignError, match="every prompt alone fills max_length"):
        tokens.together(
            tokens.unpaired(rows, lab_tokenizer(), KTOConfig(output_dir="", use_cpu=True, bf16=False, max_length=2))
        )


def test_other_answers_are_those_of_the_same_batch() -> None:
    """As TRL deals them out where all prompts differ: 3 comes again, to fill the last batch, and has another there."""
    assert other_answers([3, 1, 0, 2, 4, 3, 5, 1], 4, "abcdef") == [2, 3, 1, 0, 1, 4, 3, 5]


def test_other_answers_are_to_other_prompts() -> None:
    """32 pairs by length, eight answers a batch: both answers of a pair stand side by side."""
    prompts = [number % 32 for number in range(64)]
    order = [row for prompt in range(32) for row in (prompt, prompt + 32)]
    found = other_answers(order, 8, prompts)
    assert not any(prompts[row] == prompts[other] for row, other in zip(order, found, strict=True))
    for start in range(0, 64, 8):
        assert sorted(found[start : start + 8]) == sorted(order[start : start + 8]), "each answer of the batch once"


@pytest.mark.parametrize("batch", [2, 3, 4, 6])
def test_other_answers_where_a_prompt_fills_a_batch(batch: int) -> None:
    prompts = "aaaaabcdaaab"
    order = list(range(12))
    found = other_answers(order, batch, prompts)
    for at, (row, other) in enumerate(zip(order, found, strict=True)):
        own = order[at // batch * batch : (at // batch + 1) * batch]
        assert prompts[row] != prompts[other]
        if len({prompts[i] for i in own}) > 1:
            assert other in own, "of the batch, if that has one"


def test_answers_to_one_prompt_are_refused(stages: Stages) -> None:
    rows = [row | {"prompt": preferences(1)[0]["prompt"]} for row in preferences(8)]
    with pytest.raises(AlignError) as refused:
        stages.execute(kto(stages, BASE, "lora", rows=rows))
    assert str(refused.value) == (
        "all answers have the same prompt, but the loss 'kto' estimates the KL from answers to other prompts\n"
        "  -> use `loss_type: apo_zero_unpaired`, or data with more prompts"
    )
    stages.execute(kto(stages, BASE, "lora", rows=rows, keys={"loss_type": "apo_zero_unpaired"}, id="against_nothing"))


def test_a_held_out_pair_alone_gets_the_answers_of_others(stages: Stages) -> None:
    stages.execute(kto(stages, BASE, "lora", held=preferences(13)[12:]))
    assert len(stages.logged("kto", "eval_kl")) == 5  # 0.2 of four steps is each one, and before the first


def test_accumulation_is_in_no_figure_of_kto(tmp_path: Path) -> None:
    """Nor in what is trained on: KL is that of the whole update, and a part of one side alone counts for no more."""
    found, weights = [], []
    for parts in (1, 2, 4):
        stages = Stages(RunDir(tmp_path / str(parts)))
        size = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        still = {"optim": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "lr_scheduler_type": "constant"}
        given = {"max_steps": 5, "train_sampling_strategy": "random", "keys": {"undesirable_weight": 0.1}}
        stages.execute(kto(stages, BASE, "lora", **given, **size, **still))
        names = ("loss", "kl", "entropy", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen")
        found.append({name: stages.logged("kto", name) for name in (*names, "logps/rejected", "logits/chosen")})
        weights.append(load_file(stages.run.stage("kto").model / "adapter_model.safetensors"))
    assert abs(found[0]["rewards/margins"][-1]) > 1e-3 and max(found[0]["kl"]) > 1e-3
    for other in found[1:]:
        for name, values in found[0].items():
            assert other[name] == pytest.approx(values, rel=1e-4, abs=2e-5), name
    for other in weights[1:]:
        assert max(float((other[name] - tensor).abs().max()) for name, tensor in weights[0].items()) < 1e-5


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_resumed_kto_stage_has_the_same_weights(tmp_path: Path, method: str, loss: str) -> None:
    """In its second epoch, whose batches are those of the first."""

    def hashes(name: str, *, resume: bool) -> dict[str, str]:
        stages = Stages(RunDir(tmp_path / name))
        keys = {"loss_type": loss, "undesirable_weight": 1.5}
        saving = {"save_strategy": "steps", "save_steps": 7, "save_total_limit": 5, "max_steps": 9}
        ticket = kto(stages, BASE, method, rows=preferences(12), keys=keys, **saving)  # six batches of four
        stages.execute(ticket)
        here = stages.run.stage("kto")
        if resume:
            here.outcome.unlink()
            here.reference.with_name("reference-train.safetensors").unlink()
            ticket.resume_from = "checkpoints/checkpoint-7"
            stages.execute(ticket)
        return {path.name: files.file_sha256(path) for path in here.model.glob("*.safetensors")}

    whole = hashes("whole", resume=False)
    assert whole and hashes("resumed", resume=True) == whole


def test_every_epoch_of_kto_has_the_same_batches(stages: Stages) -> None:
    orders: list[list[int]] = []
    own = KtoTrainer._get_train_sampler

    def sampler(self: Any, *args: Any) -> Any:
        found = own(self, *args)
        for number in range(2):
            found.set_epoch(number)
            orders.append(list(found))
        return found

    with mock.patch.object(KtoTrainer, "_get_train_sampler", sampler):
        stages.execute(kto(stages, BASE, "lora", max_steps=2))
    places = load_file(stages.run.stage("kto").root / "reference-train.safetensors")["rows"].tolist()
    assert orders[0] == orders[1] == list(range(24)), "the places of one epoch"
    assert sorted(places) == list(range(24)) != places


# keys


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("rloo: {data: lab/helpdesk}", "the key 'stages.rloo.reward' is missing"),
        ("rloo: {data: lab/helpdesk, reward: x, beta: -1}", "'stages.rloo.beta' must be at least 0, not -1"),
        ("rloo: {data: lab/helpdesk, reward: x, training: {beta: 1.0}}", "'beta' is a key of the stage, not of"),
        ("rloo: {data: lab/helpdesk, reward: x, training: {reward_weights: [1.0]}}", "is set by the stage"),
        ("grpo: {data: lab/helpdesk, reward: x, kl: {coef: 0.1}}", "unknown key 'stages.grpo.kl'"),
        ("grpo: {data: lab/helpdesk, reward: x, training: {loss_typ: grpo}}", "trl.GRPOConfig has no argument"),
        ("grpo: {data: lab/helpdesk, reward: x, eval_data: 0.1}", "the stage 'grpo' computes no loss on held-out rows"),
        ("kto: {data: lab/helpdesk_preferences, beta: 0}", "'stages.kto.beta' must be greater than 0, not 0"),
        ("kto: {data: lab/helpdesk_preferences, loss_type: kot}", "'stages.kto.loss_type' cannot be 'kot'"),
        ("kto: {data: lab/helpdesk_preferences, training: {beta: 0.2}}", "'beta' is a key of the stage, not of"),
        (
            "kto: {data: lab/helpdesk_preferences, training: {per_device_train_batch_size: 1}}",
            "estimates the KL from the other answers of a batch, but a batch has only one",
        ),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, entry: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: x\nmodel: {{base: lab}}\nstages:\n  {entry}\n", encoding="utf-8")
    with pytest.raises((AlignError, Faults), match=re.escape(said)):
        load.load(file)


# what of TRL they rely on


OF_LOSS = {
    **OF_ONLINE,
    **OF_RECORD,
    "_compute_loss": ["self", "model", "inputs"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
}
OF_KTO = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_set_signature_columns_if_needed": ["self"],
    "_compute_kl_logps": ["self", "model", "batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "evaluation_loop": [
        *("self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    ],
}
OVERRIDDEN = [(trainer, name, start) for trainer in (RLOOTrainer, GRPOTrainer) for name, start in OF_LOSS.items()]
OVERRIDDEN += [(KTOTrainer, name, start) for name, start in OF_KTO.items()]


@pytest.mark.parametrize(("trainer", "name", "start"), OVERRIDDEN, ids=[f"{t.__name__}.{n}" for t, n, _ in OVERRIDDEN])
def test_an_overridden_method_is_as_it_was(trainer: type, name: str, start: list[str]) -> None:
    method = getattr(trainer, name, None)
    assert method is not None, f"{trainer.__name__}.{name} is gone: our override of it is never called"
    found = list(inspect.signature(method).parameters)
    assert found[: len(start)] == start, f"{trainer.__name__}.{name} takes {found} now; it began with {start}"


def test_we_override_what_we_mean_to_and_nothing_else() -> None:
    mixed = ((Online, GRPOTrainer, OF_LOSS), (TrlLoss, RLOOTrainer, OF_LOSS), (TrlLoss, GRPOTrainer, OF_LOSS))
    for ours, theirs, meant in (*mixed, (KtoTrainer, KTOTrainer, OF_KTO)):
        own = {name for name in vars(ours) if not name.startswith("__")}
        clash = {name for name in own if hasattr(theirs, name) or hasattr(BaseTrainer, name)}
        unmeant = clash - set(meant) - {"row_order"}
        assert not unmeant, f"{ours.__name__} and {theirs.__name__} share {sorted(unmeant)}"


@pytest.mark.parametrize("trainer", [RLOOTrainer, GRPOTrainer])
def test_a_reference_that_is_given_is_the_one_that_is_called(trainer: type) -> None:
    """For PEFT models too: only without one TRL goes for its adapter "ref"."""
    source = inspect.getsource(trainer._generate_and_score_completions)  # type: ignore[attr-defined]
    asked = r"if self\.ref_model is not None:\s+ref_per_token_logps, _, _ = self\._get_per_token_logps_and_entropies\("
    assert re.search(asked + r"\s+self\.ref_model,", source)
    loss = inspect.getsource(trainer._compute_loss)  # type: ignore[attr-defined]
    assert "ref_model" not in loss and "use_adapter" not in loss
    assert issubclass(RlooTrainer, RLOOTrainer) and issubclass(GrpoTrainer, GRPOTrainer)


def test_a_rollout_of_grpo_holds_tensors_alone(stages: Stages) -> None:
    """All of it is in a checkpoint; what TRL would add for images is not, and no row has any."""
    kinds: set[type] = set()
    with spying("_generate_and_score_completions", lambda self, _, out: kinds.update(map(type, out.values()))):
        run(stages, online(stages, "grpo", BASE, "lora", max_steps=1))
    assert kinds == {torch.Tensor}


def test_the_columns_of_kto_have_trls_names() -> None:
    source = inspect.getsource(KTOTrainer._set_signature_columns_if_needed)
    for name in ("prompt_ids", "completion_ids", "KL_completion_ids", "label", REFERENCE, KL_REFERENCE):
        assert f'"{name}"' in source, f"KTOTrainer has no column {name} any more"
    loss = inspect.getsource(KTOTrainer._compute_loss)
    assert 'batch["ref_logps"]' in loss and 'batch["ref_KL_logps"]' in loss
    assert "kl = (KL_logps - ref_KL_logps).mean()" in loss and "self._compute_kl_logps(model, batch)" in loss
