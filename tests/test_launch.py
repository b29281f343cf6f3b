"""The `launch:` block: what starts the processes of each stage, which stages share a child, and how it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from align.engines import choose, command
from align.errors import AlignError, Exit
from align.preflight.check import prepare
from align.recipe import resolved
from align.recipe.load import load
from align.run_folder import files
from align.run_folder.launch import ALONE, Launch
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.runner import launch, print_launch, tickets

RECIPE = """\
name: several
model: {base: lab}
parameterization: {method: lora}
forgetting: {probes: none}
launch: {processes: 2}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {max_steps: 2, per_device_train_batch_size: 4}
  again:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 32}
    training: {max_steps: 2, per_device_train_batch_size: 4}
  dpo:
    policy: again
    launch: {processes: 1}
    data: {source: lab/helpdesk_preferences, limit: 32}
    training: {max_steps: 2, per_device_train_batch_size: 8}
"""


def test_a_stage_replaces_the_launch_of_the_run_entirely(tmp_path: Path) -> None:
    found = load(runs.write(tmp_path, RECIPE), ["launch.processes=3", "stages.again.launch={}"])
    assert {plan.id: plan.launch for plan in found.stages} == {
        "sft": Launch(processes=3),
        "again": Launch(),
        "dpo": Launch(),
    }


def test_the_launch_is_in_no_fingerprint_and_the_global_batch_is(tmp_path: Path) -> None:
    def made(*overrides: str) -> dict[str, str]:
        loaded = load(runs.write(tmp_path, RECIPE), overrides)
        found = tickets.build(loaded, prepare(loaded), RunDir(tmp_path / "run"))
        return {id: ticket.fingerprint for id, ticket in found.items()}

    halved = "stages.dpo.training.per_device_train_batch_size=4"
    assert made() == made("stages.dpo.launch.processes=2", halved)
    assert made()["dpo"] != made("stages.dpo.launch.processes=2")["dpo"]


def test_the_recipe_that_a_run_keeps_has_the_same_launches(tmp_path: Path) -> None:
    found = load(runs.write(tmp_path, RECIPE))
    resolved.write(tmp_path / "kept.yaml", found)
    assert [plan.launch for plan in load(tmp_path / "kept.yaml").stages] == [plan.launch for plan in found.stages]
    again = load(tmp_path / "kept.yaml", ["launch.processes=4"])
    assert [plan.launch.processes for plan in again.stages] == [4, 4, 1], "what was inherited still is"


def test_a_ticket_of_an_older_align_says_no_more_than_the_number_of_processes(tmp_path: Path) -> None:
    loaded = load(runs.write(tmp_path, RECIPE))
    ticket = tickets.build(loaded, prepare(loaded), RunDir(tmp_path / "run"))["sft"].model_dump(mode="json")
    assert ticket.pop("launch") == {
        "engine": "ddp",
        "processes": 2,
        "machines": 1,
        "zero_stage": None,
        "offload_optimizer": False,
    }
    assert Ticket.model_validate(ticket).launch == Launch(processes=2)


def test_every_engine_has_all_that_is_asked_of_one() -> None:
    asked = {name for name in vars(choose.Engine) if not name.startswith("_")}
    assert len(asked) >= 6
    for name in choose.names():
        assert asked <= set(vars(choose.of(Launch(engine=name)))), name


PRINTED = """\
# sft, again: ddp, 2 processes
env {environment} OMP_NUM_THREADS={threads} PYTHONSAFEPATH=1 {python} -P -m accelerate.commands.launch \
--config_file {run}/launch/ddp-2.yaml --module align.worker {run}

# {run}/launch/ddp-2.yaml
compute_environment: "LOCAL_MACHINE"
distributed_type: "MULTI_GPU"
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
mixed_precision: "no"
use_cpu: false

# dpo: ddp, 1 process
env {environment} PYTHONSAFEPATH=1 {python} -P -m align.worker {run}

"""


def test_the_launch_is_printed_and_nothing_is_started(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = runs.run(runs.write(tmp_path, RECIPE), run, "--print-launch")
    threads = max(1, command.cores() // 2)
    environment = " ".join(f"{key}={value}" for key, value in launch._QUIET.items())
    assert said.stdout == PRINTED.format(environment=environment, threads=threads, python=sys.executable, run=run)
    assert not run.exists()


FOREIGN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1", "ACCELERATE_MIXED_PRECISION": "bf16"}


def test_what_another_launcher_left_in_the_environment_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process would wait for three others, and compute in another precision than the recipe says."""
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    shown = "import os, sys; print({k: os.environ.get(k) for k in sys.argv[1:]})"
    asked = [sys.executable, "-c", shown, *FOREIGN, "CUDA_VISIBLE_DEVICES"]
    monkeypatch.setattr(command, "line", lambda *_: asked)
    launch.start(tmp_path, Launch(), tmp_path / "log").communicate()
    expected = f"{dict.fromkeys(FOREIGN) | {'CUDA_VISIBLE_DEVICES': '3'}}\n"
    assert (tmp_path / "log").read_text() == expected
    by_hand = subprocess.run(["sh", tmp_path / "launch/ddp-1.sh"], capture_output=True, text=True, check=True)
    assert by_hand.stdout == expected
    found = "".join(print_launch.shown(load(runs.write(tmp_path, RECIPE)), RunDir(tmp_path)))
    assert "env -u RANK -u WORLD_SIZE -u MASTER_PORT -u ACCELERATE_MIXED_PRECISION HF_HUB" in found


def test_nobody_trains_by_hand_in_a_run_that_is_under_way(tmp_path: Path) -> None:
    with RunDir(tmp_path).locked():
        worker = [sys.executable, "-m", "align.worker", tmp_path, "sft"]
        said = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert said.returncode == Exit.BAD_INPUT
    assert said.stderr == (
        f"the run folder '{tmp_path}' is in use by process {os.getpid()}\n"
        "  -> wait for it to end, or give another --run-dir\n"
    )
    assert not RunDir(tmp_path).queue.exists()


def test_a_recipe_with_a_fault_is_not_launched(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE.replace("lab/helpdesk_preferences", "nowhere.jsonl"))
    said = runs.run(recipe, tmp_path / "run", "--print-launch", code=2)
    assert "nowhere.jsonl" in said.stderr
    assert said.stdout == ""


# Launches of accelerate that start one process, whatever is asked for, and say nothing.
SINGLE: dict[str, tuple[list[str], dict[str, Any]]] = {
    "--cpu": (["--cpu", "--num_processes", "2"], {}),
    "MULTI_CPU": ([], {"distributed_type": "MULTI_CPU", "use_cpu": True}),
    "NO": ([], {"distributed_type": "NO"}),
}
BEGIN = """\
from align.engines import choose
from align.errors import AlignError
from align.run_folder.launch import Launch

launch = Launch(processes=2)
try:
    print("began with", choose.of(launch).begin(launch).num_processes)
except AlignError as error:
    print(int(error.exit), error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_a_launch_that_starts_one_process_and_says_nothing_is_refused(name: str, tmp_path: Path) -> None:
    """None of them is ours: a later accelerate, or another configuration, may make one of ours."""
    (tmp_path / "begin.py").write_text(BEGIN, encoding="utf-8")
    ours = choose.of(Launch(processes=2)).configuration(Launch(processes=2), ALONE)
    given, changed = SINGLE[name]
    assert ours is not None
    if changed:
        (tmp_path / "theirs.json").write_text(json.dumps(ours | changed), encoding="utf-8")
        given = ["--config_file", str(tmp_path / "theirs.json")]
    started = [sys.executable, "-m", "accelerate.commands.launch", *given, tmp_path / "begin.py"]
    said = subprocess.run(started, capture_output=True, text=True, check=False)
    expected = "4 2 processes were requested, but 1 started\n  -> see child.log in the run folder\n"
    assert said.stdout == expected, said.stderr


class Stand:
    """In place of a trainer: what an engine looks at."""

    def __init__(self, processes: int, kind: str, wrapped: object) -> None:
        from types import SimpleNamespace

        self.accelerator = SimpleNamespace(num_processes=processes, distributed_type=SimpleNamespace(value=kind))
        self.model_wrapped = wrapped


@pytest.mark.parametrize(
    ("processes", "kind", "what"),
    [
        (1, "NO", "2 processes were requested, but 1 started"),
        (2, "FSDP", "DDP was requested, but the trainer is of the type FSDP and trains a Linear"),
        (2, "MULTI_CPU", "DDP was requested, but the trainer is of the type MULTI_CPU and trains a Linear"),
    ],
)
def test_a_trainer_that_exchanges_no_gradients_is_refused(processes: int, kind: str, what: str) -> None:
    import torch

    two = Launch(processes=2)
    with pytest.raises(AlignError) as error:
        choose.of(two).prove(Stand(processes, kind, torch.nn.Linear(1, 1)), two)  # type: ignore[arg-type]
    assert (error.value.what, error.value.exit) == (what, Exit.MACHINE)


class DeepSpeedEngine:
    """What DeepSpeed puts around a model, as far as it is looked at."""

    def __init__(self, stage: int, among: int, offloads: bool = False) -> None:
        self.stage, self.dp_world_size = stage, among
        self.optimizer = SimpleNamespace(cpu_offload=offloads)

    def zero_optimization_stage(self) -> int:
        return self.stage


@pytest.mark.parametrize(
    ("processes", "kind", "stage", "among", "what"),
    [
        (1, "DEEPSPEED", 2, 1, "2 processes were requested, but 1 started"),
        (2, "MULTI_CPU", 2, 2, "{asked}, but the trainer is of the type MULTI_CPU and trains a DeepSpeedEngine"),
        (2, "DEEPSPEED", 0, 2, "ZeRO-2 among 2 processes was requested, but DeepSpeed runs ZeRO-0 among 2"),
        (2, "DEEPSPEED", 2, 1, "ZeRO-2 among 2 processes was requested, but DeepSpeed runs ZeRO-2 among 1"),
    ],
)
def test_another_deepspeed_than_was_asked_for_is_refused(
    processes: int, kind: str, stage: int, among: int, what: str
) -> None:
    two = Launch(engine="deepspeed", processes=2, zero_stage=2)
    stand: Any = Stand(processes, kind, DeepSpeedEngine(stage, among))
    with pytest.raises(AlignError) as error:
        choose.of(two).prove(stand, two)
    assert error.value.what == what.format(asked="DeepSpeed was requested")
    choose.of(two).prove(Stand(2, "DEEPSPEED", DeepSpeedEngine(2, 2)), two)  # type: ignore[arg-type]


def test_a_launch_that_does_not_ask_for_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    two = Launch(engine="deepspeed", processes=2, zero_stage=2)
    with pytest.raises(AlignError, match="DeepSpeed was requested, but the launch does not ask accelerate for it"):
        choose.of(two).begin(two)


def test_the_configuration_of_deepspeed_is_one_that_accelerate_reads(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    line = launch.line(tmp_path, Launch(engine="deepspeed", processes=2, zero_stage=2))
    line.write()
    read = load_config_from_file(str(tmp_path / "launch/deepspeed-2.yaml"))
    assert (read.distributed_type.value, read.num_processes, read.mixed_precision) == ("DEEPSPEED", 2, "no")
    assert read.deepspeed_config["zero_stage"] == 2


def test_zero_3_loads_models_whole_and_has_files_of_its_own(tmp_path: Path) -> None:
    line = launch.line(tmp_path, Launch(engine="deepspeed", processes=2, zero_stage=3))
    line.write()
    text = (tmp_path / "launch/deepspeed-zero3-2.yaml").read_text(encoding="utf-8")
    assert '"zero_stage": 3' in text and '"zero3_init_flag": false' in text


def test_an_offloaded_optimizer_is_asked_for_and_has_files_of_its_own(tmp_path: Path) -> None:
    line = launch.line(tmp_path, Launch(engine="deepspeed", processes=2, zero_stage=2, offload_optimizer=True))
    line.write()
    text = (tmp_path / "launch/deepspeed-offload-2.yaml").read_text(encoding="utf-8")
    assert '"offload_optimizer_device": "cpu"' in text and '"offload_param_device": "none"' in text


@pytest.mark.parametrize(
    ("asked", "kept", "where"), [(True, False, "main memory"), (False, True, "the device's memory")]
)
def test_an_optimizer_that_deepspeed_keeps_elsewhere_is_refused(asked: bool, kept: bool, where: str) -> None:
    two = Launch(engine="deepspeed", processes=2, zero_stage=2, offload_optimizer=asked)
    with pytest.raises(AlignError, match=f"the optimizer's state was to be kept in {where}"):
        choose.of(two).prove(Stand(2, "DEEPSPEED", DeepSpeedEngine(2, 2, kept)), two)  # type: ignore[arg-type]
    choose.of(two).prove(Stand(2, "DEEPSPEED", DeepSpeedEngine(2, 2, asked)), two)  # type: ignore[arg-type]


@pytest.mark.slow
def test_stages_with_the_same_launch_share_a_child_and_a_change_starts_another(tmp_path: Path) -> None:
    """And the script that the run keeps executes a ticket by hand, to the same weights."""
    run = tmp_path / "run"
    recipe = runs.write(tmp_path, RECIPE)
    runs.run(recipe, run, cold=True)
    worlds = {id: runs.outcome(run, id) for id in ("sft", "again", "dpo")}
    assert {id: (found["world_size"], found["distributed_type"]) for id, found in worlds.items()} == {
        "sft": (2, "MULTI_CPU"),
        "again": (2, "MULTI_CPU"),
        "dpo": (1, "NO"),
    }
    kept = {path.name for path in (run / "launch").iterdir()}
    assert kept == {"ddp-1.sh", "ddp-2.sh", "ddp-2.yaml"}
    assert (run / "launch/ddp-2.yaml").read_text() in PRINTED.format(environment="", threads=0, python="", run=run)

    weights, again = runs.weights(run), run / "stages/again"
    (again / "outcome.json").unlink()
    ticket = files.read_json(again / "ticket.json")
    assert ticket["resume_from"] is None
    subprocess.run(["sh", run / "launch/ddp-2.sh", "again"], check=True, stdin=subprocess.DEVNULL)
    assert runs.weights(run) == weights
