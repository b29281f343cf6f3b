"""The report of rollouts, of reward models and of branches, against figures worked out by hand."""

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import report_fixture as made
import runs
from align import report
from align.errors import AlignError
from align.report import rollout_plots, svg, ticks
from align.report.chart import Curve, Dots, Rule
from align.report.records import load
from align.report.terminal import verdict_line
from align.rl.rollouts import Rollout
from align.run_folder.comparison import ComparisonResult
from test_report import below_the_axis, words

ROLLOUTS = Path("stages/ppo/rollouts.jsonl")


@pytest.fixture
def run_dir(gated: runs.Gated, rlhf: tuple[Path, Path], tmp_path: Path) -> Path:
    return made.write_rlhf_run(gated, rlhf[1], tmp_path / "runs" / "rlhf")


@pytest.fixture
def rollouts(rlhf: tuple[Path, Path]) -> list[Rollout]:
    """Those of `run_dir`, to be changed."""
    return made.all_rollouts(rlhf[1])


@pytest.fixture
def compared(rlhf: tuple[Path, Path], run_dir: Path) -> Path:
    """The same run with a comparison of its branches."""
    made.write_comparison(rlhf[1], run_dir)
    return run_dir


def written(run_dir: Path) -> tuple[str, str]:
    page, markdown = report.write(run_dir)
    return page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


def article(page: str, stage: str) -> str:
    """The section of one stage."""
    return next(part for part in re.findall(r"<article>.*?</article>", page, re.DOTALL) if f">{stage}</span>" in part)


def titles(section: str) -> list[str]:
    return re.findall(r'role="img" aria-label="([^"]*)"', section)


def figure(section: str, title: str) -> str:
    return next(svg for svg in re.findall(r"<svg.*?</svg>", section, re.DOTALL) if f'aria-label="{title}"' in svg)


def rewrite(run_dir: Path, rollouts: Iterable[Rollout], **changes: Any) -> None:
    """Write all rollouts anew with some figures changed."""
    made.write_rollouts(run_dir, [replace(one, **changes) for one in rollouts])


def test_figures_from_first_to_last_rollout(run_dir: Path) -> None:
    page, markdown = written(run_dir)
    text = words(article(page, "ppo"))
    # the last third are rollouts 11 to 15: scores 1.15 to 1.55, KL 5 to 7
    for name, first, last, late, note in (
        ("Score", "0.15", "1.55", "1.35", ""),
        ("Reward helpful", "0.1", "1.5", "1.3", ""),
        ("KL to the reference, nats", "0", "7", "6", "target 3"),
        ("Coefficient of the KL penalty", "0.02", "327.7", "127", ""),
        ("Tokens an answer", "13", "27", "25", ""),
        ("Explained variance of the critic", "-2", "0.8", "0.7664", ""),
        ("Alarms", "", "", "", "reward hacking (rollout 13)"),
    ):
        assert " ".join(f"{name} {first} {last} {late} {note}".split()) in text
        assert f"| {name} | {first} | {last} | {late} | {note} |" in markdown


def test_an_alarm_is_a_finding_with_its_answers_and_what_to_try(run_dir: Path) -> None:
    page, markdown = written(run_dir)
    text = words(article(page, "ppo"))
    assert "Alarms 1 alarm in 15 rollouts reward hacking in rollout 13: KL 6.4 nats, more than 2 times" in text
    assert "What to try: read the samples: if the score praises what you would not, mend reward ; raise kl.coef" in text
    assert "<code>kl.coef</code>" in page
    assert "Asked Where is my lamp 13.2? Answered We | are sorry 13.2." in text
    assert "score 13.2 KL 0.5" in text
    assert "lamp 13.3" not in text, "three samples, not four"
    assert f"- **reward hacking** in rollout 13: {made.ALARM.figure}" in markdown
    assert f"  - what to try: {made.ALARM.remedy}" in markdown
    answers = markdown.partition("**reward hacking**")[2].partition("| Figure |")[0]
    lines = re.findall(
        r"^  - asked `Where is my lamp (.*?)\?`, answered `We \| are sorry (.*?)\. <script>", answers, re.M
    )
    assert lines == [("13.0", "13.0"), ("13.1", "13.1"), ("13.2", "13.2")], "each on a line of its own"
    assert answers.endswith("\n\n"), "a table begins after an empty line"
    assert verdict_line(load(run_dir)).endswith("; ppo raised an alarm: reward hacking (rollout 13).")


def test_the_rollouts_of_a_run_as_it_was_written(rlhf: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing is changed here: what the trainers wrote is what the page finds."""
    run = made.copied(rlhf[1], tmp_path / "r")
    page, markdown = written(run)
    drawn = titles(article(page, "ppo"))
    assert sorted(drawn) == sorted([
        "Loss of ppo", "learning rate of ppo", "Score by rollout of ppo", "Score against KL of ppo",
        "KL to the reference, nats by rollout of ppo", "KL coefficient (log scale) by rollout of ppo",
        "tokens an answer by rollout of ppo", "entropy of a token, nats by rollout of ppo",
        "share of tokens clipped by rollout of ppo", "explained variance by rollout of ppo",
    ])  # fmt: skip
    assert titles(article(page, "reward")) == [
        "Loss of reward", "reward margin of reward", "preferred answer ranked first of reward",
        "learning rate of reward", "Scores of chosen and rejected answers of reward",
        "Calibration of the pairs of reward",
    ]  # fmt: skip
    assert "Training time" in article(page, "reward") and "Measuring time" not in article(page, "reward")
    last = load(run).stages[3].rollouts[-1]
    text = words(article(page, "ppo"))
    assert f"KL to the reference, nats 0 {last.kl:.4g} {last.kl:.4g} target" in text
    for name in ("reward", "short"):
        assert f"| Reward {name} | " in markdown
    found = branches(markdown)
    assert list(found) == [
        "After the stage", "Mean reward", "KL to sft, nats an answer", "Tokens an answer", "CPU time of training",
        "CPU time of reward, which it needs", "Trainable weights",
    ]  # fmt: skip
    real = load(run).comparison
    assert real is not None
    assert found["Mean reward"] == [f"{real.stages[id].score:.4g}" for id in ("sft", "dpo", "ppo")]


def test_several_alarms_are_counted(run_dir: Path, rollouts: list[Rollout]) -> None:
    rollouts[4].alarms = [replace(made.ALARM, name="kl_explosion", rollout=5)]
    made.write_rollouts(run_dir, rollouts)
    page, _ = written(run_dir)
    assert "2 alarms in 15 rollouts KL explosion in rollout 5" in words(page)
    sentence = "; ppo raised alarms: KL explosion (rollout 5) and reward hacking (rollout 13)."
    assert verdict_line(load(run_dir)).endswith(sentence)
    drawn = figure(page, "Score by rollout of ppo")
    assert "KL explosion" in drawn and "reward hacking" in drawn


def test_no_alarm_is_one_line(run_dir: Path, rollouts: list[Rollout]) -> None:
    rewrite(run_dir, rollouts, alarms=[])
    page, markdown = written(run_dir)
    assert "Alarms no alarm in 15 rollouts" in words(page)
    assert "What to try" not in page and "raised" not in verdict_line(load(run_dir))
    assert "- **Alarms**: no alarm in 15 rollouts" in markdown
    assert "| Alarms |  |  |  | none |" in markdown


def test_answers_of_the_first_rollout_stand_beside_those_of_the_last(run_dir: Path) -> None:
    page, markdown = written(run_dir)
    text = words(article(page, "ppo")).partition("Answers early and late 3 Part Rollout 1 Rollout 15")[2]
    injected = words(made.INJECTION.replace("<", "&lt;"))
    for k, kl in enumerate(("0", "0.25", "0.5")):
        row = f"Asked Where is my lamp 1.{k}? Where is my lamp 15.{k}? Answered We | are sorry 1.{k}. {injected} "
        assert row + f"We | are sorry 15.{k}. {injected} Score " in text
        assert f"KL, nats {kl} {kl}" in text
    assert "| | Rollout 1 | Rollout 15 |\n|---|---|---|\n| Asked | `Where is my lamp 1.0?` |" in markdown
    assert f"| Answered | `We \\| are sorry 1.2. {made.INJECTION}` | `We \\| are sorry 15.2." in markdown
    assert "1.3" not in re.findall(r"lamp ([\d.]+)\?", text)


def test_every_table_of_the_markdown_has_rows_as_wide_as_its_head(compared: Path) -> None:
    _, markdown = written(compared)
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    # matrix; learnt, lost (three kinds) and unclear after dpo, and the same after ppo;
    # learning against forgetting; KL to the base; replay after each; branches; calibration, histogram; figures, answers
    assert len(tables) == 1 + 5 + 5 + 1 + 1 + 2 + 1 + 2 + 2
    for table in tables:
        head, rule, *rows = (re.sub(r"\\\|", "", line).count("|") for line in table.splitlines())
        assert {rule, *rows} == {head}, table


def test_every_measurement_has_a_figure(run_dir: Path) -> None:
    page, _ = written(run_dir)
    section = article(page, "ppo")
    by_rollout = [
        "Score by rollout of ppo", "KL to the reference, nats by rollout of ppo",
        "KL coefficient (log scale) by rollout of ppo", "tokens an answer by rollout of ppo",
        "entropy of a token, nats by rollout of ppo", "share of tokens clipped by rollout of ppo",
        "explained variance by rollout of ppo",
    ]  # fmt: skip
    # the panels of the logged reward and KL would show the same again
    assert sorted(titles(section)) == sorted(["Loss of ppo", "Score against KL of ppo", *by_rollout])
    for title in by_rollout:
        assert len(re.findall(r"stroke-dasharray[^\"]*stroke: var\(--orange\)", figure(section, title))) == 1, title
    assert "reward hacking" in figure(section, by_rollout[0])
    assert "dashed: target 3" in figure(section, by_rollout[1])
    assert "dashed: target 3" in figure(section, "Score against KL of ppo")
    assert ">0.1<" in figure(section, by_rollout[2]) and "mathdefault" not in section
    assert "▼ &lt; −1" in figure(section, by_rollout[6])
    assert all(len(svg.encode()) < 60_000 for svg in re.findall(r"<svg.*?</svg>", section, re.DOTALL))


def test_later_points_of_the_score_against_kl_are_deeper(run_dir: Path) -> None:
    page, _ = written(run_dir)
    drawn = figure(article(page, "ppo"), "Score against KL of ppo")
    shades = [float(shade) for shade in re.findall(r"fill-opacity: (0\.\d+)", drawn)]
    assert len(shades) == 14 and shades == sorted(shades), "the last of the 15 is opaque"


def test_ids_stay_unique_and_nothing_is_markup(run_dir: Path) -> None:
    page, _ = written(run_dir)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(ids)
    assert "<script" not in page.lower() and "<img" not in page.lower()


def test_what_no_rollout_has_is_left_out(run_dir: Path, rollouts: list[Rollout]) -> None:
    nothing = dict.fromkeys(("kl", "coef", "entropy", "clip_fraction", "explained_variance"))
    rewrite(run_dir, rollouts, alarms=[], **nothing)
    made.change_outcome(run_dir, "ppo", metrics={"kl_target": None})
    page, markdown = written(run_dir)
    section = article(page, "ppo")
    assert sorted(titles(section)) == ["Loss of ppo", "Score by rollout of ppo", "tokens an answer by rollout of ppo"]
    table = markdown.partition("#### Rollouts")[2].partition("Answers early")[0]
    named = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    assert named == [
        "Figure", "Score", "Standard deviation of the score", "Reward helpful", "Reward polite", "Tokens an answer",
        "Alarms",
    ]  # fmt: skip


def test_figures_that_only_some_rollouts_have(run_dir: Path, rollouts: list[Rollout]) -> None:
    for one in rollouts:
        one.explained_variance = 0.5 if one.number == 14 else None
    made.write_rollouts(run_dir, rollouts)
    page, markdown = written(run_dir)
    assert "explained variance by rollout of ppo" in titles(page)
    assert "| Explained variance of the critic | - | - | 0.5 |" in markdown


def test_a_run_that_broke_is_still_told(run_dir: Path, rollouts: list[Rollout]) -> None:
    lost = replace(rollouts[-1], score=float("nan"), score_std=float("nan"), kl=float("inf"), coef=0.0)
    made.write_rollouts(run_dir, [*rollouts[:-1], lost])
    page, markdown = written(run_dir)
    assert "| Score | 0.15 | nan | nan |" in markdown
    assert "| KL to the reference, nats | 0 | inf | inf | target 3 |" in markdown
    assert "Score by rollout of ppo" in titles(page) and "nan" not in figure(page, "Score by rollout of ppo")
    rewrite(run_dir, rollouts, score=float("nan"), coef=0.0)
    assert not {"Score by rollout of ppo", "Score against KL of ppo"} & set(titles(written(run_dir)[0]))


def test_a_single_rollout(run_dir: Path, rollouts: list[Rollout]) -> None:
    made.write_rollouts(run_dir, rollouts[:1])
    page, markdown = written(run_dir)
    assert "Alarms no alarm in 1 rollout " in words(page)
    assert "| | Rollout 1 |\n|---|---|\n| Asked | `Where is my lamp 1.0?` |" in markdown
    assert len(titles(article(page, "ppo"))) == 1 + 2 + 6


def test_a_long_run_is_drawn_in_stretches(run_dir: Path, rollouts: list[Rollout]) -> None:
    made.write_rollouts(run_dir, [replace(rollouts[0], number=n, kl=n / 100) for n in range(1, 1001)])
    page, _ = written(run_dir)
    assert all(len(svg.encode()) < 100_000 for svg in re.findall(r"<svg.*?</svg>", article(page, "ppo"), re.DOTALL))


def test_a_torn_line_is_no_rollout_yet(run_dir: Path) -> None:
    path = run_dir / ROLLOUTS
    path.write_text(path.read_text(encoding="utf-8") + '{"number": 16, "step": 60, "sco', encoding="utf-8")
    assert [one.number for one in load(run_dir).stages[3].rollouts] == list(range(1, 16))
    assert "1 alarm in 15 rollouts" in words(written(run_dir)[0])


@pytest.mark.parametrize("text", [None, "", '{"number": 1'])
def test_without_rollouts_the_stage_is_as_any_other(run_dir: Path, text: str | None) -> None:
    (run_dir / ROLLOUTS).unlink()
    if text is not None:
        (run_dir / ROLLOUTS).write_text(text, encoding="utf-8")
    page, markdown = written(run_dir)
    assert "Rollouts" not in page and "Rollouts" not in markdown and "rollout" not in verdict_line(load(run_dir))
    section = article(page, "ppo")
    assert titles(section) == ["Loss of ppo", "reward of ppo", "KL to the reference of ppo"]
    assert "Overfits cannot be told: no eval loss" in words(section)


def test_a_stage_with_rollouts_is_judged_by_its_reward_and_by_no_eval_loss(run_dir: Path) -> None:
    expected = "Converged not yet: the reward is still rising, by 0.5 over the last third"
    text = words(article(written(run_dir)[0], "ppo"))
    assert expected in text and "Overfits" not in text
    made.write_metrics(run_dir / "stages/ppo/metrics.jsonl", [{"step": n, "loss": 0.1} for n in range(1, 16)])
    # nothing but the loss is logged: the scores of rollouts 11 to 15 rise by 0.4
    text = words(article(written(run_dir)[0], "ppo"))
    assert "the reward is still rising, by 0.5" in text or "the reward is still rising, by 0.4" in text


def test_a_stage_names_all_that_it_goes_on_from(run_dir: Path) -> None:
    page, _ = written(run_dir)
    assert "Goes on from policy sft, reward reward Method" in words(page)
    assert "Hands on base + reward Data" in words(article(page, "reward"))


def test_a_reward_model_is_told_by_its_pairs(run_dir: Path) -> None:
    page, markdown = written(run_dir)
    section = article(page, "reward")
    assert "Pair accuracy 0.880 [0.802, 0.930] (higher is better, 0.5 is chance) Mean margin of a pair 1.700" in words(
        section
    )
    assert "Calibration error 0.021 (lower is better) Pairs 100" in words(section)
    drawn = ["Scores of chosen and rejected answers of reward", "Calibration of the pairs of reward"]
    assert titles(section) == drawn
    assert "chosen" in figure(section, drawn[0]) and "rejected" in figure(section, drawn[0])
    assert "predicted" in figure(section, drawn[1])
    assert "| 0.620 | 0.550 | 20 |\n| 0.970 | 0.963 | 80 |" in markdown
    rows = "| -2.00 to -1.00 | 0 | 88 |\n| -1.00 to 0.00 | 3 | 12 |\n| 1.00 to 2.00 | 97 | 0 |"
    assert rows in markdown, "the empty stretch from 0 to 1 is left out"
    assert "edges" not in markdown and "observed" not in markdown, "what is drawn is no metric in a list"


@pytest.mark.parametrize(
    "broken",
    [
        {"score_histogram": {"edges": [0, 1], "chosen": [1, 2], "rejected": [3]}, "calibration": "unknown"},
        {"score_histogram": {"edges": [0], "chosen": [], "rejected": []}, "calibration": [{"predicted": 0.5}]},
    ],
)
def test_metrics_of_another_form_are_only_listed(run_dir: Path, broken: dict[str, Any]) -> None:
    made.change_outcome(run_dir, "reward", metrics=broken)
    page, markdown = written(run_dir)
    assert "Pair accuracy 0.880" in words(page) and not titles(article(page, "reward"))
    assert "score\\_histogram.edges 0" in markdown


def test_a_stage_that_says_nothing_of_pairs_has_no_section_of_them(run_dir: Path) -> None:
    assert "On pairs held out" not in article(written(run_dir)[0], "sft")


def branches(markdown: str) -> dict[str, list[str]]:
    table = markdown.partition("## Branches compared")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0].replace("\\", ""): row[1:] for row in rows}


def test_branches_are_compared_by_score_cost_and_what_their_answers_earn(compared: Path) -> None:
    page, markdown = written(compared)
    expected = {
        "After the stage": ["sft (before them)", "dpo", "ppo"],
        "helpdesk correct": ["0.930", "0.880 (-0.050)", "0.970 (+0.040)"],
        "helpdesk polite": ["0.550", "0.980 (+0.430)", "0.550 (0.000)"],
        "Mean of all skills": ["0.769", "0.722", "0.769"],
        "Perplexity of stories": ["3.12", "4.06 (x1.30)", "3.12 (x1.00)"],
        "Mean reward": ["0.25", "1.125", "1.625"],
        "KL to sft, nats an answer": ["-", "9.75", "6.5"],
        "Tokens an answer": ["12.5", "14", "26.5"],
        "CPU time of training": ["1 min 41 s", "1 min 41 s", "1 min 41 s"],
        "CPU time of reward, which it needs": ["-", "-", "10 s"],
        "Trainable weights": ["135,168", "135,168", "135,168"],
    }
    assert branches(markdown) == expected
    text = words(page)
    assert "Branches compared dpo, ppo, each on sft After the stage sft before them dpo ppo" in text
    for name, values in list(expected.items())[1:]:
        assert " ".join([name, *values]).replace("(", "").replace(")", "") in text
    assert "of the same 155 held-out prompts of the stage reward." in text
    assert "of the same 155 held-out prompts of the stage reward." in markdown
    changed = re.findall(r'<td class="n">0.980 <span class="delta (\w*)">\+0.430</span>', page.replace("\u00a0", " "))
    assert changed == ["better"], "a change that is sure is coloured"


def test_branches_without_a_comparison_show_what_the_stages_know(run_dir: Path) -> None:
    _, markdown = written(run_dir)
    rows = branches(markdown)
    assert "KL: as a stage measured it itself on the answers that it sampled; - where it did not." in markdown
    assert rows["KL to sft, nats an answer"] == ["-", "-", "5.8"]
    assert not {"Mean reward", "Tokens an answer"} & rows.keys(), "a row where there are figures for it"


def test_a_comparison_of_another_branching_is_not_used(compared: Path) -> None:
    made.change(compared / "comparison.json", ComparisonResult, parent="other")
    assert not {"Mean reward", "Tokens an answer"} & branches(written(compared)[1]).keys()


def test_branches_from_the_base_and_without_measurements(run_dir: Path) -> None:
    (run_dir / "forgetting.json").unlink()
    made.change_stage(run_dir, "dpo", inputs={"policy": "base"})
    page, markdown = written(run_dir)
    assert "Branches compared sft, dpo, each on base" in words(page)
    assert branches(markdown) == {
        "After the stage": ["base (before them)", "sft", "dpo"],
        "CPU time of training": ["-", "1 min 41 s", "1 min 41 s"],
        "Trainable weights": ["-", "135,168", "135,168"],
    }


def test_changes_of_branches_from_the_base_are_those_from_the_base(run_dir: Path) -> None:
    for stage in ("dpo", "ppo"):
        made.change_stage(run_dir, stage, inputs={"policy": "base"})
    values = ["0.015", "0.930 (+0.915)", "0.880 (+0.865)", "0.970 (+0.915)"]
    assert branches(written(run_dir)[1])["helpdesk correct"] == values


@pytest.mark.parametrize("missing", ["outcome", "policy", "parent"])
def test_one_branch_is_none(run_dir: Path, missing: str) -> None:
    """A branch that is not done, that gives no policy, or that goes on from another policy is not compared."""
    if missing == "outcome":
        (run_dir / "stages/ppo/outcome.json").unlink()
    elif missing == "policy":
        made.change_outcome(run_dir, "ppo", policy=None)
    else:
        made.change_stage(run_dir, "ppo", inputs={"policy": "dpo", "reward": ["reward"]})
    page, markdown = written(run_dir)
    assert "Branches compared" not in page and "Branches compared" not in markdown


def test_a_comparison_from_the_future(compared: Path) -> None:
    made.change(compared / "comparison.json", ComparisonResult, format=2)
    with pytest.raises(AlignError, match=r"comparison\.json: it has format 2 and this align reads format 1"):
        load(compared)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.08, 0.36, [0.1, 0.2]),
        (0.201, 0.243, [0.2, 0.24]),
        (0.1, 0.1, [0.1]),
        (0.02, 327.0, [0.1, 1.0, 10.0, 100.0]),
        (1e-9, 1e3, [1e-9, 1e-5, 1e-1, 1e3]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, expected: list[float]) -> None:
    assert ticks.logarithmic(low, high) == pytest.approx(expected)


def test_the_report_of_rollouts_needs_no_training_stack(run_dir: Path) -> None:
    code = (
        f"import sys; from align import report; report.write({str(run_dir)!r});"
        "print([m for m in ('torch', 'trl', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("values", [[-40.0, -7.5, -1.2], [-3.0, 0.2, 0.6], [-2.0]])
def test_a_critic_far_below_a_constant_is_marked_at_the_edge_of_its_panel(values: list[float]) -> None:
    rollouts = [
        Rollout(number, 0, 8, 0.0, 1.0, {}, explained_variance=value) for number, value in enumerate(values, start=1)
    ]
    [drawn] = [one for one in rollout_plots.small(rollouts, None, "ppo") if one.title.startswith("explained")]
    assert drawn.y_ends is not None
    bottom, top = drawn.y_ends
    curve, zero, marks = drawn.marks
    assert isinstance(curve, Curve) and isinstance(zero, Rule) and isinstance(marks, Dots)
    assert list(curve.points) == [(number, max(value, -1.0)) for number, value in enumerate(values, start=1)]
    assert all(bottom < y < top for _, y in curve.points), "nothing lies outside"
    assert list(marks.points) == [(number, -1.0) for number, value in enumerate(values, start=1) if value < -1]
    assert zero.at == 0 and not zero.vertical
    assert drawn.heads == (("explained variance (▼ < −1)", "green"),)
    assert [row[1] for row in drawn.table().rows] == [f"{value:g}" for value in values], (
        "the table has them as they are"
    )


def test_a_critic_that_never_was_far_below_has_no_marks() -> None:
    rollouts = [Rollout(number, 0, 8, 0.0, 1.0, {}, explained_variance=-0.9 + number / 2) for number in range(1, 4)]
    [drawn] = [one for one in rollout_plots.small(rollouts, None, "ppo") if one.title.startswith("explained")]
    assert drawn.heads == (("explained variance", "green"),) and len(drawn.marks) == 2


@pytest.mark.parametrize("numbers", [[1], [1, 2], [1, 2, 3], [7, 8], [12], list(range(1, 41))])
def test_below_the_axis_stand_whole_rollouts(numbers: list[int]) -> None:
    rollouts = [Rollout(number, 0, 8, 0.1 * number, 1.0, {}, kl=1.0, entropy=1.0) for number in numbers]
    for chart in [*rollout_plots.large(rollouts, None, "ppo"), *rollout_plots.small(rollouts, None, "ppo")]:
        if not chart.title.startswith("Score against KL"):
            below = below_the_axis(svg.draw(chart))
            assert below and all(tick == int(tick) for tick in below) and len(set(below)) == len(below), chart.title
            assert len(numbers) > 1 or below == [float(number) for number in numbers]
