"""When a silent process hangs: limits by phase that are learnt from the run, on a clock of the test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from align.run_folder import heartbeats
from align.run_folder.heartbeats import Beat, Heart, Phase
from align.run_folder.paths import RunDir
from align.runner import stacks, supervise
from align.runner.hung import Listener, Silence
from align.runner.stacks import Frame


class World:
    """Processes that tell of life, and a parent that looks every half second."""

    def __init__(self, world: int = 1) -> None:
        self.listener, self.now = Listener(), 0.0
        self.beats = {rank: Beat(rank=rank, world=world, pid=1, stage="sft") for rank in range(world)}
        self.listener.hear(self.beats, self.now)

    def beat(self, phase: Phase, rank: int = 0, **changed: Any) -> None:
        old = self.beats[rank]
        made = {"count": old.count + 1, "signs": old.signs + 1, "seconds": self.now}
        self.beats[rank] = old.but(phase=phase, **(made | changed))

    def wait(self, seconds: float) -> Silence | None:
        """What the parent finds until then, if anything."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            found = self.listener.hear(self.beats, self.now)
            if found is not None:
                return found
        return None

    def steps(self, *seconds: float, phase: Phase = "step") -> None:
        """Signs of a phase that are so far apart."""
        for number, apart in enumerate(seconds, 1):
            assert self.wait(apart) is None
            self.beat(phase, step=number)
        self.wait(0.5)


def test_a_process_that_loads_or_compiles_has_half_an_hour() -> None:
    world = World()
    assert world.wait(1799) is None
    world.beat("start-up")
    assert world.wait(1799) is None, "each sign of life counts"
    world.beat("step")
    assert world.wait(1799) is None, "the first step compiles"
    found = world.wait(3)
    assert found is not None and found.limit == 1800.0 and 1800 < found.seconds <= 1802


@pytest.mark.parametrize(
    ("usual", "limit"),
    [((0.2,) * 5, 60.0), ((3.0,) * 5, 60.0), ((20.0, 20.0, 30.0, 20.0), 300.0)],
    ids=["a floor", "still the floor", "ten times the longest"],
)
def test_the_limit_of_a_step_is_learnt_from_the_steps_before(usual: tuple[float, ...], limit: float) -> None:
    world = World()
    world.beat("step")
    world.steps(*usual)
    assert world.wait(limit - 2) is None
    found = world.wait(4)
    assert found is not None and found.limit == limit and limit < found.seconds < limit + 2


def test_two_steps_do_not_tell_yet_what_is_usual() -> None:
    world = World()
    world.beat("step")
    world.steps(1.0, 1.0)
    assert world.wait(1790) is None


def test_a_first_step_that_compiles_is_a_step_too() -> None:
    """A rollout that comes again may be in it."""
    world = World()
    world.beat("step")
    world.steps(90.0, 1.0, 1.0, 1.0)
    assert world.wait(890) is None
    assert world.wait(20) is not None


def test_a_rollout_between_quick_steps_has_a_limit_of_its_own() -> None:
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.beat("rollout")
    assert world.wait(100) is None
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.beat("rollout")
    assert world.wait(990) is None
    assert world.wait(20) is not None


def test_what_came_and_went_between_two_looks_is_known_too() -> None:
    """A rollout of a tenth of a second, of which the parent saw nothing."""
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 3)
    world.beat("step", passed={"rollout": 9.0, "step": 1.0}, step=4)
    assert world.wait(1) is None
    world.beat("rollout", step=4)
    found = world.wait(1000)
    assert found is not None and found.limit == 60.0, "not 90: it cannot have taken longer than since the last look"


def test_a_process_that_computes_does_not_hang_where_nothing_is_usual_yet() -> None:
    """A stage of the user's own, with a loop of its own."""
    world = World()
    for _ in range(5):
        assert world.wait(1700) is None
        world.listener.hear(world.beats, world.now, {0})
    assert world.wait(1799) is None
    assert world.wait(5) is not None
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.wait(50)
    world.listener.hear(world.beats, world.now, {0})
    assert world.wait(20) is not None, "one that only waits busily"


def test_a_process_that_reads_or_writes_does_not_hang() -> None:
    """A disk that has become slow: the first checkpoint took a second, the next one takes minutes."""
    world = World()
    world.beat("saving", step=1)
    world.wait(1)
    world.beat("step")
    world.wait(1)
    world.beat("saving", step=2)
    for _ in range(5):
        assert world.wait(55) is None
        world.listener.hear(world.beats, world.now, moving={0})
    assert world.wait(59) is None
    assert world.wait(3) is not None


def test_a_stage_that_compiles_may_do_so_again_at_any_step() -> None:
    """For a row of another length."""
    world = World()
    world.listener.reset(compiles=True)
    world.beat("step")
    world.steps(*(1.0,) * 6)
    assert world.wait(1790) is None
    assert world.wait(20) is not None


def test_a_process_that_is_suspended_with_its_parent_teaches_nothing() -> None:
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.now += 86_400
    world.beat("step", step=7)  # its own clock went on
    assert world.wait(120) is not None


def test_quick_steps_are_known_after_a_second() -> None:
    """Of which a sign is written once in a while."""
    world = World()
    world.beat("step")
    assert world.wait(1.2) is None
    world.beat("step", signs=6)
    assert world.wait(59) is None
    assert world.wait(2) is not None


def test_saving_is_not_a_long_step() -> None:
    world = World()
    world.beat("step")
    world.steps(1.0, 1.0, 1.0, 1.0, 1.0)
    world.beat("saving")
    assert world.wait(1500) is None, "how long a checkpoint takes is not known yet"
    world.beat("step")
    world.steps(1.0, 1.0)
    world.beat("saving")
    assert world.wait(14_990) is None, "ten times what the first one took"
    assert world.wait(20) is not None


def test_measuring_is_known_once_it_was_gone_through() -> None:
    """Its batches differ: those that are generated come after those that are not."""
    world = World()
    world.beat("measuring", stage="sft")
    world.steps(1.0, 1.0, 1.0, 1.0, phase="measuring")
    assert world.wait(900) is None, "the first slow one"
    world.beat("closing")
    world.wait(1)
    world.beat("measuring", stage="dpo")
    world.wait(1)
    found = world.wait(10_000)
    assert found is not None and found.limit == 10 * 900.5, "of all stages alike"


def test_the_steps_of_another_stage_are_not_known() -> None:
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.beat("start-up", stage="ppo")
    world.wait(1)
    world.beat("step", stage="ppo")
    assert world.wait(1700) is None


def test_one_that_waits_for_another_does_not_hang() -> None:
    world = World(2)
    for rank in (0, 1):
        world.beat("step", rank)
    for number in range(1, 7):
        world.wait(1)
        for rank in (0, 1):
            world.beat("step", rank, step=number)
    for _ in range(20):  # the first one saves, in pieces, as the other waits
        world.beat("saving", 0)
        assert world.wait(50) is None
    world.beat("step", 0, step=6)
    assert world.wait(59) is None
    found = world.wait(700)
    assert found is not None and found.limit == 60.0 and [beat.rank for beat in found.ranks] == [1, 0], "by its age"


def test_the_longest_limit_of_all_counts() -> None:
    world = World(2)
    for rank in (0, 1):
        world.beat("step", rank)
    for number in range(1, 7):
        world.wait(1)
        for rank in (0, 1):
            world.beat("step", rank, step=number)
    world.beat("saving", 0)
    assert world.wait(1700) is None, "the other one only waits"


def test_time_in_which_the_parent_stood_still_does_not_count() -> None:
    """A scheduler that suspends a job, a computer that sleeps."""
    world = World()
    world.beat("step")
    world.steps(*(1.0,) * 6)
    world.now += 86_400
    assert world.wait(50) is None
    assert world.wait(10) is not None


def test_a_process_that_waits_for_a_ticket_or_has_left_is_not_listened_to() -> None:
    world = World(2)
    world.beat("waiting", 0)
    world.beat("step", 1, left=0)
    assert world.wait(5000) is None
    world.listener.reset()
    world.beat("start-up", 0)
    assert world.wait(1799) is None
    assert world.wait(2) is not None


# ---- the files ----------------------------------------------------------------------------------------------------


def test_a_heart_writes_once_a_second_and_at_each_change(tmp_path: Path) -> None:
    run, now = RunDir(tmp_path), [0.0]
    heart = Heart(run.heartbeat(1), 1, 2, clock=lambda: now[0])

    def told() -> tuple[int, str, int]:
        beat = heartbeats.read(run)[1]
        return beat.count, beat.phase, beat.step

    assert told() == (1, "waiting", 0)
    heart.beat("step", step=1)
    assert told() == (2, "step", 1)
    now[0] = 0.09
    heart.beat("step", step=2)
    assert told() == (2, "step", 1)
    now[0] = 0.1
    heart.beat(step=3)
    assert told() == (3, "step", 3)
    now[0] = 1.0
    heart.beat("step", step=3)
    assert told() == (3, "step", 3), "the same step is no news"
    now[0] = 1.1
    heart.beat()
    assert told() == (4, "step", 3)
    heart.beat("saving", step=3)
    assert told() == (5, "saving", 3), "a phase has a limit of its own"
    heart.leave(130)
    beat = heartbeats.read(run)[1]
    assert (beat.left, beat.pid, beat.world, run.heartbeat(1).stat().st_size) == (130, os.getpid(), 2, heartbeats.BYTES)


def test_a_process_tells_how_long_its_phases_took(tmp_path: Path) -> None:
    run, now = RunDir(tmp_path), [0.0]
    heart = Heart(run.heartbeat(0), 0, 1, clock=lambda: now[0])

    def go(seconds: float, phase: Phase | None = None, **told: Any) -> dict[Phase, float]:
        now[0] += seconds
        heart.beat(phase, **told)
        return heartbeats.read(run)[0].passed

    assert go(5.0, "step", step=0, stage="sft") == {}, "what came before the stage is none of it"
    assert go(0.2, "rollout") == {"step": 0.2}
    assert go(0.3) == {"step": 0.2}
    assert go(0.1, "step") == {"step": 0.2, "rollout": 0.3}, "the longest between two signs, written or not"
    assert go(0.1, "rollout") == {"step": 0.2, "rollout": 0.3}
    assert go(0.9, "step") == {"step": 0.2, "rollout": 0.9}
    assert go(0.1, "start-up", step=0, stage="ppo") == {}, "each stage trains in its own way"


def test_a_file_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert heartbeats.read(run) == {}
    Heart(run.heartbeat(0), 0, 2)
    run.heartbeat(1).write_text('{"rank": 1, "wor')
    assert list(heartbeats.read(run)) == [0]


def test_within_a_phase_the_one_before_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    heartbeats.beat("step")  # nothing listens in a process that is none of a child
    monkeypatch.setattr(heartbeats, "_heart", None)
    heartbeats.begin(run, 0, 1)
    heartbeats.beat("step", step=4)
    with heartbeats.during("measuring"):
        assert heartbeats.read(run)[0].phase == "measuring"
    assert (heartbeats.read(run)[0].phase, heartbeats.read(run)[0].step) == ("step", 4)
    with pytest.raises(RuntimeError), heartbeats.during("measuring"):
        raise RuntimeError
    assert heartbeats.where() == ("measuring", 4), "where it failed"


# ---- who it was ---------------------------------------------------------------------------------------------------

DUMP = """\
what the log said before
Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait

Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 706 in readinto
  File "/home/me/own.py", line 9 in rewards
  File "/venv/lib/python3.11/site-packages/trl/trainer.py", line 100 in train
"""
COLLECTIVE = [Frame("/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", 2810, "all_reduce")]
BUFFERS = [Frame("/venv/lib/python3.11/site-packages/torch/nn/parallel/distributed.py", 2363, "_sync")]
BACKWARD = [Frame("/venv/lib/python3.11/site-packages/torch/autograd/graph.py", 829, "_engine_run_backward")]


def test_the_stack_of_the_main_thread_is_read() -> None:
    frames = stacks.frames_in(DUMP)
    assert [str(frame) for frame in frames][:2] == [
        "/usr/lib/python3.11/socket.py:706 in readinto",
        "/home/me/own.py:9 in rewards",
    ]
    assert len(frames) == 3
    assert stacks.own(frames) == frames[1], "Python's own library says least"
    assert stacks.own(frames[:1]) == frames[0]
    assert stacks.own([]) is None
    assert stacks.frames_in("no stack") == []


@pytest.mark.parametrize(
    ("states", "found", "rank"),
    [
        ({0: "S", 1: "T"}, {0: COLLECTIVE}, 1),
        ({0: "D", 1: "S"}, {1: COLLECTIVE}, 0),
        ({0: "S", 1: "S"}, {0: COLLECTIVE, 1: stacks.frames_in(DUMP)}, 1),
        ({0: "R", 1: "S"}, {0: stacks.frames_in(DUMP), 1: BACKWARD}, 0),
        ({0: "S", 1: "S"}, {0: stacks.frames_in(DUMP), 1: BUFFERS}, 0),
        ({0: "S", 1: "S"}, {0: COLLECTIVE, 1: BACKWARD}, 1),
        ({0: "S", 1: "S"}, {}, 1),
    ],
    ids=["stopped", "disk", "busy", "busy first", "busy beside buffers", "behind", "no stacks"],
)
def test_who_is_blamed(states: dict[int, str], found: dict[int, list[Frame]], rank: int) -> None:
    behind = tuple(Beat(rank=number, world=2, pid=1, step=9 - number) for number in (1, 0))
    assert supervise.blamed(Silence(behind, 61.0, 60.0), states, found).rank == rank
