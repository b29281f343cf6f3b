"""What stands first on the report, and what it says to do next, against sentences worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import report_fixture as made
import runs
from align.forgetting.distances import KlEstimate, TaskKl
from align.forgetting.table import Cell, Forgetting
from align.recipe import load as recipes
from align.report import balance, method_page
from align.report.chart import Curve, Dots
from align.report.coverage import buffers, coverage
from align.report.headline import Headline, headline
from align.report.next_step import Step, steps
from align.report.recipe_view import RecipeView, StageRecipe, view
from align.report.records import load
from align.report.schema import Report
from align.report.sentence import verdict_line
from align.run_folder import files, reading
from align.run_folder.run_record import RunRecord

SENTENCE = (
    "After training on lab/helpdesk and lab/helpdesk_preferences (sft, then dpo) the model gets 176 of 200 questions "
    "of the task right instead of 3 (helpdesk correct) and lost 1 of its 8 skills: add (10 of 200 right instead of 75)."
)


@pytest.fixture
def run_dir(gated: runs.Gated, tmp_path: Path) -> Path:
    return made.write_run(gated, tmp_path / "runs" / "dpo_qlora")


def table(run_dir: Path) -> Forgetting:
    return reading.read(run_dir / "forgetting.json", Forgetting)


def all_verdicts(run_dir: Path, verdict: str | None) -> None:
    """Give every judged cell after dpo, and their mean, one verdict."""
    found = table(run_dir)
    row = {name: cell.but(verdict=verdict) if cell.verdict else cell for name, cell in found.matrix["dpo"].items()}
    mean = {key: cell.but(verdict=verdict if key == "all" else None) for key, cell in found.mean["dpo"].items()}
    matrix, means = {**found.matrix, "dpo": row}, {**found.mean, "dpo": mean}
    made.change(run_dir / "forgetting.json", Forgetting, matrix=matrix, mean=means)


def statuses(run_dir: Path, **by_stage: str) -> None:
    for stage, status in by_stage.items():
        made.change_stage(run_dir, stage, status=status)


def test_a_failed_stage_comes_before_what_was_forgotten(run_dir: Path) -> None:
    assert headline(load(run_dir)) == Headline(
        "FAILED",
        "bad",
        "reward failed; FORGOT: add (-0.325), surely beyond the tolerated drop of 0.2 after dpo.",
        SENTENCE,
    )


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (
            "FORGOT",
            ("FORGOT", "bad", "helpdesk correct (+0.865), helpdesk polite (+0.770), add (-0.325) and 7 more, surely "
             "beyond the tolerated drop of 0.2 after dpo."),
        ),
        (
            "UNCLEAR",
            ("UNCLEAR", "open", "helpdesk correct, helpdesk polite, copy and 7 more after dpo: the items measured "
             "cannot decide; about 840 would."),
        ),
        ("OK", ("PASSED", "good", "all 10 capabilities are surely within the tolerated drop of 0.2 after dpo.")),
        (None, ("NOT JUDGED", "open", "no capability has a limit after dpo.")),
    ],
)  # fmt: skip
def test_the_word_is_the_worst_of_the_verdicts(
    run_dir: Path, verdict: str | None, expected: tuple[str, str, str]
) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, verdict)
    found = headline(load(run_dir))
    assert (found.word, found.tone, found.text) == expected


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("OK", "and kept all of its 8 skills within the limits."),
        ("UNCLEAR", "and kept 0 of its 8 skills for certain (8 unclear)."),
        (None, "and got surely worse at 3 of its 8 skills."),
    ],
)
def test_the_sentence_counts_the_skills(run_dir: Path, verdict: str | None, said: str) -> None:
    all_verdicts(run_dir, verdict)
    assert headline(load(run_dir)).sentence.endswith(said)


def test_skills_may_be_undecided_where_their_mean_is_not(run_dir: Path) -> None:
    """As with twenty skills of a few items each: the gate lets such a run pass."""
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    for name in ("add", "facts"):
        made.change_matrix(run_dir, "dpo", name, verdict="UNCLEAR")
    told = headline(load(run_dir))
    assert (told.word, told.tone, told.text) == (
        "PASSED",
        "good",
        "the mean of the skills is surely within its limit (-0.099) and nothing is surely past one; 2 of 10 "
        "capabilities have too few items to be decided one by one after dpo.",
    )
    made.change_matrix(run_dir, "dpo", "helpdesk correct", verdict="UNCLEAR")
    assert headline(load(run_dir)).word == "UNCLEAR", "the task is no part of that mean"


def test_a_run_whose_stage_was_rolled_back_has_not_just_passed(run_dir: Path) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    made.change(run_dir / "forgetting.json", Forgetting, rolled_back=("sft",), parent={"dpo": "base"})
    found = headline(load(run_dir))
    kept = "all 10 capabilities are surely within the tolerated drop of 0.2 after dpo; sft was rolled back."
    assert (found.word, found.tone, found.text) == ("PASSED", "open", kept)


def test_only_the_mean_fell(run_dir: Path) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    found = table(run_dir)
    mean = {**found.mean["dpo"], "all": found.mean["dpo"]["all"].but(verdict="FORGOT")}
    made.change(run_dir / "forgetting.json", Forgetting, mean={**found.mean, "dpo": mean})
    told = headline(load(run_dir))
    assert (told.word, told.text) == ("FORGOT", "the mean of the skills fell surely past its limit (-0.099) after dpo.")


@pytest.mark.parametrize(
    ("changed", "live", "word", "begin"),
    [
        ({"reward": "done", "dpo": "stopped"}, False, "STOPPED", "the gate ended the run after dpo; FORGOT: add"),
        ({"reward": "done", "ppo": "interrupted"}, False, "INTERRUPTED", "in ppo; FORGOT: add"),
        ({"reward": "done", "ppo": "running"}, False, "INTERRUPTED", "in ppo; FORGOT: add"),
        ({"reward": "done", "ppo": "running"}, True, "UNDER WAY", "so far FORGOT: add"),
    ],
)
def test_how_the_run_ended_comes_first(
    run_dir: Path, changed: dict[str, str], live: bool, word: str, begin: str
) -> None:
    statuses(run_dir, **changed)
    found = headline(load(run_dir, live=live))
    assert found.word == word and found.text.startswith(begin)


def test_nothing_measured_is_no_result(gated: runs.Gated, tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", RunRecord(name="empty").written())
    assert headline(load(tmp_path)) == Headline("NO RESULT", "open", "Nothing has been measured yet.", "")
    base = made.write_base_only(gated, tmp_path / "fresh")
    assert headline(load(base)) == Headline("NO RESULT", "open", "only the base has been measured.", "")


def test_marks_in_between_are_no_counts(run_dir: Path) -> None:
    made.change_matrix(run_dir, "dpo", "helpdesk correct", score=0.8765)
    assert "(sft, then dpo) the model went from 0.015 to 0.876 in helpdesk correct and lost" in (
        headline(load(run_dir)).sentence
    )


def test_without_a_task_the_evaluation_loss_tells_what_was_learnt(run_dir: Path) -> None:
    for name in ("helpdesk correct", "helpdesk polite"):
        made.change_probe(run_dir, name, kind="skill")
    told = headline(load(run_dir)).sentence
    assert told.endswith("; what it gained was not measured."), "dpo logged none"
    found = table(run_dir)
    made.change(run_dir / "forgetting.json", Forgetting, stages=("base", "sft"), matrix={
        name: found.matrix[name] for name in ("base", "sft")
    }, parent={"sft": "base"})  # fmt: skip
    losses = load(run_dir).stages[0].series("eval_loss")
    assert f"moved its evaluation loss from {losses[0][1]:.3g} to {losses[-1][1]:.3g} and " in (
        headline(load(run_dir)).sentence
    )


def test_learning_is_held_against_forgetting(run_dir: Path) -> None:
    found = balance.balance(table(run_dir))
    assert found is not None
    # sft: tasks +0.915 and +0.34; dpo: +0.865 and +0.77; the means of the eight skills fell by 0.0525 and 0.09875
    assert [(line.stage, line.gain, line.change) for line in found.lines] == [
        ("sft", "+0.628", "-0.053"), ("dpo", "+0.818", "-0.099"),
    ]  # fmt: skip
    chart = balance.chart(table(run_dir))
    assert chart is not None
    dots = [mark for mark in chart.marks if isinstance(mark, Dots)]
    assert dots[1].labels == ("sft", "dpo")
    assert [round(value, 5) for point in dots[1].points for value in point] == [0.0525, 0.6275, 0.09875, 0.8175]
    lines = [mark.points for mark in chart.marks if isinstance(mark, Curve)]
    assert lines[0][0] == (0, 0) and lines[1][0] == dots[1].points[0], "dpo goes on from sft"


def test_without_a_task_nothing_is_held_against_forgetting(run_dir: Path) -> None:
    for name in ("helpdesk correct", "helpdesk polite"):
        made.change_probe(run_dir, name, kind="skill")
    assert balance.balance(table(run_dir)) is None and balance.chart(table(run_dir)) is None


def test_replay_is_told_by_what_it_covers(run_dir: Path) -> None:
    [found] = coverage(table(run_dir))
    assert [(side.title, side.names, side.change, side.forgot, side.worst) for side in found.sides] == [
        ("In the replay", ("copy", "reverse", "sort", "facts"), "-0.081", "0 of 4", "facts -0.235"),
        ("Not replayed", ("sentiment", "add", "larger", "größer_als_$x$"), "-0.116", "1 of 4", "add -0.325"),
    ]
    for name in made.SCORES:
        made.change_probe(run_dir, name, replayed=None)
    assert list(coverage(table(run_dir))) == []


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (
            (0.4, 0.6),
            ("FORGOT", "bad", "the KL to the base is surely past its limit of 0.3 nats per token: 0.5 after dpo."),
        ),
        (
            (0.2, 0.6),
            ("UNCLEAR", "open", "the prompts cannot tell whether the KL to the base is within its limit after dpo."),
        ),
        (
            (0.1, 0.3),
            ("PASSED", "good", "all 10 capabilities are surely within the tolerated drop of 0.2 after dpo."),
        ),
    ],
)
def test_a_kl_past_its_limit_is_no_pass(
    run_dir: Path, interval: tuple[float, float], expected: tuple[str, str, str]
) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    kl = TaskKl(own_answers=KlEstimate(kl=0.5, ci95=interval)).against(0.3)
    made.change(run_dir / "forgetting.json", Forgetting, task_kl={"dpo": kl})
    report = load(run_dir)
    found = headline(report)
    assert (found.word, found.tone, found.text) == expected
    told = "; after dpo the KL to the base is past its limit (0.5)" in verdict_line(report)
    assert told == (found.word == "FORGOT")


def test_a_crossed_budget_stands_beside_the_verdict(run_dir: Path) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    path = run_dir / "stages/dpo/decision.json"
    crossed = [{"budget": "perplexity", "probe": "stories", "value": 1.9, "limit": 1.5}]
    crossed.append({"budget": "peak_memory", "value": 2e9, "limit": 1e9})
    files.write_json(path, {**files.read_json(path), "budgets": crossed})
    found = headline(load(run_dir))
    assert (found.word, found.tone, found.text) == (
        "PASSED",
        "open",
        "all 10 capabilities are surely within the tolerated drop of 0.2 after dpo; beyond its budget: "
        "perplexity of stories after dpo and peak memory after dpo.",
    )


def said(run_dir: Path, **options: Any) -> list[Step]:
    return list(steps(load(run_dir, **options)))


def test_what_to_do_follows_from_what_the_run_shows(run_dir: Path) -> None:
    found, kl = said(run_dir), table(run_dir).task_kl
    moved = f" (KL to the base {kl['sft'].figure} -> {kl['dpo'].figure} nats per token)"
    assert [step.why for step in found] == [
        "reward failed.",
        f"dpo forgot add (mean of the skills 0.769 -> 0.722): it moved away from the policy that it started "
        f"from{moved}.",
        OVERFITTED,
        "facts and larger: 200 items are too few to decide; about 840 would.",
    ]
    assert [step.lines for step in found] == [
        (),
        ("stages:", "  dpo:", "    training:", "      learning_rate: 6.7e-5  # was 2.0e-4"),
        ("stages:", "  sft:", "    training:", "      max_steps: 180  # was 240"),
        (),
    ]
    assert found[0].what == "Halve its batch; then run the same command again."
    assert said(run_dir, live=True) == [], "while it runs there is nothing to change"


OVERFITTED = (
    "sft overfitted: its evaluation loss rose from 0.584 at step 180 to 0.615 at its end (step 240, 3.2 epochs)."
)
SFT_FORGOT = "(mean of the skills 0.821 -> 0.769)"


def test_a_stage_that_could_replay_and_did_not_is_told_to(run_dir: Path) -> None:
    made.change_matrix(run_dir, "sft", "add", verdict="FORGOT")
    made.change_outcome(run_dir, "sft", data={"replay_rows": 0, "replay_ratio": 0.0})
    first = said(run_dir)[1]
    assert (first.why, first.lines) == (
        f"sft forgot add {SFT_FORGOT}: nothing of what the base could do was replayed in it.",
        ("stages:", "  sft:", "    replay:", "      ratio: 0.2  # was 0"),
    )
    assert not any("dpo forgot" in step.why for step in said(run_dir)), "it was lost before"


def test_what_replay_does_not_cover_asks_for_other_rows_and_what_it_covers_for_more(run_dir: Path) -> None:
    for name in ("add", "facts"):
        made.change_matrix(run_dir, "sft", name, verdict="FORGOT")
    found = said(run_dir)
    assert (
        found[1].why
        == f"sft forgot add and facts {SFT_FORGOT} although 20% of its rows were replayed: they do not cover add."
    )
    assert found[1].lines == ("stages:", "  sft:", "    replay:", "      data: [lab/general, FILE]  # was lab/general")
    made.change_probe(run_dir, "add", replayed=True)
    (run_dir / "stages/sft/metrics.jsonl").unlink()
    found = said(run_dir)
    assert (
        found[1].why
        == f"sft forgot add and facts {SFT_FORGOT} although 20% of its rows were replayed, which cover add and facts."
    )
    assert found[1].lines[-1] == "      ratio: 0.4  # was 0"


def test_the_battery_is_asked_for_more_items(run_dir: Path) -> None:
    recipe = run_dir / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("probes: lab", "probes: general").replace("items: auto", "items: 60"))
    found = next(step for step in said(run_dir) if "too few" in step.why)
    assert found.lines == ("forgetting:", "  items: 200") and "may still not decide" in found.what
    for name in ("facts", "larger"):
        made.change_matrix(run_dir, "dpo", name, items_to_decide=60)
    found = next(step for step in said(run_dir) if "too few" in step.why)
    assert found.lines == ("forgetting:", "  items: 120") and "may still not decide" not in found.what


def test_a_set_and_probes_of_ones_own_are_told_apart_in_what_would_decide(run_dir: Path) -> None:
    recipe = run_dir / "recipe.yaml"
    own = "{lab: true, larger: {data: larger.jsonl, metric: exact}}"
    recipe.write_text(recipe.read_text().replace("probes: lab", f"probes: {own}"))
    made.change_matrix(run_dir, "dpo", "facts", items_to_decide=840)
    made.change_matrix(run_dir, "dpo", "larger", items_to_decide=300)
    assert [(step.why, step.what) for step in said(run_dir) if "too few" in step.why] == [
        (
            "facts: 200 items are too few to decide; about 840 would.",
            "Take the verdict as open, or probe it with a file of your own under `forgetting.probes`.",
        ),
        (
            "larger: 200 items are too few to decide; about 300 would.",
            "Add rows to the probe's file: 600 in all, half of them for the gate. Nothing is trained again.",
        ),
    ]
    recipe.write_text(recipe.read_text().replace("data: larger.jsonl, metric: exact", "task: larger, limit: 400"))
    assert next(step.what for step in said(run_dir) if step.why.startswith("larger")) == (
        "Raise `limit` of the task, or leave it out, if it has more items. Nothing is trained again."
    )


def test_a_run_without_a_fault_is_told_nothing(run_dir: Path) -> None:
    statuses(run_dir, reward="done", ppo="done")
    all_verdicts(run_dir, "OK")
    (run_dir / "stages/sft/metrics.jsonl").unlink()
    assert said(run_dir) == []


def merged(whole: Any, part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return {**whole, **{key: merged((whole or {}).get(key) or {}, value) for key, value in part.items()}}


def test_the_lines_fit_into_the_recipe_that_the_run_wrote(run_dir: Path) -> None:
    """Merged into it they make a recipe that loads, and that says what they say."""
    for name in ("add", "facts"):
        made.change_matrix(run_dir, "sft", name, verdict="FORGOT")
    made.change_outcome(run_dir, "sft", data={"replay_rows": 0, "replay_ratio": 0.0})
    yaml = YAML(typ="safe")
    whole = yaml.load((run_dir / "recipe.yaml").read_text())
    asked = [step.lines for step in said(run_dir) if step.lines]
    assert len(asked) == 2
    for lines in asked:
        whole = merged(whole, yaml.load("\n".join(lines).replace("FILE", "lab/general")))
    path = run_dir / "changed.yaml"
    path.write_text(json.dumps(whole))  # which is YAML too
    sft = recipes.load(path).stages[0]
    assert sft.replay is not None and sft.replay.ratio == 0.2
    assert sft.training["max_steps"] == 180


def test_the_recipe_as_the_report_reads_it() -> None:
    assert view("stages: [") == view("- a") == view("") == RecipeView()
    text = "stages: {sft: {data: [/home/me/my.jsonl, lab/helpdesk], replay: null, training: {learning_rate: high}}}"
    mixed = "forgetting: {probes: {lab: true, general: true, law: {data: a.jsonl}, hella: {task: hellaswag}}}"
    assert view(mixed) == RecipeView(probes="general", own_files=("law",), tasks={"hella": ("hellaswag", None, None)})
    assert view("forgetting: {probes: {law: {data: a.jsonl}}}") == RecipeView(own_files=("law",))
    assert view(text).stages["sft"] == StageRecipe(sources=("my.jsonl", "lab/helpdesk"), replays=True)


def test_each_source_of_a_replay_is_told_with_its_rows(run_dir: Path) -> None:
    assert list(buffers(load(run_dir))) == []
    parts = [
        {"name": "lab/general", "weight": 3.0, "rows": 2000, "replayed": 360},
        {"name": "stage base_sft", "weight": 1.0, "rows": 80, "replayed": 120},
        {"name": "old.jsonl", "weight": 0.1, "rows": 10, "replayed": 0},
    ]
    made.change_outcome(run_dir, "sft", data={"rows": 1920, "replay_rows": 480, "replay_sources": parts})
    assert [(one.source, one.share, one.replayed, one.covers) for one in buffers(load(run_dir))] == [
        ("lab/general", "75.0%", "360 an epoch, of 2,000 rows", "the skills of the lab but reverse and larger"),
        ("stage base_sft", "25.0%", "120 an epoch, of 80 rows, each 1.5 times", "the task of base_sft"),
        ("old.jsonl", "0.0%", "0 an epoch, of 10 rows", "not known: what its rows show, and nothing else"),
    ]


def test_the_page_says_what_an_item_of_the_harness_is() -> None:
    text = "forgetting: {probes: {few: {task: hellaswag, limit: 4000, field: acc_norm}, own: {task: ./mine}}}"
    report = Report(run=RunRecord(name="x"), recipe=text)
    shown = Forgetting(matrix={"base": {"few": Cell(score=0.5)}}, split="report")
    halves = "Documents with even numbers are the gate's, the others the report's."
    assert [said for said in method_page.measured(shown, report) if "harness" in said] == [
        "`few` is the task `hellaswag` of lm-evaluation-harness, measured by the harness itself. An item is one of the "
        f"first 4,000 documents of it, by its number, and its score is the metric `acc_norm`. {halves}",
        "`own` is the task `./mine` of lm-evaluation-harness, measured by the harness itself. An item is a document of "
        f"it, by its number, and its score is the task's first metric. {halves}",
    ]
