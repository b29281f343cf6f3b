"""What a launch proves before its first update: right, without a trace, and failing when a fault is planted.

Of the silent failures of the stack, a launch of several processes that never meet is refused by its world size
(test_processes) and caught by `ranks_agree` where they train apart; a reference that was copied or kept fresh, and one
loaded from the path in the model's configuration, are caught by `start_kl`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTTrainer

import models
import runs
from align.errors import AlignError, Exit
from align.proofs import one_pass, start
from align.proofs.one_pass import Batch
from align.proofs.start import Start
from align.report import proofs as told
from align.run_folder import files, proofs
from align.run_folder.paths import RunDir
from align.run_folder.proofs import FirstLoss, Proofs, RanksAgree, Saved, StartKl
from align.run_folder.records import Adapter, Outcome
from align.run_folder.stage_dir import StageDir
from align.stage.callbacks import Interrupted
from align.trainers.dpo import DpoTrainer
from align.trainers.kept_reference import KeptReference
from align.trainers.ppo import PpoTrainer
from align.trainers.sdft import SdftTrainer
from align.trainers.sft import SftTrainer
from align.worker import execute as work
from align.worker.proofs import begins
from models import BASE, FULL, LORA, QLORA, Stages, preferences
from test_ppo import function, ppo

DROPPING = models.settings("lora", lora={"r": 8, "alpha": 16, "dropout": 0.1})
EXACT = {"dtype": "float32", "bf16": False}
PAIRS = {"rows": preferences(14), **EXACT}
ONE = "there is one process"
COMPILED = "the model is compiled, and a pass outside of training would compile it once more"
NO_REFERENCE = "the stage has no reference"
SAMPLES = "the stage learns from answers that it samples, and has no loss of fixed rows"


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def found(stages: Stages, id: str) -> Proofs:
    """Those of the outcome; the part of before the first step lies in the folder as well."""
    made = stages.outcomes[id].proofs
    kept = proofs.read(stages.run.stage(id).proofs, id)
    assert kept is not None and (kept.first_loss, kept.start_kl) == (made.first_loss, made.start_kl)
    return made


# ---- right ----------------------------------------------------------------------------------------------------------


def test_the_first_loss_of_sft_is_that_of_the_model_on_its_rows(stages: Stages) -> None:
    """Held against a model that transformers loads and torch's cross entropy, and against the trainer's own first
    step, in which nothing is dropped."""
    batches: list[Batch] = []
    look = start.batch_of
    with mock.patch.object(start, "batch_of", lambda trainer: batches.append(look(trainer)) or batches[-1]):
        stages.execute(stages.ticket("sft", "sft", BASE, LORA, **EXACT))
    one, inputs = found(stages, "sft"), batches[0].inputs
    assert one.first_loss is not None and one.saved is not None
    plain = AutoModelForCausalLM.from_pretrained(BASE.base.path, dtype=torch.float32)
    with torch.no_grad():
        logits = plain(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = float(cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()))
    assert one.first_loss.value == pytest.approx(expected, rel=1e-6)
    assert one.first_loss.value == pytest.approx(stages.logged("sft", "loss")[0], rel=1e-6)
    assert (one.first_loss.single, one.first_loss.kept) == (None, False), "of one process it is the figure that is kept"
    assert (one.first_loss.limit, one.first_loss.precision, one.first_loss.rows) == (1e-5, "float32", 4)
    assert one.start_kl is None and one.ranks_agree is None
    assert one.absent == {"start_kl": NO_REFERENCE, "ranks_agree": ONE}
    assert one.saved.trained == one.saved.tensors == len(models.changed(stages.before["sft"], stages.jobs["sft"].model))
    assert one.made_for == "sft"


@pytest.mark.parametrize(
    ("method", "precision", "limit"), [(LORA, "bfloat16", 1e-3), (QLORA, "4-bit", 1e-3)], ids=["lora", "qlora"]
)
def test_dpo_begins_at_its_reference(stages: Stages, method: Any, precision: str, limit: float) -> None:
    """Exactly, in bfloat16 and in 4 bits as well, where another pass would be rounded otherwise."""
    given = {"rows": preferences(14), "dtype": "bfloat16", "bf16": True}
    stages.execute(stages.ticket("dpo", "dpo", BASE, method, **given))
    one = found(stages, "dpo")
    assert one.start_kl is not None and one.first_loss is not None
    assert (one.start_kl.value, one.start_kl.of, one.start_kl.precision) == (0.0, "batch", precision)
    assert one.first_loss.value == pytest.approx(math.log(2), abs=1e-6)
    assert (one.first_loss.limit, one.start_kl.limit) == (1e-2, limit)


def test_kto_begins_at_its_reference(stages: Stages) -> None:
    """Its answers, and those to other prompts that its KL is estimated from; without a further pass for the KL."""
    asked: list[Any] = []
    own = one_pass._Again.__call__

    def looked(again: Any, **inputs: Any) -> Any:
        with mock.patch.object(again, "model", side_effect=AssertionError("a pass that was made already")):
            asked.append(inputs["input_ids"])
            return own(again, **inputs)

    with mock.patch.object(one_pass._Again, "__call__", looked):
        stages.execute(stages.ticket("kto", "kto", BASE, LORA, **PAIRS))
    one = found(stages, "kto")
    assert one.start_kl is not None and one.start_kl.value == 0.0 and len(asked) == 2
    assert one.first_loss is not None and one.first_loss.value == pytest.approx(0.5, abs=1e-6)


def test_ppo_begins_at_its_reference(stages: Stages) -> None:
    stages.execute(ppo(stages, BASE, LORA, function("varied"), training={"bf16": False, "max_steps": 2}))
    one = found(stages, "ppo")
    assert one.first_loss is None and one.absent["first_loss"] == SAMPLES
    assert one.start_kl is not None
    assert (one.start_kl.value, one.start_kl.of, one.start_kl.limit) == (0.0, "rollout", 1e-4)
    assert one.saved is not None and one.saved.trained == one.saved.tensors


@pytest.mark.slow
@pytest.mark.parametrize(("program", "beta"), [("rloo", 0.1), ("grpo", 0.1), ("grpo", 0.0)])
def test_rloo_and_grpo_begin_at_their_reference(stages: Stages, program: str, beta: float) -> None:
    given = {"num_generations": 2, "max_completion_length": 8, "rewards": [function("varied")], **EXACT}
    stages.execute(stages.ticket(program, program, BASE, LORA, keys={"beta": beta}, **given))
    one = found(stages, program)
    if beta:
        assert one.start_kl is not None and one.start_kl.value == 0.0 and one.start_kl.of == "rollout"
    else:
        assert one.start_kl is None and one.absent["start_kl"] == NO_REFERENCE


def bare(kind: type, **args: Any) -> Any:
    made = kind.__new__(kind)
    made.args = SimpleNamespace(**{"torch_compile": False, **args})
    return made


@pytest.mark.parametrize(
    ("trainer", "loss", "kl"),
    [
        (bare(PpoTrainer), SAMPLES, "no rollout was made"),
        (bare(SdftTrainer), SAMPLES, "the teacher reads more than the policy does, and differs from it from the start"),
        (bare(DpoTrainer, torch_compile=True), COMPILED, COMPILED),
        (bare(SftTrainer, torch_compile=True), COMPILED, NO_REFERENCE),
        (bare(SFTTrainer), "the trainer of this stage has no loss of held-out rows", NO_REFERENCE),
    ],
    ids=["ppo", "sdft", "dpo", "sft", "of_trl"],
)
def test_why_there_is_no_proof(trainer: Any, loss: str, kl: str, tmp_path: Path) -> None:
    made = Start(tmp_path / "proofs.json", "id", SimpleNamespace(num_processes=1, is_main_process=True), resumed=False)
    assert type(made.callback(trainer)) is TrainerCallback, "which does nothing"
    assert made.made.absent == {"first_loss": loss, "start_kl": kl}
    kept = proofs.read(tmp_path / "proofs.json", "id")
    assert kept == made.made


# ---- without a trace ------------------------------------------------------------------------------------------------

MANY = pytest.mark.slow


@pytest.mark.parametrize(
    ("program", "method", "more"),
    [
        ("sft", DROPPING, EXACT),
        ("dpo", {**QLORA, "lora": DROPPING["lora"]}, {"rows": preferences(14), "dtype": "bfloat16", "bf16": True}),
        pytest.param("sft", FULL, {"dtype": "bfloat16", "bf16": True, "keys": {"kl_coef": 0.1}}, marks=MANY),
        pytest.param("kto", DROPPING, PAIRS, marks=MANY),
        pytest.param("reward", DROPPING, {**PAIRS, "held": preferences(20)[14:]}, marks=MANY),
        pytest.param("sft", {**QLORA, "lora": DROPPING["lora"]}, {"gradient_checkpointing": True, **EXACT}, marks=MANY),
    ],
    ids=["sft-lora", "dpo-qlora", "sft-full", "kto-lora", "reward-lora", "sft-qlora"],
)
def test_training_is_the_same_with_and_without_proofs(
    stages: Stages, program: str, method: Any, more: dict[str, Any]
) -> None:
    """To the last bit of the weights, and in every figure that is logged; dropout draws random numbers."""
    stages.execute(stages.ticket("proved", program, BASE, method, **more))
    with mock.patch.object(Start, "callback", lambda *_: TrainerCallback()):
        stages.execute(stages.ticket("plain", program, BASE, method, **more))
    proved, plain = (stages.jobs[id].model.state_dict() for id in ("proved", "plain"))
    assert proved.keys() == plain.keys() and all(torch.equal(proved[name], plain[name]) for name in proved)
    assert found(stages, "proved").first_loss is not None and stages.outcomes["plain"].proofs.first_loss is None

    def lines(id: str) -> list[dict[str, Any]]:
        read = map(json.loads, stages.run.stage(id).metrics.read_text(encoding="utf-8").splitlines())
        return [
            {k: v for k, v in line.items() if k != "time" and "second" not in k and "runtime" not in k} for line in read
        ]

    assert lines("proved") == lines("plain")


# ---- faults ---------------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> AlignError:
    with pytest.raises(AlignError) as failure:
        call()
    assert failure.value.exit == Exit.STAGE_FAILED
    return failure.value


@contextmanager
def another_reference() -> Iterator[None]:
    """A reference that is computed of another policy, as of a model that was loaded from somewhere else."""
    own = KeptReference.refer_steps

    def other(trainer: Any, *given: Any) -> None:
        kept = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name in kept:
                    parameter.add_(torch.full_like(parameter, 0.02))
        own(trainer, *given)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])

    with mock.patch.object(KeptReference, "refer_steps", other):
        yield


def test_a_reference_that_is_another_policy_fails(stages: Stages) -> None:
    with another_reference():
        error = refused(lambda: stages.execute(stages.ticket("dpo", "dpo", BASE, LORA, **PAIRS)))
    begin, _, rest = error.what.partition(" nats per token")
    figure = float(begin.removeprefix("before the first update the policy is "))
    assert figure > 1e-3
    limits = "they are the same policy, so it should be 0, and 0.0001 at most in float32"
    assert rest == f" from its reference, in the first batch; {limits}"
    assert error.remedy == (
        "the reference is another policy than the one that came in: look at what the stage loads or copies as "
        "reference, and whether its base or adapter was changed since; nothing was trained"
    )
    assert not stages.run.stage("dpo").metrics.exists(), "before the first step"


def test_a_rollout_whose_reference_is_another_policy_fails(stages: Stages) -> None:
    from align.rl.reference import Adapters

    own = Adapters.__call__

    def other(reference: Any, **inputs: Any) -> Any:
        outputs = own(reference, **inputs)
        outputs.log_probs = outputs.log_probs * 1.01
        return outputs

    with mock.patch.object(Adapters, "__call__", other):
        error = refused(
            lambda: stages.execute(
                ppo(stages, BASE, LORA, function("varied"), training={"bf16": False, "max_steps": 2})
            )
        )
    assert "nats per token from its reference, in the first rollout; they are the same policy" in error.what
    assert stages.logged("ppo", "loss") == []


def test_another_loss_than_an_earlier_launch_had_fails(stages: Stages) -> None:
    """Of one process: the figure that an earlier launch of the same stage kept is what the next is held against."""
    ticket = stages.ticket("sft", "sft", BASE, LORA, **EXACT)
    stages.execute(ticket)
    here, first = stages.run.stage("sft"), stages.outcomes["sft"].proofs.first_loss
    assert first is not None
    stages.execute(ticket)
    again = stages.outcomes["sft"].proofs.first_loss
    assert again is not None and again.kept and again.single == again.value == first.value
    kept = files.read_json(here.proofs)
    kept["first_loss"] |= {"value": first.value * 1.001, "single": None}
    files.write_json(here.proofs, kept)
    error = refused(lambda: stages.execute(ticket))
    assert error.what == (
        f"before the first step the loss of the first batch is {first.value:.7g} in this launch, but an earlier launch "
        f"of the same stage had {first.value * 1.001:.7g}; in float32 they may differ by 1e-05 of it"
    )
    assert error.remedy == (
        "see whether the base, the incoming adapter or the packages were changed since; if that is meant, remove "
        f"{here.proofs}; nothing was trained"
    )
    files.write_json(here.proofs, kept | {"made_for": "another"})  # of another stage than this was then
    stages.execute(ticket)


def two(folder: Path, *, first: bool = True) -> Start:
    world = SimpleNamespace(num_processes=2, is_main_process=first, device=torch.device("cpu"), wait_for_everyone=int)
    return Start(folder / "proofs.json", "sft", world, resumed=False)


@pytest.mark.parametrize(("own", "other", "which"), [(0.5, 0.5001, 0.5001), (0.4, 0.5, 0.4), (0.05, 0.5, 0.05)])
def test_another_loss_in_a_process_fails(tmp_path: Path, own: float, other: float, which: float) -> None:
    """Each is held against what the first computed alone; both processes fail by the same sentence."""
    batch = Batch({}, 4, "0" * 64)
    error = refused(lambda: two(tmp_path)._compared([own, other], 0.5, batch, "float32"))
    assert error.what == (
        f"before the first step the loss of the first batch is {which:.7g} in this launch, but one process alone "
        "computes 0.5; in float32 they may differ by 1e-05 of it"
    )
    assert error.remedy == (
        "a process holds other weights than the first, or only parts of them: look at how the engine of this launch "
        "wraps and shares the model, and run with one process meanwhile; nothing was trained"
    )


def test_how_far_losses_may_be_apart(tmp_path: Path) -> None:
    batch = Batch({}, 4, "0" * 64)
    made = two(tmp_path)._compared([0.5, 0.500004], 0.5, batch, "float32")
    assert (made.value, made.single, made.limit) == (0.500004, 0.5, 1e-5)
    assert two(tmp_path)._compared([0.504, 0.5], 0.5, batch, "bfloat16").value == 0.504
    assert two(tmp_path)._compared([1e-7, 9e-7], 1e-7, batch, "float32").single == 1e-7, "a loss near 0 is rounded too"
    refused(lambda: two(tmp_path)._compared([0.506, 0.5], 0.5, batch, "bfloat16"))
    refused(lambda: two(tmp_path)._compared([1e-7, 2e-6], 1e-7, batch, "float32"))


def test_no_number_in_a_process_fails(tmp_path: Path) -> None:
    """Where the first computes one alone; a layer that was copied empty gives none."""
    batch = Batch({}, 4, "0" * 64)
    for values in ([math.nan, 0.5], [0.5, math.nan], [math.nan, 0.501]):
        error = refused(lambda own=values: two(tmp_path)._compared(own, 0.5, batch, "float32"))
        assert error.what.startswith("before the first step the loss of the first batch is nan in this launch")


@pytest.mark.parametrize(
    "each", [[(math.nan, 0.5, None), (0.5, None, None)], [(0.5, 0.5, None), (math.nan, None, None)]]
)
def test_a_process_without_a_number_is_held_against_the_first(tmp_path: Path, each: Any) -> None:
    made, batch = two(tmp_path), Batch({}, 4, "0" * 64)
    trainer = SimpleNamespace(model_wrapped=None, model=torch.nn.Linear(1, 1), args=SimpleNamespace(fp16=0, bf16=0))
    trainer.model.config = SimpleNamespace()
    with (
        mock.patch.multiple(start, batch_of=lambda _: batch, loss=lambda *_: 0.5, every=lambda *_: each),
        pytest.raises(AlignError),
    ):
        made.first_loss(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kls", [(0.0, math.nan), (math.nan, 0.0)])
def test_a_process_whose_reference_is_no_number_fails(tmp_path: Path, kls: tuple[float, float]) -> None:
    made, batch, trainer = two(tmp_path), Batch({}, 4, "0" * 64), bare(DpoTrainer, fp16=False, bf16=False)
    trainer.model = trainer.model_wrapped = torch.nn.Linear(1, 1)
    trainer.model.config = SimpleNamespace()
    trainer.accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value="MULTI_CPU"))
    each = [(0.5, 0.5, kls[0]), (0.5, None, kls[1])]
    given = {"batch_of": lambda _: batch, "loss": lambda *_: 0.5, "every": lambda *_: each, "apart": lambda *_: 0.0}
    with mock.patch.multiple(start, **given):
        error = refused(lambda: made.first_loss(trainer, None))
    assert error.what.startswith("before the first update the policy is nan nats per token from its reference")


def test_a_figure_of_another_processor_or_package_is_not_held_against(tmp_path: Path) -> None:
    """It is rounded otherwise."""
    world = SimpleNamespace(num_processes=1, is_main_process=True, device=torch.device("cpu"))
    batch = Batch({}, 4, "0" * 64)

    def launch() -> Start:
        return Start(tmp_path / "proofs.json", "sft", world, resumed=False)

    first = launch()
    first._keep(first_loss=first._compared([0.5], None, batch, "float32"))
    refused(lambda: launch()._compared([0.6], None, batch, "float32"))
    others: list[tuple[Any, str, Any]] = [
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (torch, "get_num_threads", lambda: 99),
        (one_pass.importlib.metadata, "version", lambda _: "0.0"),
    ]
    for place, name, value in others:
        with mock.patch.object(place, name, value):
            made = launch()._compared([0.6], None, batch, "float32")
        assert (made.value, made.single, made.kept) == (0.6, None, False)


def test_a_file_that_is_not_what_was_trained_fails_the_stage(stages: Stages) -> None:
    """Before the outcome is written, so that no stage goes on from it."""
    own = work.saving.save_policy

    def torn(job: Any, run: RunDir) -> Any:
        policy = own(job, run)
        path = job.dir.model / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        return policy

    ticket = stages.ticket("sft", "sft", BASE, LORA, **EXACT)
    with mock.patch.object(work.saving, "save_policy", torn):
        error = refused(lambda: work.do(stages.run, ticket, lambda: False))
    assert error.what.startswith("what was saved is not what was trained: adapter_model.safetensors cannot be read")
    assert not stages.run.stage("sft").outcome.exists()


# ---- resumption -----------------------------------------------------------------------------------------------------


def test_a_resumed_stage_keeps_the_proofs_of_its_start(stages: Stages) -> None:
    given = {"save_strategy": "steps", "save_steps": 1, **PAIRS}
    ticket = stages.ticket("dpo", "dpo", BASE, LORA, **given)
    here = stages.run.stage("dpo")
    with pytest.raises(Interrupted):
        work.do(stages.run, ticket, here.proofs.is_file)
    before = here.proofs.read_bytes()
    ticket.resume_from = "checkpoints/checkpoint-1"
    with mock.patch.object(start, "loss", side_effect=AssertionError("computed again")):
        stages.execute(ticket)
    one = found(stages, "dpo")
    assert here.proofs.read_bytes() == before
    assert one.start_kl is not None and one.start_kl.value == 0.0 and one.saved is not None

    here.proofs.unlink()  # as of a run that an older align began
    stages.execute(ticket)
    one = stages.outcomes["dpo"].proofs
    old = "the stage was begun by an align that made no proofs"
    assert one.absent == {"first_loss": old, "start_kl": old, "ranks_agree": ONE}
    assert one.first_loss is None and one.saved is not None and not here.proofs.exists()


def test_kept_proofs_are_of_their_stage_or_none(tmp_path: Path) -> None:
    path = StageDir(tmp_path).proofs
    assert proofs.read(path, "sft") is None
    proofs.write(path, Proofs(made_for="sft", absent={"start_kl": NO_REFERENCE}))
    assert proofs.read(path, "sft") == Proofs(made_for="sft", absent={"start_kl": NO_REFERENCE})
    assert proofs.read(path, "dpo") is None
    path.write_text('{"made_for": "sft", "first_loss": {"value": "much"}}', encoding="utf-8")
    assert proofs.read(path, "sft") is None


def test_an_outcome_of_an_older_align_is_read() -> None:
    old = Outcome.model_fields["proofs"].get_default()
    assert old == Proofs() and old.first_loss is None and old.absent == {}


# ---- several processes ----------------------------------------------------------------------------------------------

TWO = """\
name: two
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {bf16: false, max_steps: 2, per_device_train_batch_size: 4, optim: sgd}
"""
"""Two processes of this are the eight rows a step of one."""

APART = """

def apart(job):
    import os

    import torch

    second = os.environ["RANK"] == "1"
    if second and {wrapped}:
        layer = next(layer for name, layer in job.model.named_modules() if name.endswith("layers.0.mlp"))
        layer.register_forward_hook(lambda module, given, output: output * 1.01)
    metrics = train(job)
    if second:
        last = [parameter for parameter in job.model.parameters() if parameter.requires_grad][-1]
        with torch.no_grad():
            last.view(-1)[0] += 1e-6
    return metrics


STAGE = __import__("dataclasses").replace(STAGE, train=apart)
"""
"""A stage in whose second process the weights end otherwise, or the model computes otherwise from the start."""


@pytest.mark.slow
def test_two_processes_prove_that_they_are_one_launch(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(TWO, encoding="utf-8")
    runs.run(recipe, tmp_path / "run", "--processes", "2")
    made = Outcome.model_validate(runs.outcome(tmp_path / "run", "sft")).proofs
    assert made.first_loss is not None and made.ranks_agree is not None and made.saved is not None
    assert made.first_loss.single == pytest.approx(made.first_loss.value, rel=1e-7) and not made.first_loss.kept
    assert made.ranks_agree.processes == 2 and made.ranks_agree.tensors == made.saved.trained
    assert made.absent == {"start_kl": NO_REFERENCE}


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True], ids=["weights", "loss"])
def test_two_processes_that_train_apart_fail(tmp_path: Path, wrapped: bool) -> None:
    program = (Path(__file__).parents[1] / "stages/sft.py").read_text(encoding="utf-8")
    (tmp_path / "apart.py").write_text(program + APART.format(wrapped=wrapped), encoding="utf-8")
    recipe = tmp_path / "two.yaml"
    recipe.write_text(TWO.replace("    data:", "    stage: ./apart.py\n    data:"), encoding="utf-8")
    done = runs.run(recipe, tmp_path / "run", "--processes", "2", code=Exit.STAGE_FAILED)
    failure = files.read_json(tmp_path / "run/stages/sft/error.json")
    if wrapped:
        assert failure["what"].startswith("before the first step the loss of the first batch is ")
        assert "in this launch, but one process alone computes " in failure["what"]
    else:
        assert failure["what"] == (
            "training ended with different weights in different processes: 1 of 56 trained tensors differ between "
            "processes, first 'base_model.model.model.layers.3.mlp.down_proj.lora_B.default.weight' in process 1 from "
            "that in process 0"
        )
    assert failure["what"] in done.stderr
    assert not (tmp_path / "run/stages/sft/outcome.json").exists()
    assert (tmp_path / "run/stages/sft/metrics.jsonl").exists() != wrapped, "it failed before its first step"


# ---- the report -----------------------------------------------------------------------------------------------------


def test_what_was_proved_is_told_in_words() -> None:
    given = {"precision": "bfloat16", "rows": 4, "batch": "", "setting": "", "limit": 0.01}
    whole = Proofs(
        first_loss=FirstLoss(value=0.5, single=0.5001, **given),
        start_kl=StartKl(value=0.0, limit=0.001, precision="bfloat16", of="batch"),
        saved=Saved(trained=1234, tensors=1234, numbers=1, bytes=1, sha256=""),
        ranks_agree=RanksAgree(processes=2, tensors=1234, sha256=""),
    )
    assert list(told.facts(whole)) == [
        ("Loss before the first step", "0.5 on 4 rows, and 0.5001 in one process alone (at most 0.01 of it apart)"),
        (
            "Policy and reference at the start",
            "0 nats per token apart in the first batch (at most 0.001 in bfloat16)",
        ),
        ("Saved weights", "1,234 trained tensors, read again: their names, shapes and bytes are in the files"),
        ("Weights of the processes", "the same 1,234 tensors in all 2"),
    ]
    alone = Proofs(
        first_loss=FirstLoss(value=0.5, single=None, **given),
        start_kl=StartKl(value=0.25, limit=None, precision="bfloat16", of="rollout"),
        absent={"ranks_agree": ONE},
    )
    assert list(told.facts(alone)) == [
        ("Loss before the first step", "0.5 on 4 rows, kept for later launches of the stage"),
        (
            "Policy and reference at the start",
            "0.25 nats per token apart in the first rollout (no limit: with this method it need not be 0)",
        ),
        ("Weights of the processes", "not proved: there is one process"),
    ]
    again = Proofs(first_loss=FirstLoss(value=0.5, single=0.5, kept=True, **given))
    assert [text for _, text in told.facts(again)] == [
        "0.5 on 4 rows, and 0.5 in an earlier launch (at most 0.01 of it apart)"
    ]
    assert list(told.facts(Proofs())) == []


@pytest.mark.parametrize(
    ("method", "policy", "at_first"),
    [
        (FULL, BASE, "equal"),
        (LORA, BASE, "equal"),
        (models.settings("lora", lora={"r": 8, "init_lora_weights": False}), BASE, "changed"),
        (models.settings("lora", lora={"r": 8, "use_dora": True}), BASE, "rounded"),
        (models.settings("prompt_tuning", peft={}), BASE, "changed"),
        (models.settings("adapter"), BASE, "equal"),
        (models.settings("pvera", peft={}), BASE, "drawn"),
    ],
)
def test_what_a_new_adapter_is_at_first(stages: Stages, method: Any, policy: Any, at_first: str) -> None:
    assert begins(stages.ticket("rloo", "rloo", policy, method, rewards=[function("varied")])) == at_first


def test_an_adapter_that_is_trained_further_begins_as_it_came_in(stages: Stages) -> None:
    changed = models.settings("lora", lora={"r": 8, "init_lora_weights": False})
    came_in = BASE.model_copy(update={"adapters": [Adapter(name="sft", path="", method="lora", settings=changed)]})
    assert begins(stages.ticket("rloo", "rloo", came_in, changed, rewards=[function("varied")])) == "equal"
