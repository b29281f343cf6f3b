"""Records of a run folder: they read back as written, pass over what a newer align adds, and name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs
from align.errors import AlignError
from align.forgetting.records import Sample
from align.forgetting.table import Cell, Effect, Forgetting, NoValue
from align.report.records import load
from align.run_folder import reading
from align.run_folder.reward_figures import CalibrationBin, ScoreHistogram
from align.run_folder.run_record import Pinned, RunRecord, StageEntry


def test_only_what_was_given_is_written_in_the_order_of_the_record() -> None:
    change = Effect(delta=-0.25, ci95=(-0.5, None), p_value=0.25)
    cell = Cell(lost=4, n=16, verdict=None, score=0.5, since_parent=change)
    written = {"score": 0.5, "n": 16, "verdict": None, "lost": 4}
    written["since_parent"] = {"delta": -0.25, "ci95": [-0.5, None], "p_value": 0.25}
    assert list(cell.written().items()) == list(written.items()), "null where it was given, absent where it was not"
    assert Cell.model_validate(written) == cell


def test_a_record_cannot_be_given_a_key_that_it_does_not_have() -> None:
    assert Cell(score=1.0).but(score=0.5, lost=None).written() == {"score": 0.5, "lost": None}
    with pytest.raises(TypeError, match=r"^Cell has no loss, verdicts$"):
        Cell(score=1.0).but(loss=3, verdicts="OK")
    with pytest.raises(TypeError, match=r"^RunRecord has no states$"):
        RunRecord(name="x").but(states={})


def test_a_figure_that_has_no_meaning_stays_apart_from_null() -> None:
    table = Forgetting.model_validate({"backward_transfer": {"base": {"undefined": "why"}, "sft": None, "dpo": -0.5}})
    assert table.backward_transfer == {"base": NoValue(undefined="why"), "sft": None, "dpo": -0.5}
    assert table.written() == {"backward_transfer": {"base": {"undefined": "why"}, "sft": None, "dpo": -0.5}}


def test_the_marks_of_an_answer_are_keys_of_its_line() -> None:
    sample = Sample(
        probe="desk", split="report", id="1", prompt="?", output="!", marks={"polite": True, "right": False}
    )
    line = {"probe": "desk", "split": "report", "id": "1", "prompt": "?", "output": "!", "polite": True, "right": False}
    assert list(sample.written().items()) == list(line.items())
    assert Sample.model_validate(line) == sample
    assert Sample(probe="desk", id=1).written() == {"probe": "desk", "id": 1}


def test_run_json_keeps_what_a_newer_align_added_and_forgets_what_was_asked_again() -> None:
    known = {
        "format": 1,
        "name": "x",
        "stages": {"sft": {"stage": "sft", "status": "done", "watts": 3}},
        "pipeline": None,
    }
    record = RunRecord.model_validate({**known, "redo": "from=sft", "colour": "red"})
    hub = Pinned(base=("acme/base", None), commit="0123abc")
    assert record.but(redo=None, hub=hub).written() == {
        **known, "hub": {"base": ["acme/base", None], "commit": "0123abc"}, "colour": "red"
    }  # fmt: skip
    assert record.written()["redo"] == "from=sft"
    assert StageEntry(stage="sft", status="pending").but(status="done").written() == {"stage": "sft", "status": "done"}


def test_a_run_folder_of_an_older_align_is_read(tmp_path: Path) -> None:
    """Without `about`, `probes`, `limit`, `key` and whatever else came later."""
    entry = {"stage": "sft", "inputs": {"policy": "base"}, "status": "done", "colour": "red"}
    (tmp_path / "run.json").write_text(json.dumps({"name": "old", "order": ["sft"], "stages": {"sft": entry}}))
    cells = {"base": {"copy": {"score": 0.5, "n": 4}}, "sft": {"copy": {"score": 0.25, "delta": -0.25, "shade": 1}}}
    table = {"stages": ["base", "sft"], "probes": {"copy": {"kind": "skill"}}, "matrix": cells}
    (tmp_path / "forgetting.json").write_text(json.dumps(table))
    (tmp_path / "comparison.json").write_text(json.dumps({"parent": "sft", "stages": {"dpo": {"score": 1.5}}}))
    found = load(tmp_path)
    assert (found.stages[0].entry.about, found.run.probes) == (None, None)
    assert found.forgetting is not None and found.forgetting.matrix["sft"]["copy"] == Cell(score=0.25, delta=-0.25)
    assert found.comparison is not None and found.comparison.stages["dpo"].score == 1.5


def test_a_torn_file_is_as_none_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert reading.whole(path, RunRecord) is None and reading.optional(path, RunRecord) is None
    path.write_text('{"name": "x", "sta')
    assert reading.whole(path, RunRecord) is None
    path.write_text('{"name": "x", "stages": {"sft": {"stage": 3}}}')
    assert reading.whole(path, RunRecord) is None
    with pytest.raises(AlignError) as caught:
        reading.sound(path, RunRecord, "mend it")
    assert str(caught.value) == f"{path}: stages.sft.stage: Input should be a valid string\n  -> mend it"


def test_a_run_does_not_write_over_a_run_json_that_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "run/run.json"
    path.parent.mkdir()
    path.write_text('{"name": "small", "order": 3}')
    said = runs.run(runs.write(tmp_path), path.parent, code=2).stderr
    assert said.endswith(
        f"error {path}: order: Input should be a valid tuple\n"
        "  -> give another --run-dir, or remove the file: the run then starts over\n"
    )
    assert path.read_text() == '{"name": "small", "order": 3}'


@pytest.mark.parametrize("tied", [False, True])
def test_the_figures_of_a_reward_model_are_those_that_the_report_reads(tied: bool) -> None:
    from align.trainers.reward import figures

    found = figures([1.0, 2.0, 0.5], [1.0, 2.0, 0.5] if tied else [0.0, 2.5, -3.0])
    assert ScoreHistogram.model_validate(found["score_histogram"]).written() == found["score_histogram"]
    assert [CalibrationBin.model_validate(one).written() for one in found["calibration"]] == found["calibration"] != []
