"""SDFT: what it trains, by which teacher, its record, resumption, its keys and rows, what of TRL it relies on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from trl.experimental.sdft import SDFTTrainer

import runs
from align.data import demonstrations, encode
from align.data.formats import Example
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError, Faults, Place
from align.lab import data
from align.policy import stack
from align.recipe import load
from align.rl import rollouts
from align.rl.rollouts import Rollout
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Ticket
from align.trainers.base import BaseTrainer
from align.trainers.sdft import SdftTrainer
from models import BASE, FULL, LORA, QLORA, Stages, changed, lab_tokenizer, settings
from test_resume import kill_child

METHODS = {"full": FULL, "lora": LORA, "qlora": QLORA, "ia3": settings("ia3"), "spectrum": settings("spectrum")}
RATES = {"full": 3e-4, "spectrum": 3e-4, "ia3": 0.05}
TINY = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 8,
    "teacher_prompt_template": "{prompt} {privileged_context}",
    "distillation_mode": "full_logits",
    "max_steps": 8,  # two rollouts
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "bf16": False,
}
ROWS = data.rows("lab/helpdesk", n=24)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def sdft(
    stages: Stages, policy: Policy, method: str, *, id: str = "sdft", teacher: str = "incoming", **more: Any
) -> Ticket:
    """Two rollouts of eight prompts."""
    chosen = {**TINY, "learning_rate": RATES.get(method, 5e-3), **more}
    return stages.ticket(
        id, "sdft", policy, METHODS[method], rows=ROWS, keys={"teacher": teacher}, dtype="float32", **chosen
    )


def run(stages: Stages, ticket: Ticket) -> list[Rollout]:
    stages.execute(ticket)
    return rollouts.read(stages.run.stage(ticket.stage).rollouts)


@contextmanager
def spying(name: str, see: Callable[..., None]) -> Iterator[None]:
    """Look at what a method of the trainer gives."""
    own = getattr(SdftTrainer, name)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(self, *args, **kwargs)
        see(self, *args, found, **kwargs)
        return found

    with mock.patch.object(SdftTrainer, name, called):
        yield


@pytest.mark.parametrize(
    "method", ["lora", "full", *(pytest.param(m, marks=pytest.mark.slow) for m in ("qlora", "ia3", "spectrum"))]
)
def test_it_trains_what_it_says_and_records_its_rollouts(stages: Stages, method: str) -> None:
    first, second = run(stages, sdft(stages, BASE, method))
    job = stages.jobs["sdft"]
    moved = changed(stages.before["sdft"], job.model)
    assert moved == {name for name, parameter in job.model.named_parameters() if parameter.requires_grad}
    assert (first.number, second.number, first.episodes, second.step) == (1, 2, 8, 4)
    for one in (first, second):
        assert (one.score, one.score_std, one.kl, one.rewards) == (None, None, None, {})
        assert one.policy_loss is not None and one.policy_loss > 0 and 1 <= one.length <= 8
        assert one.distinct_2 and one.repetition is not None and 0 <= one.missing_eos <= 1 and len(one.samples) == 3
    assert stages.outcomes["sdft"].metrics["rollouts"] == 2
    assert "score_first" not in stages.outcomes["sdft"].metrics
    asked = {row["messages"][0]["content"] for row in ROWS}
    assert all(sample.prompt in asked and sample.score is None for one in (first, second) for sample in one.samples)


def fine_tuned(stages: Stages, method: str = "lora") -> Policy:
    return stages.execute(stages.ticket("sft", "sft", BASE, METHODS[method], dtype="float32", bf16=False))


def logits_of(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return found


CASES = [
    *(("lora", "incoming"), ("lora", "base")),
    *(pytest.param("ia3", teacher, marks=pytest.mark.slow) for teacher in ("incoming", "base")),
    *(pytest.param("full", teacher, marks=pytest.mark.slow) for teacher in ("incoming", "base")),
]


@pytest.mark.parametrize(("method", "teacher"), CASES)
def test_the_teacher_is_who_it_is_said_to_be_and_reads_the_answer(stages: Stages, method: str, teacher: str) -> None:
    """After the policy has moved too: its logits along the answers, row by row, and the policy's own divergence."""
    policy = fine_tuned(stages)
    seen: list[tuple[dict[str, torch.Tensor], Any]] = []
    with spying(
        "_compute_teacher_student_logits", lambda self, model, its, inputs, found: seen.append((inputs, found))
    ):
        run(stages, sdft(stages, policy, method, teacher=teacher))
    plain = stack.load_policy(BASE if teacher == "base" else policy, {"dtype": "float32"}, stages.run.root).eval()
    tokenizer = TextTokenizer.of(lab_tokenizer())
    prompts: dict[tuple[int, ...], list[int]] = {}
    for row in ROWS:
        question, answer = demonstrations.split(row)
        shown = [{"role": "user", "content": f"{question[-1]['content']} {answer}"}]
        prompts[tuple(encode.prompt_ids([question], tokenizer)[0])] = encode.prompt_ids([shown], tokenizer)[0]
    assert len(seen) == 8
    for inputs, found in (seen[0], seen[-1]):
        for at, mask in enumerate(inputs["completion_mask"].bool()):
            asked = tuple(inputs["prompt_ids"][at][inputs["prompt_mask"][at].bool()].tolist())
            answer = inputs["completion_ids"][at][mask].tolist()
            theirs = logits_of(plain, prompts[asked], answer)
            torch.testing.assert_close(found.teacher_logits[at][: len(answer)].detach(), theirs, atol=2e-3, rtol=1e-3)
            if inputs is seen[0][0] and teacher == "incoming":  # the student starts as its teacher, without the answer
                own = logits_of(plain, list(asked), answer)
                torch.testing.assert_close(found.student_logits[at][: len(answer)].detach(), own, atol=2e-3, rtol=1e-3)
                assert not torch.allclose(own, theirs, atol=1e-2)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_an_average_follows_the_policy_by_its_rate(stages: Stages, method: str) -> None:
    """Starts as the policy that came in; from step to step teacher = 0.9 teacher + 0.1 policy, every second step."""
    policy = fine_tuned(stages)
    averages: list[list[torch.Tensor]] = []
    policies: list[list[torch.Tensor]] = []

    def see(self: Any, *_: Any) -> None:
        averages.append([kept.clone() for _, kept in self.teacher_model.kept])
        policies.append([parameter.detach().clone() for parameter, _ in self.teacher_model.kept])

    with spying("_compute_teacher_student_logits", see):
        run(stages, sdft(stages, policy, method, teacher="ema", teacher_update_rate=0.1, teacher_sync_steps=2))
    assert len(averages) == 8 and all(map(torch.equal, averages[0], policies[0]))
    for step in range(1, 8):
        for was, then, now in zip(averages[step - 1], policies[step], averages[step], strict=True):
            torch.testing.assert_close(now, 0.9 * was + 0.1 * then if step % 2 == 0 else was)
    assert not all(map(torch.equal, averages[-1], averages[0]))


RESUMED = [
    pytest.param(method, teacher, at, marks=[] if (method, teacher, at) == ("lora", "ema", 3) else pytest.mark.slow)
    for method in ("lora", "full")
    for teacher in ("incoming", "ema")
    for at in (3, 4)  # inside a rollout, and at its end
]


@pytest.mark.parametrize(("method", "teacher", "at"), RESUMED)
def test_a_resumed_stage_has_the_same_weights_and_record(tmp_path: Path, method: str, teacher: str, at: int) -> None:
    def hashes(name: str, *, resume: bool) -> dict[str, str]:
        stages = Stages(RunDir(tmp_path / name))
        saving = {"save_strategy": "steps", "save_steps": at, "save_total_limit": 5, "max_steps": 10}
        ticket = sdft(stages, BASE, method, teacher=teacher, **saving)
        stages.execute(ticket)
        here = stages.run.stage("sdft")
        if resume:
            here.outcome.unlink()
            ticket.resume_from = f"checkpoints/checkpoint-{at}"
            stages.execute(ticket)
        found = {path.name: files.file_sha256(path) for path in here.model.glob("*.safetensors")}
        return found | {"rollouts": here.rollouts.read_text(encoding="utf-8")}

    whole = hashes("whole", resume=False)
    assert len(whole) > 1 and hashes("resumed", resume=True) == whole


def test_accumulation_is_not_in_the_weights(tmp_path: Path) -> None:
    """Where each answer is drawn alike: one rollout of the same prompts for each update. Nor is it in the weight of a
    penalty, whose part in a micro-batch follows from how TRL scales its loss."""
    found = []
    for parts in (1, 2):
        stages = Stages(RunDir(tmp_path / str(parts)))
        size = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        once = {"steps_per_generation": parts, "num_iterations": 1, "max_steps": 3, "optim": "sgd"}
        ticket = sdft(stages, BASE, "lora", **size, **once, learning_rate=0.1)
        stages.execute(ticket.model_copy(update={"keys": {**ticket.keys, "l2_sp": 10.0}}))
        assert stages.logged("sdft", "gradient_ratio/l2_sp")[-1] > 0.1
        found.append(load_file(stages.run.stage("sdft").model / "adapter_model.safetensors"))
    assert max(float((found[1][name] - tensor).abs().max()) for name, tensor in found[0].items()) < 1e-5


# rows and keys


def test_a_row_is_split_into_what_is_asked_and_the_demonstration() -> None:
    def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, **more}

    talk = [turn("system", "Be brief."), turn("user", "2 + 2?"), turn("assistant", "4", train=False)]
    talk += [turn("user", "3 + 3?"), turn("assistant", "6")]
    asked = [*talk[:2], turn("assistant", "4"), talk[3]]
    assert demonstrations.split({"messages": talk}) == (asked, "6")
    assert demonstrations.split({"prompt": talk[:2], "completion": talk[2:]}) == (asked, "6")
    assert demonstrations.split({"prompt": "2 + 2?", "completion": " 4"}) == ("2 + 2?", " 4")


REFUSED = {
    "tools": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{}]},
        "the row has tools, but answers are sampled without tools",
    ),
    "no answer": (
        {"messages": [{"role": "user", "content": "a"}]},
        "the row does not end with an answer, which would be the demonstration",
    ),
    "no question": (
        {"messages": [{"role": "assistant", "content": "b"}]},
        "the row's last answer does not follow the user's words",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_cannot_be_split_is_refused_with_its_place(name: str) -> None:
    value, what = REFUSED[name]
    with pytest.raises(AlignError) as refused:
        demonstrations.check([Example("chat", value, Place("rows.jsonl", 3))])
    assert str(refused.value) == f"rows.jsonl:3: {what}\n  -> remove such rows, or use an `sft` stage for them"


def test_texts_and_conversations_are_not_mixed() -> None:
    text = Example("prompt_completion", {"prompt": "a", "completion": "b"}, Place("rows.jsonl", 2))
    with pytest.raises(AlignError) as refused:
        demonstrations.check([Example("chat", ROWS[0], Place("rows.jsonl", 1)), text])
    assert str(refused.value) == (
        "rows.jsonl:2: the row's prompt is a text, but others are conversations\n  -> write all of them in one way"
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("teacher: live", "'stages.sdft.teacher' cannot be 'live'"),
        ("eval_data: 0.1", "the stage 'sdft' computes no loss on held-out rows"),
        ("training: {teacher_model_kind: ema}", "the training argument 'teacher_model_kind' is set by the stage"),
        ("training: {max_prompt_length: 64}", "prompts are never cut; leave it out"),
        ("training: {use_vllm: true}", "answers are sampled by the model that is trained; leave it out"),
        (
            "training: {teacher_update_rate: 0.1}",
            "'stages.sdft.training.teacher_update_rate' has no effect without `teacher: ema`",
        ),
        (
            "training: {teacher_prompt_template: '{prompt}'}",
            "`teacher_prompt_template` must contain {prompt} and {privileged_context}",
        ),
        (
            "training: {distillation_mode: sampled_token}",
            "`distillation_mode: sampled_token` knows the reverse KL alone",
        ),
        ("parameterization: {method: prefix_tuning}", "stage 'sdft' cannot train prefix_tuning, which learns a prompt"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, entry: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    text = f"name: x\nmodel: {{base: lab}}\nstages:\n  sdft:\n    data: lab/helpdesk\n    {entry}\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((AlignError, Faults), match=re.escape(said)):
        load.load(file)


# the command


RECIPE = """\
name: small
seed: 3
model: {base: lab}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sdft:
    data: {source: lab/helpdesk, limit: 32}
    teacher: ema
    training: {max_steps: 6, per_device_train_batch_size: 8, max_completion_length: 8, save_steps: 2, logging_steps: 1}
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE)
    runs.run(recipe, tmp_path / "whole")
    process = runs.started(recipe, tmp_path / "killed")
    runs.wait_for(process, lambda: runs.last_step(tmp_path / "killed", "sdft") >= 3)
    kill_child(process)
    assert not (tmp_path / "killed/stages/sdft/outcome.json").exists()
    assert "(resuming from checkpoint-2)" in runs.run(recipe, tmp_path / "killed").stderr
    assert runs.weights(tmp_path / "killed") == runs.weights(tmp_path / "whole") != {}
    page = (tmp_path / "killed" / "report.md").read_text(encoding="utf-8")
    assert "| Divergence from the teacher |" in page and "| Score |" not in page


@pytest.mark.slow
def test_two_processes_train(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE)
    runs.run(recipe, tmp_path / "two", "--processes", "2", cold=True)
    assert runs.outcome(tmp_path / "two", "sdft")["steps"] == 6
    assert rollouts.read(tmp_path / "two/stages/sdft/rollouts.jsonl")[0].episodes == 16


# what of TRL it relies on

OVERRIDDEN = {
    "_setup_teacher_model": ["self"],
    "_get_teacher_context_for_self_distillation": ["self"],
    "_generate_transformers": ["self", "prompt_ids"],
    "_compute_rollout_logps": ["self", "prompt_ids", "prompt_mask", "completion_ids", "completion_mask"],
    "_prepare_training_batch": ["self", "inputs"],
    "_log_self_distillation_metric": ["self", "mode", "value"],
    "_get_train_sampler": ["self", "dataset"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
}
USED = {
    "_prepare_inputs": ["self._prepare_training_batch(generation_batch)", "self._buffered_inputs", "self._step"],
    "sample_rollouts": ["self._compute_rollout_logps(\n                prompt_ids=prompt_ids,", "self._generate("],
    "_generate": ["self._generate_transformers(prompt_ids)"],
    "compute_loss": ["self.teacher_model", "loss / accumulation_scale"],
    "_compute_teacher_student_logits": ["self._get_teacher_context_for_self_distillation()", "torch.no_grad()"],
    "_compute_self_distillation_loss": ["self._log_self_distillation_metric("],
    "get_train_dataloader": ["self._get_train_sampler()"],
    "__init__": ["self._setup_teacher_model()"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_is_as_it_was(name: str) -> None:
    method = getattr(SDFTTrainer, name, None)
    assert method is not None, f"SDFTTrainer.{name} is gone: our override of it is never called"
    assert list(inspect.signature(method).parameters)[: len(OVERRIDDEN[name])] == OVERRIDDEN[name]


@pytest.mark.parametrize("name", USED)
def test_what_is_overridden_or_read_is_still_used_where_it_was(name: str) -> None:
    source = inspect.getsource(getattr(SDFTTrainer, name))
    for call in USED[name]:
        assert call in source, f"SDFTTrainer.{name} no longer has {call}"


def test_we_override_what_we_mean_to_and_nothing_else() -> None:
    own = {name for name in vars(SdftTrainer) if not name.startswith("__")}
    clash = {name for name in own if hasattr(SDFTTrainer, name) or hasattr(BaseTrainer, name)}
    assert clash - set(OVERRIDDEN) == set()


def test_trls_own_average_starts_from_zero_and_is_in_no_checkpoint() -> None:
    """Why ours is used: should TRL's come to be resumable, it can be taken."""
    from trl.experimental.sdft import teacher_sync

    source = inspect.getsource(teacher_sync.PEFTAdapterEMACallback)
    assert "v.clone().zero_()" in source and "on_save" not in source and "ExportableState" not in source
