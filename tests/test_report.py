"""The report of a run folder, against figures and sentences worked out by hand."""

import html
import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import report_fixture as made
import runs
from align import report
from align.errors import AlignError
from align.forgetting.records import BrokenAnswer, Sample
from align.forgetting.table import Forgetting
from align.lab import MODEL_DIR
from align.report import as_json, curves, findings, numbers, plots, svg
from align.report.facts import described
from align.report.records import load
from align.report.terminal import matrix_table, verdict_line
from align.run_folder import files, reading
from align.run_folder.decisions import Decision
from align.run_folder.proofs import Proofs, StartKl
from align.run_folder.records import BaseModelIdentity, Outcome, Policy
from align.run_folder.run_record import RunRecord
from align.spectrum.choose import Record
from align.spectrum.table import spectrum


@pytest.fixture
def run_dir(gated: runs.Gated, tmp_path: Path) -> Path:
    return made.write_run(gated, tmp_path / "runs" / "dpo_qlora")


@pytest.fixture
def page(run_dir: Path) -> str:
    return report.write(run_dir)[0].read_text(encoding="utf-8")


@pytest.fixture
def markdown(run_dir: Path) -> str:
    return report.write(run_dir)[1].read_text(encoding="utf-8")


def words(page: str) -> str:
    """The page as a reader sees it: no style, no figures, no tags, single spaces, ASCII minus and times signs."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("−", "-").replace("×", "x")
    return " ".join(text.split())


def shown(run_dir: Path, width: int, **options: bool) -> str:
    """The table as a terminal of that width prints it."""
    console = Console(file=StringIO(), width=width, **options)  # type: ignore[arg-type]
    console.print(matrix_table(load(run_dir)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_both_files_are_written_and_nothing_else_is_left(run_dir: Path) -> None:
    before = {path.name for path in run_dir.iterdir()}
    assert report.write(str(run_dir)) == (run_dir / "report.html", run_dir / "report.md")
    assert {path.name for path in run_dir.iterdir()} - before == {"report.html", "report.md"}


def test_a_failed_write_leaves_the_old_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "report.html").write_text("old", encoding="utf-8")

    def full(source: str, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        report.write(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(run_dir.glob(".report*"))


def test_what_a_model_wrote_is_text_and_never_markup(page: str, markdown: str) -> None:
    assert "<script" not in page.lower()
    assert "<img" not in page.lower()
    assert html.escape(made.INJECTION, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')
    assert f"now `{made.INJECTION}`" in markdown
    assert "<b>now</b>" not in page


def test_names_are_text_and_never_markup(run_dir: Path) -> None:
    evil = "</text><script>x</script>"
    made.rename_probe(run_dir, "sentiment", evil)
    made_page = report.write(run_dir)[0].read_text(encoding="utf-8")
    assert "<script" not in made_page
    assert made_page.count(html.escape(evil)) >= 2  # in the table and in the heat map


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r"(?:src|href|action|data)\s*=\s*[\"']?\s*(?:https?:)?//", page, re.IGNORECASE)
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.search(r"<(?:script|link|iframe|object|embed|base)\b", page, re.IGNORECASE)


def test_ids_are_unique_and_every_reference_finds_its_own(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(ids)


def test_the_page_of_a_run_as_it_was_written(gated: runs.Gated, tmp_path: Path) -> None:
    """Nothing is changed here: what the run wrote is what the page finds."""
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(made.copied(gated.run, tmp_path / "r")))
    text = words(page)
    assert re.findall(r'role="img" aria-label="([^"]*)"', page) == [
        "Scores after every stage", "Learning against forgetting, one point a stage",
        "Loss of sft", "learning rate of sft", "Loss of dpo", "reward margin of dpo",
        "preferred answer ranked first of dpo", "learning rate of dpo",
    ]  # fmt: skip
    assert "Base lab, 4-bit nf4, the rest float32 Cost of quantising perplexity x" in text
    assert "Data 80 rows; 16 eval rows Steps 12" in text and "Data 64 rows Steps 8" in text, "none replayed"
    assert "A limit that a gate finds broken is told, and the run goes on ( on_violation: warn )." in text
    assert "Limits of the recipe max_drop 0.05 max_mean_drop 0 max_perplexity_ratio 1.5 To do it again" in text
    broken = reading.rows(gated.run / "stages/dpo/measurements/broken.jsonl", BrokenAnswer)
    shown = re.findall(r"^- asked ", markdown.partition("## Answers that broke")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(shown) >= len(broken) > 0
    sample = reading.rows(gated.run / "stages/dpo/measurements/samples.jsonl", Sample)[0]
    assert set(sample.marks) == {"correct", "polite", "parses"}
    assert f"dpo {words(html.escape(sample.output))} correct: no" in text
    decision = reading.read(gated.run / "stages/dpo/decision.json", Decision)
    assert decision.violations and all(words(html.escape(reason)) in text for reason in decision.reasons)
    assert (
        "Goes on from policy sft Method qlora Trains 233,472 of 2,158,272 weights (10.82%) Hands on base + dpo" in text
    )


def test_figures_are_small_and_bring_no_style_for_the_page(page: str) -> None:
    figures = re.findall(r"<figure[^>]*>(<svg.*?</svg>)", page, re.DOTALL)
    # heat map; learning against forgetting; loss and rate of sft; loss, margin, accuracy and rate of dpo
    assert len(figures) == 1 + 1 + 2 + 4
    assert all(len(figure.encode()) < 20_000 and "<style" not in figure for figure in figures)
    assert all("<text" in figure for figure in figures)
    assert "größer_als_$x$" in figures[0]


@pytest.mark.parametrize("real", [False, True])
def test_every_figure_of_the_matrix_is_on_the_page(
    gated: runs.Gated, run_dir: Path, tmp_path: Path, real: bool
) -> None:
    folder = made.copied(gated.run, tmp_path / "real") if real else run_dir
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(folder))
    matrix = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))["matrix"]
    rows = matrix_rows(page)
    lines = {line.split(" | ")[0].strip("| "): line for line in markdown.split("## What was learnt")[0].splitlines()}
    for stage in ("base", "sft", "dpo"):
        for probe, cell in matrix[stage].items():
            digits = 2 if probe == "stories" else 3
            expected = [f"{cell['score']:.{digits}f}", cell.get("verdict") or ""]
            if "ratio" in cell:
                expected.append(f"x{cell['ratio']:.2f}")
            elif "delta" in cell:
                expected.append("0.000" if abs(cell["delta"]) < 0.0005 else f"{cell['delta']:+.3f}")
            for text in filter(None, expected):
                assert text in rows[probe], (stage, probe)
                assert text in lines[re.sub(r"([_$])", r"\\\1", probe)], (stage, probe)


def matrix_rows(page: str) -> dict[str, list[str]]:
    """The words of each row of the matrix, by its name."""
    found = re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', page.split('id="end-1"')[0], re.DOTALL)
    return {html.unescape(name): words(rest).split(" ") for name, rest in found}


def test_learnt_and_lost_carry_interval_p_and_verdict(page: str, markdown: str) -> None:
    # add: 0.375 to 0.050 over 200 items; spread sqrt((0.325 + 0.1 - 0.325^2) / 200) = 0.03995, times 1.96 = 0.0783
    row = "add 0.375 0.050 -0.325 [-0.403, -0.247] < 0.001 69 / 4 FORGOT"
    learnt, _, lost = words(page).partition("What was lost")
    assert row in lost
    assert (
        "helpdesk correct 0.015 0.880 +0.865 [+0.800, +0.930] < 0.001 4 / 177 OK"
        in learnt.partition("What was learnt")[2]
    )
    assert "stories 1.75 4.06 x2.32 [x2.20, x2.44]" in lost
    assert "| add | 0.375 | 0.050 | -0.325 | [-0.403, -0.247] | &lt; 0.001 | 69 / 4 | FORGOT |" in markdown


def test_replayed_and_other_skills_stand_apart(page: str) -> None:
    lost = words(page).partition("What was lost")[2].partition("Learning against forgetting")[0]
    replayed, _, rest = lost.partition("Skills not replayed")
    other = rest.partition("Text")[0]
    assert "facts 1.000" in replayed and "add 0.375" not in replayed
    assert "add 0.375" in other and "facts 1.000" not in other


def test_unclear_rows_say_how_many_items_would_decide(page: str, markdown: str) -> None:
    unclear = words(page).partition("Unclear: too few items")[2]
    assert "facts 1.000 0.765 -0.235 [-0.308, -0.162] < 0.001 840 UNCLEAR" in unclear
    assert "### Unclear: too few items to decide" in markdown


def test_undefined_backward_transfer_says_why_and_is_not_zero(page: str, markdown: str) -> None:
    assert "Backward transfer sft undefined: no skill was measured dpo -0.050" in words(page)
    assert "| **Backward transfer** |  |  | undefined: no skill was measured | -0.050 |" in markdown
    assert "Average forgetting sft 0.065 dpo 0.138 [+0.100, +0.175]" in words(page)


def test_broken_answers_are_counted_and_shown_whole(page: str, markdown: str) -> None:
    text = words(page)
    assert "Asked What is 3 plus 4? Right 7 Before 7 Now We are sorry. We will send 4 | refunds." in text
    assert "What is 3 plus 5?" not in text and "5 of 69 shown." in text  # 69 lost by the matrix
    assert "**add** after dpo: 5 of 69 shown." in markdown
    assert "right ``` `a``b` ```" in markdown


def test_characters_that_hide_or_turn_text_are_shown(page: str) -> None:
    assert "Wo liegt Größenwahn? 日本 ⟨U+202E⟩␀?" in page
    assert not re.search("[\x00-\x08\u202e]", page)


def test_samples_stand_beside_each_other_by_stage(page: str) -> None:
    expected = "sft You broke it yourself. correct: no polite: no dpo We are sorry, Mia."
    assert expected in words(page)


def test_a_stage_says_what_it_did(page: str) -> None:
    sft = words(page).partition("The stages")[2].partition("direct preference")[0]
    for expected in (
        "Trains 135,168 of 2,055,168 weights (6.58%)",
        "Data 2,400 rows; 480 replay rows, ratio 0.2; 200 eval rows",
        "Steps 240, batches of 32",
        "Processes 2 on CPUs",
        "supervised fine-tuning on answers",
        "Training time 1 min 14 s (CPU 1 min 41 s)",
        "Peak memory 812 MiB",
        "Resumed from checkpoint-120",
        "Warning learning_rate 4e-3 is far above",
        "lora.alpha 32",
        "Overfits yes: the eval loss rose from 0.584 at step 180 to 0.615 at step 240, while the train loss fell",
    ):
        assert expected in sft
    assert str(MODEL_DIR) not in page, "no path of this machine"
    assert "reward is not shown: it hands on no policy, so there is nothing to probe" in words(page)


@pytest.mark.parametrize(
    ("world", "kind", "told"),
    [(1, "NO", "Processes 1 Training"), (4, "MULTI_GPU", "4 on GPUs Training"), (2, "FSDP", "Processes 2 Training")],
)
def test_processes_are_told_in_words(run_dir: Path, world: int, kind: str, told: str) -> None:
    made.change_outcome(run_dir, "sft", world_size=world, distributed_type=kind)
    assert told in words(report.write(run_dir)[0].read_text(encoding="utf-8"))


def test_the_proofs_of_a_launch_are_shown_and_are_figures_as_json(run_dir: Path) -> None:
    start = StartKl(value=0.0, limit=0.001, precision="4-bit", of="batch")
    proofs = Proofs(start_kl=start, absent={"ranks_agree": "there is one process"})
    made.change_outcome(run_dir, "dpo", proofs=proofs)
    made.change_outcome(run_dir, "sft", proofs=Proofs())
    one = proofs.model_dump(mode="json")
    stages = {stage["id"]: stage for stage in json.loads(as_json.render(load(run_dir)))["stages"]}
    assert stages["dpo"]["proofs"] == one
    assert stages["sft"]["proofs"] == Proofs().model_dump(mode="json"), "as of an older align"
    text = "0 nats per token apart in the first batch (at most 0.001 in 4-bit)"
    assert {"label": "Policy and reference at the start", "value": text} in stages["dpo"]["facts"]
    for page in report.write(run_dir):
        assert text in words(page.read_text(encoding="utf-8"))


def test_every_shipped_stage_is_described_by_its_own_file(run_dir: Path) -> None:
    from align import shipped
    from align.stage import program

    for name in shipped.names("stages"):
        text = program.load(name, Path()).stage.description
        made.change_stage(run_dir, "ppo", stage=name, about=text)
        page = words(report.write(run_dir)[0].read_text(encoding="utf-8"))
        assert f"ppo pending {text}" in page and "the stage program" not in page


def test_decision_and_failure_are_told(page: str) -> None:
    text = words(page)
    assert "add: 0.38 -> 0.06 (-0.320, 95 % interval -0.390 to -0.250, 200 items) is beyond the limit" in text
    assert "Failed stage 'reward' ran out of memory; halve its batch" in text
    assert "math is not shown: it has no report items" in text
    assert "reward failed" in text and "100% CUDA out of memory" in text
    assert "\x1b" not in page and "10% 100%" not in text
    assert "ppo pending" in text
    assert "written by align: the recipe with every default and inherited value" in text


def test_verdict_is_one_sentence(run_dir: Path) -> None:
    assert verdict_line(load(run_dir)) == (
        "After dpo the model gained helpdesk correct (0.015 to 0.880) and helpdesk polite (0.210 to 0.980) and forgot "
        "add (-0.325), beyond the tolerated drop of 0.2; 3 more fell; it is UNCLEAR whether the mean of the skills is "
        "within its limit of 0.1 (-0.099); 2 of 10 judged are UNCLEAR (95 % intervals, the same held-out items before "
        "and after); stage reward failed."
    )


def test_a_gain_too_small_to_print_is_not_named(run_dir: Path) -> None:
    made.change_matrix(run_dir, "dpo", "helpdesk polite", score=0.2101)
    assert "the model gained helpdesk correct (0.015 to 0.880) and forgot" in verdict_line(load(run_dir))


def test_branches_are_judged_each_for_itself(run_dir: Path) -> None:
    path = run_dir / "forgetting.json"
    table = reading.read(path, Forgetting)
    forgetting = made.change(
        path,
        Forgetting,
        stages=(*table.stages, "ppo"),
        parent={**table.parent, "ppo": "sft"},
        matrix={**table.matrix, "ppo": table.matrix["sft"]},
    )
    assert findings.ends(forgetting) == ["dpo", "ppo"]
    assert "; after ppo the model gained" in verdict_line(load(run_dir))


def test_only_the_base_measured(gated: runs.Gated, tmp_path: Path) -> None:
    folder = made.write_base_only(gated, tmp_path / "fresh")
    sentence = "Only the base has been measured (11 capabilities), and no trained stage yet."
    assert verdict_line(load(folder)) == sentence
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(folder))
    assert sentence in page and sentence in markdown
    assert "What was lost" not in page
    assert "helpdesk" in shown(folder, 80)


def test_nothing_but_a_run_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", RunRecord(format=1, name="empty").written())
    assert verdict_line(load(tmp_path)) == "Nothing has been measured yet."
    page, _ = (path.read_text(encoding="utf-8") for path in report.write(tmp_path))
    assert "No stage has been started." in page
    assert words(page).partition("Nothing has been measured yet. ")[2].startswith("Stages done 0 of 0 Started n/a What")
    assert shown(tmp_path, 80) == "Nothing has been measured yet.\n"


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as caught:
        report.write(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a run folder: it has no run.json\n"
        "  -> give the folder that `align run` wrote, such as runs/NAME"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_runs_names_the_runs(run_dir: Path) -> None:
    with pytest.raises(AlignError) as caught:
        load(run_dir.parent)
    assert str(caught.value) == (
        f"{run_dir.parent} is not a run folder: it has no run.json\n  -> give one of {run_dir.as_posix()}"
    )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as caught:
        load(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"there is no folder {tmp_path / 'nowhere'}\n  -> give the folder that `align run` wrote, such as runs/NAME"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1,\n "stages": [', ":2:13: the file is damaged: Expecting value"),
        ('{"format": 1, "matrix": {"sft": {"add": {"score": "high"}}}}', ": matrix.sft.add.score: Input should be a "
         "valid number, unable to parse string as a number"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(run_dir: Path, text: str, message: str) -> None:
    (run_dir / "forgetting.json").write_text(text, encoding="utf-8")
    with pytest.raises(AlignError) as caught:
        load(run_dir)
    remedy = "run `align run` again, which rewrites it"
    assert str(caught.value) == f"{run_dir / 'forgetting.json'}{message}\n  -> {remedy}"


def test_a_format_from_the_future(run_dir: Path) -> None:
    made.change(run_dir / "forgetting.json", Forgetting, format=2)
    with pytest.raises(AlignError) as caught:
        load(run_dir)
    place = run_dir / "forgetting.json"
    assert str(caught.value) == f"{place}: it has format 2 and this align reads format 1\n  -> update align"


def test_a_torn_last_line_is_no_row_yet(run_dir: Path) -> None:
    path = run_dir / "stages" / "dpo" / "metrics.jsonl"
    whole = len(load(run_dir).stages[1].steps)
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 41, "lo', encoding="utf-8")
    assert len(load(run_dir).stages[1].steps) == whole == 40


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_shows_every_name_and_score_on_one_line(run_dir: Path, width: int) -> None:
    text = shown(run_dir, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines) and "…" not in text and "\x1b" not in text
    for name, (_, _, scores) in made.SCORES.items():
        assert any(line.startswith(f"{name} ") and f"{scores[2]:.3f}" in line for line in lines), name
    assert lines.index(next(line for line in lines if line.startswith("helpdesk polite"))) < lines.index(
        next(line for line in lines if line.startswith("copy"))
    )
    add = [line for line in lines if line.startswith("add ")]
    assert ("FORGOT" if width > 60 else "▼") in add[-1]
    assert sum(line.startswith("mean of skills") for line in lines) == len(add)


def test_the_table_is_coloured_only_where_colour_is_wanted(run_dir: Path) -> None:
    assert "\x1b[1;31m FORGOT" in shown(run_dir, 80, force_terminal=True, no_color=False)
    assert "31m" not in shown(run_dir, 80, force_terminal=True, no_color=True)


def test_an_ascii_terminal_gets_ascii(run_dir: Path) -> None:
    class Ascii(StringIO):
        encoding = "ascii"  # type: ignore[assignment]

    console = Console(file=Ascii(), width=60)
    console.print(matrix_table(load(run_dir)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.isascii() and "0.050 -0.325 !" in text


def falling(count: int, rate: float, tail: float = 0.0) -> list[tuple[float, float]]:
    return [(step, 2 * 0.5 ** (step / rate) + tail * step) for step in range(count)]


@pytest.mark.parametrize(
    ("points", "tone", "begin"),
    [
        (falling(60, 4), "good", "yes: the train loss is flat"),
        (falling(60, 60), "open", "not yet: the train loss is still falling"),
        (falling(60, 2, 0.02), "bad", "no: the train loss is rising again, by 0.38"),
        ([(step, 1.0) for step in range(60)], "bad", "no, it did not learn"),
        ([*falling(30, 4), (30.0, float("nan"))], "bad", "no, it diverged: the train loss is no number from step 30"),
        (falling(11, 4), "open", "cannot be told: train loss was logged 11 times, 12 are needed"),
    ],
)
def test_convergence(points: list[tuple[float, float]], tone: str, begin: str) -> None:
    judgement = curves.convergence(points)
    assert (judgement.tone, judgement.text[: len(begin)]) == (tone, begin)


def test_overfitting_needs_a_rising_eval_and_a_falling_train_loss() -> None:
    train = falling(100, 30)
    rising = [(20.0, 1.0), (50.0, 0.8), (99.0, 1.2)]
    assert curves.overfitting(train, rising).tone == "bad"
    assert curves.overfitting(train, [(20.0, 1.0), (50.0, 0.8), (99.0, 0.81)]).tone == "good"
    assert curves.overfitting([(x, y + x) for x, y in train], rising).text.startswith("no: the eval loss rose from 0.8")
    assert curves.overfitting(train, rising[:1]).text == "cannot be told: one eval loss was logged"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.signed(-0.0004), "0.000"),
        (numbers.signed(-0.0006), "-0.001"),
        (numbers.p_value(0.0009), "< 0.001"),
        (numbers.p_value(0.0494), "0.049"),
        (numbers.score(float("nan")), "n/a"),
        (numbers.seconds(3_725), "1 h 02 min"),
        (numbers.memory(3 * 2**30), "3.0 GiB"),
    ],
)
def test_numbers(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("steps", [[1], [1, 2], [2, 3, 4], [5, 10], [100], list(range(1, 61))])
def test_below_a_curve_stand_whole_steps(steps: list[int]) -> None:
    curve = [(float(step), 1 / step) for step in steps]
    for chart in (plots.loss(curve, [], ""), plots.loss(curve, curve, ""), plots.panel(curve, "reward", "green", "")):
        below = below_the_axis(svg.draw(chart))
        assert below and all(tick == int(tick) for tick in below) and len(set(below)) == len(below), below
        assert len(steps) > 1 or below == [float(step) for step in steps]


def below_the_axis(drawn: str) -> list[float]:
    """The numbers below a figure: in the middle of their place, and no label."""
    found = re.findall(r'text-anchor="middle"[^>]*>([\d.,−]+)</text>', drawn)
    return [float(text.replace(",", "").replace("−", "-")) for text in found]


def test_every_figure_is_a_table_too(page: str) -> None:
    """Of 120 logged losses every fifth and the last; the panels of a stage stand in the same fold."""
    sft = page.partition("<article>")[2].partition("</article>")[0]
    titles = re.findall(r'role="img" aria-label="([^"]*)"', sft)
    tables = dict(re.findall(r"<caption>([^<]*).*?</caption>(.*?)</table>", sft, re.DOTALL))
    assert [name.strip() for name in tables] == titles == ["Loss of sft", "learning rate of sft"]
    rows = re.findall(r"<tr>(.*?)</tr>", tables["Loss of sft "], re.DOTALL)
    assert words(rows[0]) == "step train loss eval loss" and len(rows) == 1 + 24 + 1
    first, last = made.sft_metrics()[0], made.sft_metrics()[-2:]
    assert words(rows[1]) == f"2 {first['loss']:.4g}"
    assert words(rows[-1]) == f"240 {last[0]['loss']:.4g} {last[1]['eval_loss']:.4g}"


def test_no_name_is_cut_and_an_effect_may_wrap(page: str) -> None:
    """On a telephone names take a second line, and the change of one capability does not run out of the page."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "ellipsis" not in style
    rules = dict(re.findall(r"^\s*([^{}@]+?) \{([^{}]*)\}", style, re.MULTILINE))
    for name in (".changes tbody th", ".grid tbody th[scope=row], .changes tbody th"):
        assert "white-space: normal" in rules[name] and "overflow-wrap: break-word" in rules[name], name
    assert "nowrap" not in rules[".piece"] and "max-width: 100%" in rules[".piece"]
    assert "minmax(0, 1fr)" in rules[".judged"], "a column that may be narrower than what stands in it"


def test_records_and_terminal_import_nothing_heavy() -> None:
    code = (
        "import sys, align.report, align.report.records, align.report.terminal;"
        "print([m for m in ('matplotlib', 'jinja2', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_diverged_model_has_no_finite_perplexity_and_is_named_as_lost(run_dir: Path) -> None:
    lost = {"score": None, "delta": None, "ratio": None, "ci95": (None, None), "p_value": 0.0, "verdict": "FORGOT"}
    made.change_matrix(run_dir, "dpo", "stories", **lost)
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(run_dir))
    assert "stories 1.75 inf n/a < 0.001 FORGOT" in words(page).partition("What was lost")[2]
    assert "| stories | 1.75 | inf |" in markdown
    assert "stories (1.75 to inf)" in verdict_line(load(run_dir))
    assert "inf" in shown(run_dir, 80)


def test_limits_by_name(run_dir: Path) -> None:
    path = run_dir / "forgetting.json"
    thresholds = reading.read(path, Forgetting).thresholds
    made.change(path, Forgetting, thresholds={**thresholds, "max_drop": {"facts": 0.05, "default": 0.3}})
    for name in made.SCORES:
        made.change_probe(run_dir, name, limit=0.05 if name == "facts" else 0.3)
    made.change_matrix(run_dir, "dpo", "facts", verdict="FORGOT")
    found = reading.read(path, Forgetting)
    assert (findings.limit(found, "facts"), findings.limit(found, "add")) == (0.05, 0.3)
    text = words(report.write(run_dir)[0].read_text(encoding="utf-8"))
    assert "max_drop.facts 0.05 max_drop.default 0.3" in text
    assert "forgot add (-0.325) and facts (-0.235), beyond their limits;" in verdict_line(load(run_dir))


def test_skills_whose_replay_is_unknown_stand_apart(run_dir: Path) -> None:
    made.change_probe(run_dir, "copy", replayed=None)
    found = reading.read(run_dir / "forgetting.json", Forgetting)
    assert {group.key: group.probes for group in findings.groups(found)} == {
        "task": ("helpdesk correct", "helpdesk polite"),
        "replayed": ("reverse", "sort", "facts"),
        "not_replayed": ("sentiment", "add", "larger", "größer_als_$x$"),
        "skill": ("copy",),
        "text": ("stories",),
    }


def test_a_spectrum_scan_is_drawn_by_type_with_what_was_trained(run_dir: Path) -> None:
    names = [f"model.layers.{layer}.{kind}" for kind in ("mlp.up_proj", "self_attn.q_proj") for layer in range(3)]
    measured = [
        Record(name, name.split(".", 3)[3], at % 3, (8, 8), snr=0.1 * at, threshold=1.0, degenerate=False)
        for at, name in enumerate(names)
    ]
    scan = spectrum(measured, "mp").but(snr_threshold=0.5, chosen=(names[2], names[5]))
    files.write_json(run_dir / "stages/sft/spectrum.json", scan.written())
    report.write(run_dir)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert text.count("Which layers were trained") == 1
    drawing = text.partition("Which layers were trained")[2].partition("</details>")[0]
    assert "mlp.up_proj" in drawing and "self_attn.q_proj" in drawing
    assert drawing.count("fill: var(--blue)") == 2, "one trained layer of each type"


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("loaded", "revision", "told"),
    [
        ([(None, "bfloat16")], None, "acme/base, bfloat16"),
        ([(None, "float32")], "0123abc", "acme/base, revision 0123abc, float32"),
        ([(NF4, "bfloat16")] * 2, None, "acme/base, 4-bit nf4, the rest bfloat16"),
        ([({"load_in_8bit": True}, "float16")], "0123abc", "acme/base, revision 0123abc, 8-bit, the rest float16"),
        ([(None, "bfloat16"), (None, "float32")], None, "acme/base, bfloat16 in sft, float32 in dpo"),
        ([(NF4, None)], None, "acme/base, 4-bit nf4"),
        ([(None, None)], None, "acme/base"),
    ],
)
def test_the_base_is_named_with_its_revision_and_precision(
    gated: runs.Gated, loaded: list[tuple[dict[str, Any] | None, str | None]], revision: str | None, told: str
) -> None:
    """The last two are of an older align, which did not say in what the base was loaded."""
    real = reading.read(gated.run / "stages/sft/outcome.json", Outcome)
    base = BaseModelIdentity(name="acme/base", path="/models/base", identity="1f0c", revision=revision)
    outcomes = {
        stage: real.model_copy(update={"policy": Policy(base=base, quantization=quantization), "dtype": dtype})
        for stage, (quantization, dtype) in zip(("sft", "dpo"), loaded, strict=False)
    }
    assert described(outcomes) == told


def test_a_moment_is_in_words() -> None:
    assert numbers.moment("2026-11-28T14:03:59+00:00") == "28 November 2026, 14:03 UTC"
    assert numbers.moment("2026-11-28T23:30:00-02:00") == "29 November 2026, 01:30 UTC"
    assert numbers.moment(None) == "n/a"
