"""A run on several machines: how they find each other, and what each says when another is lost.

The slow tests start two commands on this machine, that meet at a loopback address, and end one of them in mid-stage.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import runs
from align.errors import AlignError, Exit
from align.run_folder import checkpoints, files
from align.run_folder import machines as records
from align.run_folder.launch import Launch, Place
from align.run_folder.machines import Answer, Call
from align.run_folder.paths import RunDir
from align.runner import follow, machines
from align.runner.follow import Follower
from align.runner.machines import Machines
from align.runner.processes import tree

TWO = Launch(processes=2, machines=2)
HERE = Place(0, "node0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes are tenths of a second."""
    monkeypatch.setattr(records, "EVERY", 0.05)
    monkeypatch.setattr(machines, "PATIENCE", 0.05)
    for module in (machines, follow):
        monkeypatch.setattr(module, "GATHERING", 1.0)
        monkeypatch.setattr(module, "SILENT", 0.6)
        monkeypatch.setattr(module, "POLL", 0.01)
        monkeypatch.setattr(module, "BROKEN", 1.2)


def others(run: Path, said: list[str] | None = None) -> Machines:
    return Machines(RunDir(run), HERE, "recipe", (said if said is not None else []).append)


def answering(folder: Path, first: Machines, **given: object) -> None:
    """Machine 1 answers the last call."""
    assert first.call is not None
    own = {"machine": 1, "host": "far", "who": "a", "run": first.call.run, "id": first.call.id, "state": "ready"}
    answer = Answer.model_validate({**own, **given})
    files.write_json(RunDir(folder).answer(1), answer.model_dump(mode="json"))


def later(do: Callable[[], object], seconds: float = 0.2) -> None:
    threading.Timer(seconds, do).start()


# ---- the first machine -----------------------------------------------------------------------------------------------


def test_the_first_machine_starts_once_the_others_are_ready(tmp_path: Path) -> None:
    said = list[str]()
    with others(tmp_path, said) as one:
        assert files.read_json(RunDir(tmp_path).call)["state"] == "busy", "the others hear of it from the start"
        later(lambda: answering(tmp_path, one))
        place = one.gather(TWO, [])
        assert (place.machine, place.address) == (0, "node0")
        call = Call.model_validate(files.read_json(RunDir(tmp_path).call))
        assert (call.state, call.port, call.launch, call.members) == ("start", place.port, TWO, ((1, "a"),))
        assert said == [f"waiting for machine 1 in the run folder {tmp_path}"]
    assert files.read_json(RunDir(tmp_path).call)["state"] == "over"


@pytest.mark.parametrize("stale", [{"id": "1"}, {"run": "1"}])
def test_an_answer_to_an_earlier_call_counts_for_nothing(stale: dict[str, str], tmp_path: Path) -> None:
    with others(tmp_path) as one:
        later(lambda: answering(tmp_path, one, **stale))
        with pytest.raises(AlignError, match="machine 1 did not answer within") as error:
            one.gather(TWO, [])
    assert error.value.exit == Exit.STAGE_FAILED, "a scheduler may try again"


def test_a_machine_that_cannot_take_part_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    with others(tmp_path) as one:
        later(lambda: answering(tmp_path, one, state="refused", what="'/models/x' is not there", remedy="copy it"))
        with pytest.raises(AlignError, match=r"machine 1 \(far\) cannot take part: '/models/x' is not there") as error:
            one.gather(TWO, [])
    assert (error.value.exit, error.value.remedy) == (Exit.MACHINE, "copy it")


def test_a_machine_that_falls_silent_is_lost(tmp_path: Path) -> None:
    with others(tmp_path) as one:
        later(lambda: answering(tmp_path, one))
        one.gather(TWO, [])
        for number in range(10):  # it lives
            answering(tmp_path, one, state="running", signs=number + 1)
            assert one.lost() is None
            time.sleep(0.1)
        answering(tmp_path, one, who="b", signs=99)  # another one with its number is not it
        time.sleep(0.7)
        found = one.lost()
        assert found is not None
        assert found.what.startswith("nothing was heard of machine 1 (far) for ")
        assert found.remedy == "run the same command on every machine again; it resumes"


def test_a_machine_says_why_it_ended(tmp_path: Path) -> None:
    with others(tmp_path) as one:
        later(lambda: answering(tmp_path, one))
        one.gather(TWO, [])
        answering(tmp_path, one, state="ended", code=1, what="rank 1 of 2 was killed", signs=1)
        found = one.lost()
        assert found is not None
        assert found.what == "machine 1 (far): rank 1 of 2 was killed"
        answering(tmp_path, one, state="ended", code=0, signs=2)
        assert one.lost() is None


def test_a_machine_that_is_asked_to_leave_asks_the_first_one(tmp_path: Path) -> None:
    with others(tmp_path) as one:
        answering(tmp_path, one, state="interrupted", run="of a run before")
        assert not one.asked()
        answering(tmp_path, one, state="interrupted")
        assert one.asked()
        with pytest.raises(KeyboardInterrupt):
            one.gather(TWO, [])


def test_without_other_machines_nobody_waits_for_one(tmp_path: Path) -> None:
    with Machines(RunDir(tmp_path), Place(), "recipe", print) as one:
        assert one.lost_soon() is None
        assert not one.asked()
        one.end()
    assert not RunDir(tmp_path).machines.exists()


@pytest.mark.parametrize(
    ("launch", "place", "what"),
    [
        (TWO, Place(), "a stage is launched on 2 machines, and the command does not say where they meet"),
        (Launch(), HERE, "--main-address says where several machines meet, and no stage is launched on several"),
        (TWO, Place(2, "node0"), "--machine-rank 2: there are 2 machines, from 0"),
    ],
)
def test_a_command_that_does_not_fit_the_launch_is_refused(launch: Launch, place: Place, what: str) -> None:
    with pytest.raises(AlignError) as error:
        machines.check([Launch(), launch], place)
    assert error.value.what == what


# ---- another machine -------------------------------------------------------------------------------------------------


def follower(run: Path, number: int = 1, recipe: str = "recipe") -> Follower:
    return Follower(RunDir(run), Place(number, "node0"), recipe, lambda _: None)


def calling(folder: Path, **given: object) -> None:
    own = {"run": "r", "id": "7", "state": "gather", "recipe": "recipe", "launch": TWO, "folder": "/"}
    call = Call.model_validate({**own, **given})
    files.write_json(RunDir(folder).call, call.model_dump(mode="json"))


def told(run: Path, number: int = 1) -> Answer:
    return Answer.model_validate(files.read_json(RunDir(run).answer(number)))


@pytest.mark.parametrize(
    ("recipe", "needs", "what"),
    [
        ("another", (), "it was given another recipe than the first machine, or other values of --set"),
        ("recipe", ("/not/there",), "'/not/there' is not there"),
    ],
)
def test_a_machine_that_does_not_fit_says_so_on_both_sides(
    recipe: str, needs: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    one = follower(tmp_path, recipe=recipe)
    calling(tmp_path, needs=needs)
    with pytest.raises(AlignError) as error:
        one.follow()
    assert error.value.what == what
    assert (told(tmp_path).state, told(tmp_path).what) == ("refused", what)


def test_a_call_for_fewer_machines_is_not_for_the_rest(tmp_path: Path) -> None:
    one = follower(tmp_path, 2)
    calling(tmp_path)
    later(lambda: calling(tmp_path, state="over", signs=1))
    assert one.follow() == Exit.DONE
    assert told(tmp_path, 2).state == "here"


def test_of_two_with_one_number_only_one_takes_part(tmp_path: Path) -> None:
    one = follower(tmp_path)
    calling(tmp_path)
    later(lambda: calling(tmp_path, state="start", members=[(1, "the other")], signs=1))
    with pytest.raises(AlignError, match="another machine 1 takes part in this run"):
        one.follow()


def test_a_call_of_an_earlier_run_is_not_answered(tmp_path: Path) -> None:
    calling(tmp_path)
    one = follower(tmp_path)
    later(lambda: calling(tmp_path, state="over", code=130, signs=1))  # its end is not this one's either
    with pytest.raises(AlignError, match="the first machine has not called for") as error:
        one.follow()
    assert error.value.exit == Exit.STAGE_FAILED
    assert not RunDir(tmp_path).answer(1).exists()


def test_a_machine_does_not_go_over_to_another_run(tmp_path: Path) -> None:
    one = follower(tmp_path)
    calling(tmp_path, state="busy")
    later(lambda: calling(tmp_path, run="anew"))
    with pytest.raises(AlignError, match="the first machine was started anew"):
        one.follow()


def test_a_first_machine_that_is_busy_is_waited_for_and_one_that_falls_silent_is_told(tmp_path: Path) -> None:
    one, began = follower(tmp_path), time.monotonic()
    for number in range(15):
        later(lambda number=number: calling(tmp_path, state="busy", signs=number), 0.1 * number)  # type: ignore[misc]
    with pytest.raises(AlignError, match="nothing was heard of the first machine for"):
        one.follow()
    assert time.monotonic() - began > 1.4, "longer than an answer may take"


def test_a_disk_that_cannot_be_read_just_now_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("align.run_folder.reading.whole", stale)
    assert records.read(tmp_path / "call.json", Call) is None


def test_the_end_of_the_run_is_the_end_of_all(tmp_path: Path) -> None:
    def ends(code: int, why: str = "") -> Follower:
        one = follower(tmp_path)
        calling(tmp_path, state="busy", run=str(code))
        later(lambda: calling(tmp_path, state="over", run=str(code), code=code, why=why, remedy="mend it", signs=1))
        return one

    assert ends(3).follow() == Exit.GATE
    with pytest.raises(AlignError, match="the first machine ended the run: stage 'sft' failed") as error:
        ends(1, "stage 'sft' failed").follow()
    assert error.value.remedy == "mend it"
    with pytest.raises(KeyboardInterrupt):
        ends(130).follow()


# ---- two commands ---------------------------------------------------------------------------------------------------

CHAIN = """\
name: far
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    training: &training
      {bf16: false, max_steps: 12, save_steps: 2, learning_rate: 1.0e-3, per_device_train_batch_size: 4}
  dpo:
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 64}
    training: *training
"""


class Pair:
    """The same command on two machines."""

    def __init__(self, recipe: Path, run: Path, engine: str = "ddp") -> None:
        self.run = run
        common = ["--processes", "2", "--machines", "2", "--main-address", "127.0.0.2"]
        common += ["--set", f"launch.engine={engine}"]
        settings = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        self.machines = [
            subprocess.Popen(
                [*runs.command(recipe, run, *common), "--machine-rank", str(rank)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=settings,
                start_new_session=True,
            )
            for rank in (1, 0)
        ][::-1]

    def wait_for_checkpoint(self, stage: str) -> None:
        there = self.run / "stages" / stage / "checkpoints"
        until = time.monotonic() + 300
        while not any(there.glob(f"*/{checkpoints.COMPLETE}")):
            assert time.monotonic() < until
            assert all(machine.poll() is None for machine in self.machines), self.ended()
            time.sleep(0.05)

    def ended(self) -> list[tuple[int, str]]:
        """Exit code and messages of each; nothing is left of them."""
        started = tree([machine.pid for machine in self.machines])
        said = [machine.communicate(timeout=300)[1] for machine in self.machines]
        assert not tree(started), "nothing runs on"
        return [(machine.returncode, text) for machine, text in zip(self.machines, said, strict=True)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("recipe"), CHAIN)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes on one machine."""
    run = tmp_path_factory.mktemp("one") / "run"
    runs.run(recipe, run, "--processes", "2")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_machines_train_what_one_trains(engine: str, recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    pair = Pair(recipe, tmp_path / "run", engine)
    assert [code for code, _ in pair.ended()] == [0, 0]
    if engine == "ddp":
        assert runs.weights(pair.run) == runs.weights(undisturbed)
    for stage in ("sft", "dpo"):
        one, two = (
            load_file(run / f"stages/{stage}/model/adapter_model.safetensors") for run in (undisturbed, pair.run)
        )
        assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-5
    assert runs.outcome(pair.run, "dpo")["world_size"] == 2
    assert (pair.run / "launch" / f"{engine}-2-on-2-1.sh").is_file()
    hosts = [files.read_json(path)["machine"] for path in pair.run.glob("machines/[0-9].json")]
    assert hosts == [1]


LOST = {
    "the other": (1, signal.SIGKILL, "nothing was heard of machine 1 (", None),
    "the first": (0, signal.SIGKILL, None, "nothing was heard of the first machine for "),
    "asked to leave": (1, signal.SIGTERM, "interrupted; run the same command again to resume", "interrupted; run the"),
}


@pytest.mark.slow
@pytest.mark.parametrize("who", LOST)
def test_one_that_is_cut_off_ends_both_and_the_run_goes_on(
    who: str, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    rank, how, first, other = LOST[who]
    pair = Pair(recipe, tmp_path / "run")
    pair.wait_for_checkpoint("dpo")
    os.kill(pair.machines[rank].pid, how)
    ends = pair.ended()
    for (code, said), words in zip(ends, (first, other), strict=True):
        if words is None:
            assert code == -signal.SIGKILL
        else:
            assert words in said, said
            assert code == (130 if how == signal.SIGTERM else 1)
    assert not (pair.run / "stages/dpo/outcome.json").exists()
    again = Pair(recipe, pair.run)
    ends = again.ended()
    assert [code for code, _ in ends] == [0, 0], ends
    assert "dpo: direct preference optimization against the starting policy (resuming from checkpoint-" in ends[0][1]
    assert runs.weights(pair.run) == runs.weights(undisturbed)


@pytest.mark.slow
def test_a_process_that_is_killed_on_another_machine_is_named(recipe: Path, tmp_path: Path) -> None:
    pair = Pair(recipe, tmp_path / "run")
    pair.wait_for_checkpoint("sft")
    os.kill(files.read_json(RunDir(pair.run).heartbeat(1))["pid"], signal.SIGKILL)
    (code, said), (other, told) = pair.ended()
    assert (code, other) == (1, 1)
    assert "rank 1 of 2 was ended by the system with SIGKILL" in said
    assert "the first machine ended the run: machine 1 (" in told
    shutil.rmtree(pair.run)
