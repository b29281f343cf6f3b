"""The child's end of an interpolation: shares measured from the top, the policy written, and the same after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import models
from align.errors import AlignError
from align.forgetting import measurements
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Split
from align.interpolation import search
from align.interpolation.shares import GRID
from align.lab import data, probes
from align.policy import stack
from align.run_folder import files, messages, reading
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult, Shape
from align.run_folder.launch import Launch
from align.run_folder.messages import Finish, Interpolate
from align.run_folder.paths import RunDir
from align.run_folder.records import Adapter, Policy, Ticket
from align.run_folder.stage_dir import StageDir
from align.runner import launch
from align.stage.callbacks import Interrupted
from align.worker import execute, interpolate, measuring
from models import BASE, FULL, LORA, QLORA, Stages, settings

pytestmark = pytest.mark.slow
SKILLS = ("copy", "sort", "twice")
LIMITS = {"max_drop": 0.2, "max_mean_drop": 0.1, "max_perplexity_ratio": 1.5}
DORA = settings("lora", lora={"r": 4, "alpha": 8, "use_dora": True})


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Stages that forget what the lab's model knows, measured on a few items of three skills."""
    at = Stages(RunDir(tmp_path_factory.mktemp("interpolate")))
    own = {}
    halves: tuple[Split, ...] = ("gate", "report")
    for skill in SKILLS:
        rows = [item for half in halves for item in probes.items(skill, half)[:20]]
        path = at.run.root / f"{skill}.jsonl"
        path.write_text("".join(json.dumps({"prompt": row.prompt, "completion": row.answer}) + "\n" for row in rows))
        own[skill] = {"data": str(path), "metric": "exact"}

    def go(id: str, policy: Policy, method: dict[str, Any], rate: float, steps: int) -> Policy:
        rows = data.rows("lab/helpdesk", n=160)
        given = {"learning_rate": rate, "max_steps": steps, "per_device_train_batch_size": 8}
        ticket = at.ticket(id, "sft", policy, method, rows=rows, **given)
        ticket.probes, ticket.measure_base, ticket.probes_sha256 = own, not at.outcomes, "own"
        files.write_json(at.run.stage(id).ticket, ticket.model_dump(mode="json"))
        return at.execute(ticket)

    go("lora", BASE, LORA, 2e-2, 20)
    mild = go("mild", BASE, LORA, 1e-3, 4)
    go("further", mild, LORA, 2e-2, 20)
    go("full", BASE, FULL, 8e-3, 16)
    go("qlora", BASE, QLORA, 2e-2, 20)
    go("dora", BASE, DORA, 2e-3, 1)
    return at


def request(
    stages: Stages, id: str, shape: Shape, key: str = "one", made_of: str = "", **limits: Any
) -> InterpolationRequest:
    wanted = {**LIMITS, **limits}
    found = InterpolationRequest(stage=id, shape=shape, shares=GRID, limits=wanted, made_of=made_of, key=key)
    files.write_json(stages.run.stage(id).interpolation_request, found.written())
    return found


def interpolated(stages: Stages, id: str, stop: Callable[[], bool] = lambda: False) -> InterpolationResult:
    here = stages.run.stage(id)
    found = interpolate.do(stages.run, Ticket.model_validate(files.read_json(here.ticket)), stop)
    assert found is not None
    return found


def drops(stages: Stages, folder: Path) -> dict[str, float]:
    """Of each skill on the gate's items, counted from the lines themselves."""
    means = []
    for one in (stages.run.base_measurements, folder):
        rows = [json.loads(line) for line in (one / "items.jsonl").read_text().splitlines()]
        gate = [row for row in rows if row["split"] == "gate"]
        means.append({s: [row["score"] for row in gate if row["probe"] == s] for s in SKILLS})
    return {s: sum(means[0][s]) / len(means[0][s]) - sum(means[1][s]) / len(means[1][s]) for s in SKILLS}


def passes(found: dict[str, float], drop: float = 0.2, mean: float = 0.1) -> bool:
    return max(found.values()) <= drop + 1e-9 and sum(found.values()) / len(found) <= mean + 1e-9


def fresh(stages: Stages, id: str) -> StageDir:
    """The folder of a stage whose update was never interpolated."""
    here = stages.run.stage(id)
    shutil.rmtree(here.interpolation, ignore_errors=True)
    shutil.rmtree(here.decided.root, ignore_errors=True)
    return here


def written(here: StageDir) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result, and the hashes of the files of its policy."""
    return files.read_json(here.interpolation_result), files.artifacts(here.decided.model, here.root)


# The search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["flat", "lines"])
@pytest.mark.parametrize("id", ["lora", "further", "full", "qlora"])
def test_the_share_found_is_the_largest_that_passes(stages: Stages, id: str, shape: Shape) -> None:
    """All shares of the grid are measured, and their drops counted from the items."""
    here = fresh(stages, id)
    request(stages, id, shape)
    found = interpolated(stages, id)
    assert [one.share for one in found.tried] == [share for share in GRID if share >= (found.share or 0)]

    at = execute.load(stages.run, Ticket.model_validate(files.read_json(here.ticket)), lambda: False)
    policy = stages.outcomes[id].policy
    assert policy is not None
    update, scan = interpolate.updated(at, policy), {}
    for share in GRID:
        update.set(share, shape)
        folder = here.root / "scan" / shape / str(share)
        measuring.measure_gate(at.job, stages.run, at.probes, folder, at.world)
        scan[share] = drops(stages, folder)
    passing = [share for share in GRID if passes(scan[share])]
    assert found.share == (max(passing) if passing else None)
    assert 0 < len(passing) < len(GRID), "some shares pass and some do not"
    for one in found.tried:
        assert drops(stages, here.of_share(shape, one.share)) == scan[one.share]
        assert one.within == passes(scan[one.share])
        assert one.figure is not None
        counted = [*scan[one.share].values(), sum(scan[one.share].values()) / 3]
        assert any(one.figure == pytest.approx(figure, abs=1e-9) for figure in counted)


def test_nothing_is_decided_where_no_share_passes(stages: Stages) -> None:
    here = fresh(stages, "lora")
    asked = request(stages, "lora", "flat")
    interpolated(stages, "lora")
    assert here.decided.outcome.is_file()
    files.write_json(here.interpolation_request, asked.but(shares=(0.9, 0.8), key="other").written())
    found = interpolated(stages, "lora")
    assert (found.share, found.policy, found.rank, [one.within for one in found.tried]) == (
        None,
        None,
        None,
        [False] * 2,
    )
    assert not here.decided.root.exists(), "what another request had decided"
    assert files.read_json(here.interpolation_result)["policy"] is None


def test_a_method_without_a_share_is_refused(stages: Stages) -> None:
    request(stages, "dora", "flat")
    with pytest.raises(AlignError) as refused:
        interpolated(stages, "dora")
    assert (refused.value.what, refused.value.remedy) == (
        "no share can be taken of the lora of stage 'dora': DoRA divides by the norm of the sum of weight and update",
        "take `interpolate` out of `on_violation`, or give 'dora' another parameterization",
    )


def test_the_kl_has_a_limit_too(stages: Stages) -> None:
    here = fresh(stages, "full")
    request(stages, "full", "flat", max_drop=1.0, max_mean_drop=1.0, max_kl=0.02)
    found = interpolated(stages, "full")
    kls = {
        s: files.read_json(here.of_share("flat", s) / "task_kl.json")["own_answers"]["kl"]
        for s in GRID
        if s >= (found.share or 0)
    }
    assert [one.figure for one in found.tried] == list(kls.values())
    assert {one.metric for one in found.tried} == {"kl"}
    assert [one.within for one in found.tried] == [kl <= 0.02 for kl in kls.values()]


# What is written -------------------------------------------------------------------------------------------------


def test_the_policy_is_measured_whole_and_laid_out_as_a_stage(stages: Stages) -> None:
    here = fresh(stages, "further")
    request(stages, "further", "flat")
    found = interpolated(stages, "further")
    assert reading.read(here.interpolation_result, InterpolationResult) == found
    path = "stages/further/decided/model"
    assert found.policy == Policy(
        base=BASE.base, adapters=[Adapter(name="further", path=path, method="lora", settings=LORA)]
    )
    assert found.rank == 16

    names = {"summary.json", "items.jsonl", "samples.jsonl", "broken.jsonl", "mended.jsonl"}
    assert names | {"task_kl.json", "drift.json"} == {file.name for file in here.decided.measurements.iterdir()}
    whole, share = (
        measurements.load(here.decided.measurements),
        measurements.load(here.of_share("flat", found.share or 0)),
    )
    assert all(whole.has(half, skill) for half in ("gate", "report") for skill in SKILLS)
    assert all(whole.items["gate", skill] == share.items["gate", skill] for skill in SKILLS), "what is saved was judged"
    again = search.judged(
        found.share or 0, measurements.load(stages.run.base_measurements), whole, ForgettingKeys(**LIMITS)
    )
    assert again == found.tried[-1]

    decided = reading.outcome(here.decided)
    assert decided is not None and decided.policy == found.policy
    trained = stages.outcomes["further"]
    assert decided.steps == trained.steps
    assert trained.proofs.saved is not None and decided.proofs.saved is None, "which was of another file"
    assert decided.proofs.absent["saved"] == "a share of the update goes on, in place of what was trained"
    assert decided.proofs.first_loss is not None and decided.proofs.first_loss == trained.proofs.first_loss
    assert "model/adapter_model.safetensors" in decided.artifacts
    card = (here.decided.model / "README.md").read_text()
    assert f"- a share of {found.share:g} of the update of the stage `further` (flat), of rank 16\n" in card
    assert f"| copy | 1.000 | {whole.score('report', 'copy'):.3f} |" in card

    model = stack.load_policy(found.policy, {"dtype": "auto"}, stages.run.root)
    ids = torch.arange(5, 85).view(2, 40)
    at = execute.load(stages.run, Ticket.model_validate(files.read_json(here.ticket)), lambda: False)
    update = interpolate.updated(at, stages.outcomes["further"].policy)  # type: ignore[arg-type]
    update.set(found.share or 0, "flat")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, update.model.eval()(input_ids=ids).logits)


def test_the_next_stage_and_a_merge_take_it(stages: Stages) -> None:
    fresh(stages, "full")
    request(stages, "full", "lines")
    found = interpolated(stages, "full")
    assert found.policy is not None and found.policy.weights == "stages/full/decided/model"
    rows = data.rows("lab/helpdesk", n=8)
    after = stages.execute(stages.ticket("on_decided", "sft", found.policy, LORA, rows=rows, max_steps=1))
    assert after.weights == "stages/full/decided/model"
    stored = models.load_file(stages.run.root / found.policy.weights / "model.safetensors")
    before = stages.before["on_decided"]["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"]
    assert torch.equal(before, stored["model.layers.0.mlp.up_proj.weight"].to(before.dtype))


# Again -----------------------------------------------------------------------------------------------------------


def test_shares_that_are_stored_are_not_measured_again(stages: Stages) -> None:
    here = fresh(stages, "lora")
    request(stages, "lora", "flat")
    first = interpolated(stages, "lora")
    with mock.patch.object(interpolate, "updated", side_effect=AssertionError("nothing is built for it")):
        assert interpolated(stages, "lora") == first
    request(stages, "lora", "flat", key="wider", max_drop=0.6, max_mean_drop=0.6)
    with mock.patch.object(measuring, "measure_gate", side_effect=AssertionError("nothing new is measured")):
        wider = interpolated(stages, "lora")
    assert (first.share or 1) < (wider.share or 0)
    assert [one.share for one in wider.tried] == [one.share for one in first.tried][: len(wider.tried)]

    # of a share that is torn, of other weights, or of other items only that one is measured
    torn = here.of_share("flat", 0.9) / "items.jsonl"
    torn.write_text(torn.read_text()[:-30])
    other = here.of_share("flat", 0.8) / "of.json"
    files.write_json(other, {"key": "of other weights"})
    request(stages, "lora", "flat", key="again", max_drop=0.6, max_mean_drop=0.6)
    asked: list[str] = []
    measure = measuring.measure_gate

    def counted(job: Any, run: Any, found: Any, folder: Path, world: Any) -> None:
        asked.append(folder.name)
        measure(job, run, found, folder, world)

    with mock.patch.object(measuring, "measure_gate", counted):
        assert interpolated(stages, "lora").but(key="wider") == wider
    assert asked == ["0.9", "0.8"]


def test_the_same_share_by_another_limit_is_the_policy_that_is_there(stages: Stages) -> None:
    here = fresh(stages, "lora")
    request(stages, "lora", "flat", made_of="these weights")
    first = interpolated(stages, "lora")
    before = written(here)
    request(stages, "lora", "flat", key="other", made_of="these weights", max_drop=0.2001)
    with mock.patch.object(measuring, "measure_policy", side_effect=AssertionError("it is measured already")):
        assert interpolated(stages, "lora").but(key="one", sentence="", tried=()) == first.but(sentence="", tried=())
    assert written(here)[1] == before[1]
    request(stages, "lora", "flat", key="third", made_of="others")
    measured = mock.Mock(side_effect=measuring.measure_policy)
    with mock.patch.object(measuring, "measure_policy", measured):
        assert interpolated(stages, "lora").share == first.share and measured.call_count == 1


def test_a_damaged_policy_is_written_again(stages: Stages) -> None:
    here = fresh(stages, "lora")
    request(stages, "lora", "flat")
    interpolated(stages, "lora")
    before = written(here)
    (here.decided.model / "adapter_model.safetensors").write_bytes(b"torn")
    interpolated(stages, "lora")
    assert written(here) == before


@pytest.mark.parametrize("id", ["further", "full"])
@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("measuring.measure_gate", 2),
        ("files.write_json", 2),
        ("measuring.measure_policy", 0),
        ("measuring.measure_policy", 1),
        ("saving.save_policy", 1),
        ("card.write", 1),
    ],
)
def test_killed_anywhere_it_ends_the_same(stages: Stages, id: str, place: str, after: int) -> None:
    """`after` so many calls of a function, the next one never ends."""
    here = fresh(stages, id)
    request(stages, id, "lines")
    interpolated(stages, id)
    whole = written(here)
    assert len(whole[0]["tried"]) > 1

    fresh(stages, id)
    request(stages, id, "lines")
    module, _, name = place.partition(".")
    owner, calls = getattr(interpolate, module), []
    real = getattr(owner, name)

    def dies(*given: Any, **named: Any) -> Any:
        if after == 0:
            raise KeyboardInterrupt
        calls.append(1)
        found = real(*given, **named)
        if len(calls) == after:
            raise KeyboardInterrupt
        return found

    with mock.patch.object(owner, name, dies), pytest.raises(KeyboardInterrupt):
        interpolated(stages, id)
    assert not here.interpolation_result.exists()
    interpolated(stages, id)
    assert written(here) == whole


def test_asked_to_stop_it_keeps_what_it_has_measured(stages: Stages) -> None:
    here = fresh(stages, "lora")
    request(stages, "lora", "flat")
    with pytest.raises(Interrupted):
        interpolated(stages, "lora", stop=lambda: here.of_share("flat", 0.9).joinpath("of.json").is_file())
    assert not here.of_share("flat", 0.8).exists()
    assert not here.interpolation_result.exists()


# The child ---------------------------------------------------------------------------------------------------------


def in_a_child(stages: Stages, id: str, processes: int, until: Callable[[], bool]) -> None:
    """Ask a training process of its own, and kill it with all its processes once something is true."""
    file = stages.run.stage(id).ticket
    launched = Launch(processes=processes)
    files.write_json(file, files.read_json(file) | {"processes": processes, "launch": launched.model_dump()})
    shutil.rmtree(stages.run.queue, ignore_errors=True)
    process = launch.start(stages.run.root, launched, stages.run.child_log)
    try:
        messages.send(stages.run, 1, Interpolate(stage=id))
        end = time.monotonic() + 400
        while not until():
            assert process.poll() is None, stages.run.child_log.read_text()
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)
        messages.send(stages.run, 2, Finish())
        if stages.run.stage(id).interpolation_result.is_file():
            assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
        files.write_json(file, files.read_json(file) | {"processes": 1, "launch": Launch().model_dump()})


def test_two_processes_and_one_that_was_killed_decide_the_same(stages: Stages) -> None:
    here = fresh(stages, "full")
    request(stages, "full", "lines")
    interpolated(stages, "full")
    whole, items = written(here), (here.decided.measurements / "items.jsonl").read_bytes()

    fresh(stages, "full")
    request(stages, "full", "lines")
    in_a_child(stages, "full", 1, until=lambda: (here.of_share("lines", 0.9) / "of.json").is_file())
    if here.interpolation_result.exists():
        pytest.skip("it was done before it could be killed")
    in_a_child(stages, "full", 2, until=here.interpolation_result.is_file)
    assert written(here) == whole
    assert (here.decided.measurements / "items.jsonl").read_bytes() == items
