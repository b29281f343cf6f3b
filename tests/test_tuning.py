"""`align tune`: what is varied, who chooses, what is judged, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from typer.testing import CliRunner

from align.cli.commands import app
from align.errors import AlignError, Exit
from align.forgetting.inside import Measured, Point
from align.recipe import load
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.stage_dir import StageDir
from align.runner import loop
from align.runner.options import Abandoned
from align.tuning import chooser, picture, result, space, words, written
from align.tuning.chooser import Chooser
from align.tuning.figures import Figures, Measure, front
from align.tuning.space import Dimension
from align.tuning.study import Budget, Tried
from align.tuning.trial import Judging, TrialDir, TrialRecord, execute

RECIPE = """\
# kept
name: small
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora, lora: {r: 8, alpha: 12, dropout: 0.1}}  # kept too
replay: {data: lab/general, ratio: 0.2}
forgetting: {probes: lab}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    eval_data: 16
    training: {learning_rate: 1.0e-3, max_steps: 30, per_device_train_batch_size: 8}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 64}
    policy: sft
    parameterization: {method: lora, lora: {r: 4, alpha: 8}}
    training: {max_steps: 8, per_device_train_batch_size: 4}
"""
RATE = Dimension("learning_rate", 1e-4, 1e-2, 1e-3)


def loaded(folder: Path, text: str = RECIPE) -> Loaded:
    (folder / "x.yaml").write_text(text)
    return load.load(folder / "x.yaml")


def plan(folder: Path, text: str = RECIPE, stage: str = "sft") -> StagePlan:
    return next(one for one in loaded(folder, text).stages if one.id == stage)


def over(folder: Path, *asked: str, text: str = RECIPE, stage: str = "sft") -> tuple[Dimension, ...]:
    whole = loaded(folder, text)
    return space.dimensions(asked, next(one for one in whole.stages if one.id == stage), whole.stages)


# ---- what is varied -------------------------------------------------------------------------------------------------


def test_ranges_stand_around_the_recipes_own_values(tmp_path: Path) -> None:
    rate, rank, replay = over(tmp_path, "learning_rate", "rank", "replay")
    assert (rate.low, rate.high, rate.own) == (1e-3 / 8, 8e-3, 1e-3)
    assert (rank.low, rank.high, rank.own) == (2, 32, 8)
    assert (replay.low, replay.high, replay.own) == (0, 0.5, 0.2)
    assert over(tmp_path) == (rate,)


def test_a_place_and_a_value_are_the_same() -> None:
    assert [RATE.at(place) for place in (0, 0.25, 0.5, 1)] == [1e-4, 3.16e-4, 1e-3, 1e-2]
    assert RATE.place(1e-3) == pytest.approx(0.5)
    rank = Dimension("rank", 8, 64, 16)
    assert [rank.at(place) for place in (0, 0.4, 0.6, 1)] == [8, 16, 32, 64]
    assert Dimension("rank", 12, 12, 12).at(0.5) == 12
    assert Dimension("replay", 0, 0.4, 0.2).at(0.25) == 0.1


def test_values_reach_the_stage_and_nothing_else(tmp_path: Path) -> None:
    whole = loaded(tmp_path)
    texts = space.texts({"learning_rate": 2e-3, "rank": 32.0, "replay": 0.3}, whole.stages[0])
    sft, dpo = load.load(tmp_path / "x.yaml", texts).stages
    assert sft.training["learning_rate"] == 2e-3
    lora = sft.method_keys.model_dump()["lora"]
    assert (lora["r"], lora["alpha"], lora["dropout"]) == (32, 48, 0.1)  # alpha / r is the recipe's
    assert sft.replay is not None and sft.replay.ratio == 0.3
    assert dpo.method_keys.model_dump()["lora"]["r"] == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate", "--over rate: 'rate' is nothing to tune"),
        ("learning_rate=1e-3", "--over learning_rate=1e-3: '1e-3' is no range: write LOW:HIGH, as in --over"),
        ("learning_rate=1e-2:1e-3", "a range is two numbers above 0, the smaller first"),
        ("learning_rate=0:1e-3", "a range is two numbers above 0"),
        ("learning_rate=nan:1", "a range is two numbers above 0"),
        ("rank=4.5:8", "a range is two whole numbers from 1 to 256"),
        ("rank=8:512", "a range is two whole numbers from 1 to 256"),
        ("replay=0:1", "a range is two shares from 0 to 0.99"),
    ],
)
def test_what_cannot_be_tuned(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AlignError) as caught:
        over(tmp_path, text)
    assert said in str(caught.value).replace("\n  -> ", ": ")


def test_a_stage_without_the_value(tmp_path: Path) -> None:
    bare = RECIPE.replace("method: lora, lora: {r: 8, alpha: 12, dropout: 0.1}", "method: full").replace(
        "replay: {data: lab/general, ratio: 0.2}\n", ""
    )
    for name, said in (("rank", "trains with 'full', which has no `lora"), ("replay", "'sft' replays nothing")):
        with pytest.raises(AlignError, match="--over") as caught:
            over(tmp_path, name, text=bare)
        assert said in str(caught.value).replace("\n  -> ", ": ")
    with pytest.raises(AlignError, match="twice"):
        over(tmp_path, "learning_rate", "learning_rate=1e-4:1e-3", text=bare)


def test_a_rank_that_other_stages_share(tmp_path: Path) -> None:
    shared = RECIPE.replace("    parameterization: {method: lora, lora: {r: 4, alpha: 8}}\n", "")
    for stage in ("sft", "dpo"):
        with pytest.raises(AlignError, match="train the same adapter"):
            over(tmp_path, "rank", text=shared, stage=stage)
    with pytest.raises(AlignError, match="rank_pattern"):
        over(tmp_path, "rank", text=RECIPE.replace("dropout: 0.1", "rank_pattern: {q_proj: 4}"))


def test_a_scale_by_the_root_of_the_rank_is_kept(tmp_path: Path) -> None:
    stage = plan(tmp_path, RECIPE.replace("dropout: 0.1", "use_rslora: true"))
    assert space.settings({"rank": 32}, stage)["parameterization"]["lora"]["alpha"] == 24


def test_a_rate_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="gives no learning rate above 0"):
        over(tmp_path, text=RECIPE.replace("learning_rate: 1.0e-3", "learning_rate: 0.0"))


# ---- who chooses ----------------------------------------------------------------------------------------------------


def curve(rate: float, steps: int) -> list[Figures]:
    """Higher rates gain more, and forget more above 2e-3."""
    found = []
    for step in (10, 20, 30):
        gain = min(1.0, rate * 300) * step / 30
        found.append(Figures(step=step, gain=gain, forgotten=max(0.0, rate - 2e-3) * 100))
    return [one for one in found if one.step <= steps]


def trained(one: Chooser, number: int, begun: dict[str, float] | None = None) -> tuple[float, bool]:
    """The place of a trial and whether it was ended early, after it was told of."""
    place = one.begin(number, begun)["learning_rate"]
    rate = RATE.at(place)
    early = one.beaten(curve(rate, 10))
    one.end(None if early else curve(rate, 30)[-1].value)
    return place, early


def test_the_recipes_own_value_comes_first_and_then_the_range() -> None:
    one = Chooser((RATE,), 30, 10, seed=3)
    places = [trained(one, number)[0] for number in range(1, 5)]
    assert places == [pytest.approx(0.5), 0.25, 0.75, 0.125]


def test_two_dimensions_are_spread_apart() -> None:
    one = Chooser((RATE, Dimension("rank", 4, 64, 16)), 30, 10, seed=3)
    found = []
    for number in range(1, 5):
        found.append(one.begin(number))
        one.end(0.0)
    assert len({tuple(places.values()) for places in found}) == 4


def test_beaten_trials_end_early_and_the_best_go_on() -> None:
    one = Chooser((RATE,), 30, 10, seed=3)
    ended = [trained(one, number)[1] for number in range(1, 5)]
    assert ended == [False, True, False, True]  # 1e-3; 3e-4 gains less; 3e-3 gains more; 1.8e-4 gains least


def test_a_chooser_told_of_the_same_chooses_the_same() -> None:
    whole = Chooser((RATE,), 30, 10, seed=3)
    places = [trained(whole, number)[0] for number in range(1, 11)]
    for after in (1, 4, 6, 9):
        again = Chooser((RATE,), 30, 10, seed=3)
        for number, place in enumerate(places[:after], start=1):
            trained(again, number, {"learning_rate": place})
        assert [trained(again, number)[0] for number in range(after + 1, 11)] == places[after:]
    assert len(set(places)) == 10


def test_the_last_step_ends_nothing_early() -> None:
    one = Chooser((RATE,), 30, 10, seed=3)
    trained(one, 1)
    one.begin(2)
    assert not one.beaten([Figures(step=30, gain=0.0)])


@pytest.mark.parametrize("seed", range(5))
def test_the_sampler_keeps_away_from_what_fails(seed: int) -> None:
    """Rates beyond a cliff fail, and the best lie close before it."""
    one, fails = Chooser((RATE,), 30, 10, seed=seed), []
    for number in range(1, 17):
        place = one.begin(number)["learning_rate"]
        fails.append(place > 0.55)
        if fails[-1]:
            one.end(None)
        else:
            early = one.beaten([Figures(step=10, gain=place)])
            one.end(None if early else place)
    assert not any(fails[n : n + 3] == [True] * 3 for n in range(14))


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AlignError, match="optuna") as caught:
        chooser.check_package()
    assert "pip install 'align-suite[tune]'" in str(caught.value)


# ---- what is judged -------------------------------------------------------------------------------------------------


def test_held_out_rows_or_named_probes_tell_the_gain(tmp_path: Path) -> None:
    whole = loaded(tmp_path)
    sft, dpo = whole.stages
    keys = whole.recipe.forgetting
    assert Measure.of([], sft, keys).gain == ()
    assert Measure.of([], dpo, keys).gain == ("helpdesk correct", "helpdesk polite", "helpdesk parses")
    named = Measure.of(["copy"], sft, keys)
    assert named.gain == ("copy",) and "copy" not in named.skills and "sort" in named.skills
    assert not {"stories", "helpdesk correct"} & {*named.skills}
    with pytest.raises(AlignError, match="--gain 'stories' is no probe with right and wrong answers"):
        Measure.of(["stories"], sft, keys)


def test_a_stage_whose_gain_nothing_tells(tmp_path: Path) -> None:
    text = RECIPE.replace("    eval_data: 16\n", "").replace("probes: lab", "probes: none")
    whole = loaded(tmp_path, text)
    with pytest.raises(AlignError, match="nothing tells what the stage 'sft' gains") as caught:
        Measure.of([], whole.stages[0], whole.recipe.forgetting)
    assert "--gain" in str(caught.value) and "eval_data" in str(caught.value)


def points(**scores: tuple[float, float | None]) -> dict[str, Point]:
    return {name: Point(before=before, score=score) for name, (before, score) in scores.items()}


def test_figures_are_of_the_gate_and_the_held_out_rows(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    stage.curve.parent.mkdir(parents=True)
    lines = [
        Measured(step=0, origin="before", points=points(copy=(1.0, 1.0), sort=(0.9, 0.9), task=(0.0, 0.0))),
        Measured(step=10, points=points(copy=(1.0, 0.8), sort=(0.9, 0.9), task=(0.0, 0.4))),
        Measured(step=20, points=points(copy=(1.0, None), sort=(0.9, 1.0), task=(0.0, 0.5))),
    ]
    stage.curve.write_text("".join(one.model_dump_json() + "\n" for one in lines))
    metrics = [{"step": 10, "loss": 1.0}, {"step": 10, "eval_mean_token_accuracy": 0.7}]
    stage.metrics.write_text("".join(json.dumps(row) + "\n" for row in metrics) + '{"step": 20, "eval_mean')
    probed = Measure(("task",), ("copy", "sort")).read(stage)
    assert [(one.step, one.gain) for one in probed] == [(10, 0.4), (20, 0.5)]
    assert [one.forgotten for one in probed] == pytest.approx([0.1, 0.45])
    assert [one.value for one in probed] == pytest.approx([0.3, 0.05])
    (held_out,) = Measure((), ("copy", "sort")).read(stage)
    assert (held_out.step, held_out.gain, held_out.forgotten) == (10, 0.7, pytest.approx(0.1))
    (alone,) = Measure((), ()).read(stage)
    assert (alone.gain, alone.forgotten, alone.value) == (0.7, None, 0.7)


def test_front() -> None:
    figures = [(0.5, 0.1), (0.6, 0.1), (0.4, 0.0), (0.9, 0.5), (0.9, 0.6), (0.4, 0.0)]
    assert front([Figures(step=1, gain=gain, forgotten=lost) for gain, lost in figures]) == [1, 2, 3, 5]


# ---- what comes out -------------------------------------------------------------------------------------------------


def tried(number: int, state: str, *figures: tuple[int, float, float]) -> Tried:
    record = TrialRecord.model_validate(
        {"number": number, "values": {"learning_rate": number * 1e-3}, "places": {}, "state": state, "fault": "NaN"}
    )
    return Tried(record, tuple(Figures(step=step, gain=gain, forgotten=lost) for step, gain, lost in figures))


TRIALS = (
    tried(1, "done", (10, 0.2, 0.0), (30, 0.5, 0.1)),
    tried(2, "done", (10, 0.4, 0.0), (30, 0.7, 0.2)),
    tried(3, "ended early", (10, 0.9, 0.1)),
    tried(4, "failed"),
    tried(5, "done", (30, 0.4, 0.2)),
)


def test_the_best_is_one_that_came_to_its_end() -> None:
    found = result.of(TRIALS)
    assert (found.best.record.number, found.front) == (2, (1, 2))
    rows = [words.row(one, (RATE,), found) for one in TRIALS]
    assert rows[1] == ("2", "0.002", "30", "0.700", "0.200", "0.500", "best")
    assert [row[-1] for row in rows] == ["on the front", "best", "ended early", "failed", ""]
    assert words.told(TRIALS[3], 30) == "trial 4: learning rate 0.004: failed: NaN"
    assert words.told(TRIALS[2], 30).endswith("gain 0.900, forgotten +0.100; ended early, after 10 of 30 steps")
    with pytest.raises(AlignError, match="no trial came to its end: NaN"):
        result.of(TRIALS[2:4])


def test_the_picture_has_every_trial_that_was_measured() -> None:
    drawn = ElementTree.fromstring(picture.drawn(result.of(TRIALS)))
    texts = {text.strip() for text in drawn.itertext()}
    assert {"1", "2", "3", "5", "best", "on the front", "other trials", "ended early"} <= texts


def test_the_written_recipe_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(RECIPE)
    whole = load.load(tmp_path / "x.yaml", ["stages.dpo.beta=0.3", "seed=11"])
    values = {"learning_rate": 2e-3, "rank": 16, "replay": 0.1}
    text = written.text(RECIPE, whole, whole.stages[0], values)
    wanted = load.load(tmp_path / "x.yaml", ["stages.dpo.beta=0.3", "seed=11", *space.texts(values, whole.stages[0])])
    written.check(tmp_path / "y.yaml", text, wanted)
    with pytest.raises(AlignError, match="would not mean the same"):
        written.check(tmp_path / "y.yaml", text, whole)
    assert "# kept\n" in text and "# kept too" in text
    (tmp_path / "y.yaml").write_text(text)
    again = load.load(tmp_path / "y.yaml")
    sft, dpo = again.stages
    assert (again.recipe.name, again.recipe.seed, dpo.keys.model_dump()["beta"]) == ("small-tuned", 11, 0.3)
    assert sft.training["learning_rate"] == 2e-3 and sft.training["max_steps"] == 30
    assert sft.method_keys.model_dump()["lora"]["alpha"] == 24
    assert sft.replay is not None and sft.replay.ratio == 0.1
    assert written.place(tmp_path / "x.yaml") == tmp_path / "x-tuned.yaml"
    assert written.place(load.locate("sft_lora")) == Path("sft_lora-tuned.yaml")


def test_an_alias_is_taken_apart(tmp_path: Path) -> None:
    text = "    training: &t {max_steps: 8, learning_rate: 1.0e-3}\n"
    aliased = RECIPE.replace(
        "    training: {learning_rate: 1.0e-3, max_steps: 30, per_device_train_batch_size: 8}\n", text
    )
    aliased = aliased.replace("    training: {max_steps: 8, per_device_train_batch_size: 4}\n", "    training: *t\n")
    whole = loaded(tmp_path, aliased)
    after = written.text(aliased, whole, whole.stages[1], {"learning_rate": 5e-3})
    sft, dpo = load.load(tmp_path / "x.yaml", text=after).stages
    assert (sft.training["learning_rate"], dpo.training["learning_rate"]) == (1e-3, 5e-3)
    merged = RECIPE.replace("  sft:\n", "  sft: &s\n").replace(
        "  dpo:\n    data: {source: lab/helpdesk_preferences, limit: 64}\n    policy: sft\n",
        "  more:\n    <<: *s\n    stage: sft\n    policy: sft\n",
    )
    merged = merged.replace("    training: {max_steps: 8, per_device_train_batch_size: 4}\n", "")
    whole = loaded(tmp_path, merged)
    after = written.text(merged, whole, whole.stages[1], {"learning_rate": 5e-3})
    sft, more = load.load(tmp_path / "x.yaml", text=after).stages
    assert (sft.training["learning_rate"], more.training["learning_rate"]) == (1e-3, 5e-3)


def test_a_budget() -> None:
    made = [TrialRecord(number=n, values={}, places={}, seconds=40.0) for n in (1, 2)]
    assert Budget(trials=3).allows(made) and not Budget(trials=2).allows(made)
    assert Budget(minutes=2).allows(made) and not Budget(minutes=1).allows(made)
    assert not Budget(trials=9, minutes=1).allows(made)


def test_a_gate_that_stops_an_earlier_stage_is_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loaded(tmp_path)
    monkeypatch.setattr(loop.Run, "execute", lambda self: Exit.GATE)
    folder = TrialDir(tmp_path / "trial")
    judging = Judging(Console(), folder.log, "trial 1", folder.run.stage("dpo"), Measure((), ()), lambda curve: False)
    with pytest.raises(AlignError, match="the gate stopped the run before 'dpo'") as caught:
        execute(whole, folder, whole.stages[1], 10, judging)
    assert caught.value.exit == Exit.GATE


def test_a_trial_is_ended_as_soon_as_it_is_beaten(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    seen: list[list[Figures]] = []

    def beaten(curve: list[Figures]) -> bool:
        seen.append(curve)
        return len(curve) == 2

    judging = Judging(Console(), tmp_path / "log", "trial 1", stage, Measure((), ()), beaten)
    judging.refresh()
    for step in (10, 20):
        with stage.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "eval_accuracy": 0.5}) + "\n")
        if step == 10:
            judging.refresh()
            judging.refresh()  # nothing new
    with pytest.raises(Abandoned):
        judging.refresh()
    assert [len(curve) for curve in seen] == [1, 2]


# ---- the command ----------------------------------------------------------------------------------------------------

SMALL = RECIPE.replace("probes: lab", "probes: none").replace("replay: {data: lab/general, ratio: 0.2}\n", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the recipe has 2 stages: name one with --stage: sft, dpo"),
        (["--stage", "sff"], "the recipe has no stage 'sff': did you mean 'sft'"),
        (["--stage", "dpo"], "nothing tells what the stage 'dpo' gains: name a probe of its task with --gain, or give"),
        (["--stage", "sft", "--out", "x.yaml"], "'x.yaml' is the recipe itself"),
        (["--stage", "sft", "--out", "no/x.yaml"], "'no/x.yaml' cannot be written"),
        (["--stage", "sft", "--minutes", "0"], "--minutes is how long trials may take, above 0"),
        (["--stage", "sft", "--set", "launch={machines: 2, processes: 2}"], "align tune trains on one machine"),
        (["--stage", "sft", "--over", "rang"], "'rang' is nothing to tune: did you mean 'rank'"),
    ],
)
def test_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(SMALL)
    done = CliRunner().invoke(app, ["tune", "x.yaml", *options])
    assert said in str(done.exception).replace("\n  -> ", ": ")
    assert not Path("runs").exists()


def test_tune_a_stage_that_follows_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage before is trained once. Other questions of the same folder are refused, the same one trains nothing."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(SMALL.replace("policy: sft", "policy: sft\n    eval_data: 8"))
    asked = ["tune", "x.yaml", "--stage", "dpo", "--steps", "4", "--trials", "3", "--over", "learning_rate=1e-5:1e-3"]
    done = CliRunner().invoke(app, [*asked, "--json", "--set", "stages.sft.training.max_steps=4"])
    assert done.exception is None, done.output
    told = json.loads(done.stdout)
    assert told["trials"][0]["state"] == "done" and len(told["trials"]) == 3
    best = told["trials"][told["best"] - 1]
    sft, dpo = load.load(Path("x-tuned.yaml")).stages
    assert dpo.training["learning_rate"] == best["values"]["learning_rate"] and sft.training["max_steps"] == 4
    folder = Path("runs/small-tune-dpo")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "front.svg", "trials", "tune.json", "tuned.yaml"]
    logs = [(folder / f"trials/00{number}/terminal.txt").read_text() for number in (1, 2, 3)]
    assert ["sft: supervised fine-tuning" in log for log in logs] == [True, False, False]
    kept = sorted(path.parts[4] for path in folder.rglob("adapter_model.safetensors"))
    assert not list(folder.glob("trials/*/run/stages/dpo/**/*.safetensors")), kept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("trial.json")}
    again = CliRunner().invoke(app, [*asked, "--set", "stages.sft.training.max_steps=4"])
    assert again.exception is None and "next: align run x-tuned.yaml" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("trial.json")} == before
    other = CliRunner().invoke(app, asked)
    assert "holds trials of another tuning: changed since is the recipe" in str(other.exception)
