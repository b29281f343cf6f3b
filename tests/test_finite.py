"""A training that diverges ends at the step at which it does, with its rows named, and goes on from what was good."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerState

import runs
from align.data.order import GROUP, RowOrder
from align.errors import AlignError, Exit
from align.rl.critic import NAME as CRITIC
from align.run_folder.launch import Launch
from align.run_folder.paths import RunDir
from align.stage.finite import Finite, Learning
from align.trainers.ppo import PpoTrainer

HERE = Path(__file__).parent
RECIPE = f"""\
name: nan
seed: 3
model: {{base: lab, dtype: float32}}
parameterization: {{method: lora}}
forgetting: {{probes: none}}
stages:
  sft:
    stage: {HERE / "nan_stage.py"}
    data: {{source: lab/helpdesk, limit: 64}}
    training: {{learning_rate: 1.0e-3, max_steps: 8, per_device_train_batch_size: 4, save_steps: 3, bf16: false}}
"""
LAUNCH = Launch()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    runs.run(runs.write(folder, RECIPE), folder / "run")
    return runs.weights(folder / "run")


def test_a_gradient_that_is_no_number_ends_the_stage_at_its_step(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was trained before it is kept: without the fault the run goes on to the weights of a run without one."""
    recipe, run = runs.write(tmp_path, RECIPE), tmp_path / "run"
    monkeypatch.setenv("NAN_AT", "5")
    said = " ".join(runs.run(recipe, run, code=Exit.STAGE_FAILED.value, cold=True).stderr.split())
    assert "the training of stage 'sft' diverged in step 5, with lines " in said
    assert "the norm of its gradients is nan" in said and "`on_nan: skip` in stage 'sft'" in said
    checkpoints = sorted(path.name for path in (run / "stages/sft/checkpoints").iterdir())
    assert checkpoints == ["checkpoint-3"]
    monkeypatch.delenv("NAN_AT")
    assert "resuming from checkpoint-3" in runs.run(recipe, run).stderr
    assert runs.weights(run) == undisturbed


@pytest.mark.slow
def test_a_stage_may_leave_such_steps_out(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for after the fault, it goes on from the checkpoint; and a fourth step in a row ends it all the same."""
    recipe, run = runs.write(tmp_path, RECIPE), tmp_path / "run"
    monkeypatch.setenv("NAN_AT", "5,7")
    runs.run(recipe, run, code=Exit.STAGE_FAILED.value, cold=True)
    shutil.copytree(run, tmp_path / "again")
    runs.write(tmp_path, RECIPE.replace("    data:", "    on_nan: skip\n    data:"))
    said = runs.run(recipe, run, cold=True).stderr
    assert "resuming from checkpoint-3" in said
    found = runs.outcome(run, "sft")
    assert [text.partition(",")[0] for text in found["warnings"]] == ["step 5", "step 7"]
    assert all(text.endswith("was left out: the norm of its gradients is nan") for text in found["warnings"])
    assert runs.weights(run).keys() == undisturbed.keys() and runs.weights(run) != undisturbed
    monkeypatch.setenv("NAN_AT", "4,5,6,7")
    said = runs.run(recipe, tmp_path / "again", code=Exit.STAGE_FAILED.value, cold=True).stderr
    assert "diverged in step 7" in said and "and 3 steps before it were left out" in " ".join(said.split())


class Told:
    """What of a job is looked at, with 24 rows of a task and 6 replayed ones in batches of 10."""

    def __init__(self, on_nan: str = "stop", launch: Launch = LAUNCH) -> None:
        self.said: list[str] = []
        self.rows, self.groups = [{}] * 30, [0] * 24 + [1] * 6
        self.run = RunDir(Path("runs/nan"))
        self.global_batch, self.keys = 10, SimpleNamespace(on_nan=on_nan)
        self.model = torch.nn.Linear(2, 2)
        self.ticket = SimpleNamespace(stage="sft", launch=launch, train=SimpleNamespace(path="data/sft.jsonl"))

    def warn(self, text: str) -> None:
        self.said.append(text)


class Trains:
    """What of a trainer is looked at."""

    def __init__(self, norm: float) -> None:
        self.norm, self.is_deepspeed_enabled = norm, False
        self.accelerator = SimpleNamespace(scaler=None)
        self.train_dataset: Any = type("Rows", (), {"column_names": [GROUP], "__len__": lambda _: 30})()
        self.order = RowOrder([5] * 30, [0] * 24 + [1] * 6, 10, "random", 3)
        self.model_wrapped: Any = None

    def row_order(self) -> RowOrder:
        return self.order

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return torch.tensor(self.norm)


def step(guard: Finite, trainer: Trains, number: int, optimizer: Any = None) -> None:
    trainer._get_grad_norm(None)
    state: Any = TrainerState(global_step=number - 1)
    guard.on_pre_optimizer_step(None, state, None, optimizer=optimizer)  # type: ignore[arg-type]
    state.global_step = number
    guard.on_step_end(None, state, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", [2, 5])
def test_the_rows_of_the_step_are_named_by_their_lines(norm: float, number: int) -> None:
    told: Any = Told()
    trainer: Any = Trains(norm)
    with pytest.raises(AlignError) as error:
        step(Finite(told, trainer), trainer, number)
    order = trainer.order.rows((number - 1) // 3)[(number - 1) % 3 * 10 :][:10]
    lines = ", ".join(str(row + 1) for row in sorted(order) if row < 24)
    assert f"step {number}, with lines {lines} of runs/nan/data/sft.jsonl and 2 replayed ones: " in error.value.what
    assert error.value.exit == Exit.STAGE_FAILED


def test_the_rows_of_a_pair_are_named_where_they_stand_by_the_places_of_steps() -> None:
    told: Any = Told()
    trainer: Any = Trains(float("nan"))
    trainer.train_dataset = SimpleNamespace(rows=trainer.train_dataset)
    with pytest.raises(AlignError, match="diverged in step 2, with lines "):
        step(Finite(told, trainer), trainer, 2)


@pytest.mark.parametrize(("policy", "critic", "seen"), [(3.0, 4.0, 3.0), (3.0, float("nan"), float("nan"))])
def test_a_gradient_of_the_critic_that_is_no_number_is_seen(policy: float, critic: float, seen: float) -> None:
    model = torch.nn.ModuleDict(
        {"policy": torch.nn.Linear(1, 1, bias=False), CRITIC: torch.nn.Linear(1, 1, bias=False)}
    )
    for name, value in (("policy", policy), (CRITIC, critic)):
        part: Any = model[name]
        part.weight.grad = torch.tensor([[value]])
    trainer: Any = SimpleNamespace(is_deepspeed_enabled=False, args=SimpleNamespace(max_grad_norm=1.0))
    trainer.accelerator = SimpleNamespace(unscale_gradients=lambda: None)
    assert float(PpoTrainer._clip_grad_norm(trainer, model)) == pytest.approx(seen, nan_ok=True)


def test_packed_rows_are_not_named() -> None:
    told: Any = Told()
    trainer: Any = Trains(float("nan"))
    trainer.train_dataset.column_names.remove(GROUP)
    with pytest.raises(AlignError, match=r"diverged in step 2: the norm of its gradients is nan"):
        step(Finite(told, trainer), trainer, 2)


def test_a_step_that_is_left_out_changes_no_weight_and_the_count_begins_anew_after_a_good_one() -> None:
    told: Any = Told("skip")
    trainer: Any = Trains(float("nan"))
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], weight_decay=0.1)
    guard = Finite(told, trainer)
    for number in range(1, 4):
        weight.grad = torch.full((3,), float("nan"))
        step(guard, trainer, number, optimizer)
        optimizer.step()
    assert weight.tolist() == [1, 1, 1] and len(told.said) == 3 and not optimizer.state[weight]
    trainer.norm = 1.0
    step(guard, trainer, 4)
    trainer.norm = float("inf")
    for number in range(5, 8):
        step(guard, trainer, number, optimizer)
    with pytest.raises(AlignError, match="and 3 steps before it were left out"):
        step(guard, trainer, 8, optimizer)


def test_a_scaler_of_fp16_looks_for_its_scale_undisturbed() -> None:
    told: Any = Told()
    trainer: Any = Trains(float("inf"))
    trainer.accelerator.scaler = object()
    step(Finite(told, trainer), trainer, 2)


def test_a_step_that_deepspeed_leaves_out_ends_the_stage() -> None:
    launch = Launch(engine="deepspeed", zero_stage=2, processes=2)
    told: Any = Told(launch=launch)
    trainer: Any = Trains(float("inf"))
    trainer.is_deepspeed_enabled = True
    optimizer = SimpleNamespace(overflow=False)
    trainer.model_wrapped = SimpleNamespace(optimizer=optimizer)
    guard = Finite(told, trainer)
    step(guard, trainer, 2)
    optimizer.overflow = True
    with pytest.raises(AlignError, match=r"diverged in step 3, with lines .*: its gradients contain NaN"):
        step(guard, trainer, 3)


def told_of(*losses: float) -> list[str]:
    told: Any = Told()
    watch, state = Learning(told), TrainerState()
    for number, loss in enumerate(losses):
        state.global_step = number + 1
        state.log_history.append({"loss": loss, "step": number + 1})
        watch.on_log(None, state, None, logs={"loss": loss})  # type: ignore[arg-type]
    return list(told.said)


def test_a_loss_that_explodes_is_told_once() -> None:
    assert told_of(2.0, 1.0, 1.2, 4.0, 8.0) == [
        "the loss explodes: it is 4 at step 4, and was 1; lower the stage's `learning_rate`"
    ]


@pytest.mark.parametrize("losses", [(2.0, 0.1, 0.5, 0.2), (2.0, 2.5, 2.9), (0.7, 0.0, 3.0), (5.0,)])
def test_a_loss_that_goes_up_and_down_is_not_told(losses: tuple[float, ...]) -> None:
    assert told_of(*losses) == []


def test_a_loss_that_is_higher_at_the_end_is_told() -> None:
    """As with a rate of a million, at which a model says the same whatever it reads."""
    losses, told = (4.7, 6.1, 6.7, 6.7, 6.7, 6.7), Told()
    watch, state = Learning(told), TrainerState()
    state.log_history = [{"loss": loss} for loss in losses]
    watch.on_train_end(None, state, None)  # type: ignore[arg-type]
    assert told.said == [
        "the loss has risen: 6.7 in the last third of the steps, 5.4 in the first; lower the stage's `learning_rate`"
    ]
    state.log_history = [{"loss": loss} for loss in losses[::-1]]
    watch.on_train_end(None, state, None)  # type: ignore[arg-type]
    assert len(told.said) == 1


def test_gradients_that_are_zero_are_told_once() -> None:
    told = Told()
    watch, state = Learning(told), TrainerState()
    for step, (norm, rate) in enumerate([(0.0, 0.0), (0.0, 1e-3), (2.0, 1e-3), (0.0, 1e-3), (0.0, 1e-3), (0.0, 1e-3)]):
        state.global_step = step + 1
        watch.on_log(None, state, None, logs={"grad_norm": norm, "learning_rate": rate})  # type: ignore[arg-type]
    (said,) = told.said
    assert said.startswith("all gradients are 0 at step 5, as they were before: nothing is learnt")


def test_weights_that_come_in_without_being_numbers_are_told_as_that(tmp_path: Path) -> None:
    """A lower rate would not help."""
    from safetensors.torch import load_file, save_file

    from align import lab

    shutil.copytree(lab.MODEL_DIR, tmp_path / "base")
    file = tmp_path / "base/model.safetensors"
    held = load_file(file)
    name = next(name for name in held if "mlp" in name)
    held[name][0, 0] = float("nan")
    save_file(held, file, metadata={"format": "pt"})
    recipe = RECIPE.replace("base: lab", "base: ./base").replace(f"    stage: {HERE / 'nan_stage.py'}\n", "")
    said = runs.run(runs.write(tmp_path, recipe), tmp_path / "run", code=Exit.STAGE_FAILED.value).stderr
    assert "the weights that stage 'sft' starts from contain NaN or infinite values, in " in " ".join(said.split())
