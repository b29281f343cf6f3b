"""`align compare`: runs side by side, against figures worked out here, and every run that it refuses."""

from __future__ import annotations

import html as escaping
import json
import math
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

import compared_runs as made
import runs
from align.compare import chart, page, words
from align.compare.build import compare
from align.compare.table import RunsCompared
from align.compare.terminal import Comparison
from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.keys import ForgettingKeys
from align.forgetting.records import BatterySize
from align.run_folder import files, reading
from align.run_folder.paths import RunDir
from align.run_folder.run_record import RunRecord

GOOD = {"copy": 95, "sort": 90, "task polite": 40, "stories": 0.5}
BAD = {"copy": 55, "sort": 50, "task polite": 42, "stories": 0.9}
Z = 1.959963984540054
REMEASURE = "give both recipes the same `forgetting.probes` and run them again: they are measured, not trained again"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of sft and dpo: `a` kept its skills, `b` forgot them."""
    first = made.write_run(tmp_path / "a", {"sft": {**GOOD, "copy": 100}, "dpo": GOOD})
    changes = {"seed": 2, "stages": {"sft": {"data": [{"source": "x"}], "replay": None}}}
    return first, made.write_run(tmp_path / "b", {"sft": GOOD, "dpo": BAD}, recipe=changes)


def bonett_price(lost: int, gained: int, n: int) -> list[float]:
    """Bonett & Price 2012, equation as printed."""
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return [p12 - p21 - half, p12 - p21 + half]


def shown(found: RunsCompared, width: int, **options: Any) -> str:
    console = Console(file=StringIO(), width=width, **options)
    console.print(Comparison(found))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def refusal(*folders: Path) -> str:
    with pytest.raises(AlignError) as error:
        compare(folders)
    return str(error.value)


def test_each_probe_is_compared_item_by_item(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    last = found.tables[0]
    assert (last.stages, [row.name for row in last.rows]) == (("dpo", "dpo"), list(GOOD))
    copy, _, task, text = last.rows
    assert [(value.score, value.verdict) for value in copy.values] == [(0.95, "OK"), (0.55, "FORGOT")]
    change = copy.differences[0]
    assert (change.delta, change.lost, change.gained, change.direction) == (-0.4, 40, 0, "worse")
    assert change.ci95 == pytest.approx(bonett_price(40, 0, 100), abs=1e-6)
    assert (task.differences[0].delta, task.differences[0].direction) == (0.02, None)
    assert text.differences[0].ratio == pytest.approx(math.exp(0.4), rel=1e-5)
    assert text.differences[0].direction == "worse"
    assert [value.score for value in text.values] == pytest.approx([_perplexity(0.5), _perplexity(0.9)], rel=1e-5)


def _perplexity(nats: float) -> float:
    tokens = sum(10 + i for i in range(made.TEXTS))
    return math.exp(nats + sum(i % 2 / 10 for i in range(made.TEXTS)) / tokens)


def test_the_mean_is_over_the_skills_alone_with_an_interval_of_its_own(pair: tuple[Path, Path]) -> None:
    mean = compare(pair).tables[0].mean
    assert mean is not None
    assert (mean.name, mean.n, [value.score for value in mean.values]) == ("mean of skills", 200, [0.925, 0.525])
    n, moments = 101.0, (-40 / 101, 41 / 101)  # Price & Bonett 2004: half an item lost and half an item gained more
    half = Z * math.sqrt(2 * (moments[1] - moments[0] ** 2) / n) / 2
    assert mean.differences[0].ci95 == pytest.approx([moments[0] - half, moments[0] + half], abs=1e-6)
    assert [value.verdict for value in mean.values] == ["UNCLEAR", "FORGOT"]


def test_stages_of_one_name_are_compared_after_the_last_ones(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert [table.stages for table in compare(pair).tables] == [("dpo", "dpo"), ("sft", "sft")]
    other = made.write_run(tmp_path / "c", {"sft": GOOD})
    found = compare([pair[0], other])
    assert [table.stages for table in found.tables] == [("dpo", "sft"), ("sft", "sft")]
    assert words.title(found, found.tables[0]) == "after dpo of a, sft of c"
    assert words.title(found, found.tables[1]) == "after sft"


def test_the_sentence_says_which_is_better_and_whether_that_is_sure(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    (finding,) = found.findings
    assert (finding.outcome, finding.better, finding.worse) == ("worse", (), ("mean of skills", "stories"))
    assert finding.sentence == (
        "b is worse than a for certain: mean of skills (0.525 against 0.925, -0.400 [-0.465, -0.327]) and stories "
        "(2.47 against 1.65, x1.49 [x1.49, x1.49]); no sure difference in task polite; of 2 skills 2 surely worse."
    )
    assert found.best == "a" and words.conclusion(found) == [finding.sentence]
    (finding,) = compare(pair[::-1]).findings
    assert finding.outcome == "better" and finding.sentence.startswith("a is better than b for certain: mean of skills")


def test_what_is_better_in_one_thing_and_worse_in_another_is_mixed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    third = made.write_run(tmp_path / "c", {"sft": {**BAD, "task polite": 100, "stories": 0.5}})
    found = compare([pair[0], third])
    assert found.findings[0].sentence == (
        "c is better than a in task polite (1.000 against 0.400, +0.600 [+0.489, +0.688]), but worse in mean of skills "
        "(0.525 against 0.925, -0.400 [-0.465, -0.327]); no sure difference in stories; of 2 skills 2 surely worse."
    )
    assert found.findings[0].outcome == "mixed" and found.best is None


def test_a_single_skill_does_not_decide(tmp_path: Path) -> None:
    skills = {f"skill {i}": 100 for i in range(12)} | {"skill 5": 90}
    first = made.write_run(tmp_path / "a", {"sft": skills})
    second = made.write_run(tmp_path / "b", {"sft": {**skills, "skill 3": 93, "skill 5": 96}})
    (finding,) = compare([first, second]).findings
    assert (finding.outcome, finding.sentence) == (
        "unsure",
        "b and a do not differ for certain: mean of skills (0.991 against 0.992, -0.001 [-0.007, +0.005]); of 12 "
        "skills 1 surely better and 1 surely worse.",
    )


def test_of_three_runs_the_best_is_better_than_each_other(pair: tuple[Path, Path], tmp_path: Path) -> None:
    middle = made.write_run(tmp_path / "c", {"dpo": {**GOOD, "copy": 75, "stories": 0.7}})
    found = compare([pair[1], middle, pair[0]])
    assert [finding.outcome for finding in found.findings] == ["better", "better"] and found.best == "a"
    assert words.conclusion(found)[-1] == "a is better than each of the others for certain."
    twin = made.write_run(tmp_path / "d", {"dpo": GOOD})
    found = compare([pair[1], twin, pair[0]])
    assert found.best is None and words.conclusion(found)[-1] == words.NO_BEST
    assert len(found.tables[0].rows[0].differences) == 2


def test_the_settings_that_differ_are_told_with_dotted_keys(pair: tuple[Path, Path]) -> None:
    assert compare(pair).settings == {
        "seed": (1, 2),
        "stages.sft.data.0.source": (None, "x"),
    }
    for number, id in enumerate(("sft", "dpo")):
        path = RunDir(pair[number]).stage(id).ticket
        ticket = files.read_json(path)
        ticket["train"] |= {"sha256": "d" * 64, "count": 1065}
        files.write_json(path, ticket)
    files.write_json(pair[1] / "run.json", files.read_json(pair[1] / "run.json") | {"align": "2.0"})
    found = compare(pair).settings
    assert found["training rows of sft"] == ("1,065 (dddddddd)", "64 (cccccccc)")
    assert found["training rows of dpo"] == ("64 (cccccccc)", "1,065 (dddddddd)")
    assert found["align"] == ("1.0", "2.0")


def test_what_training_took_stands_side_by_side(pair: tuple[Path, Path]) -> None:
    kl = {"metrics": {"kl": 2.5}, "data": {"rows": 64, "replay_rows": 16}, "steps": 1200}
    made.finish(RunDir(pair[1]), "dpo", **kl)
    RunDir(pair[1]).stage("sft").metrics.unlink()
    tried = {"attempt": 2, "action": "continue", "reasons": [], "violations": [], "unclear": [], "thresholds": {}}
    files.write_json(RunDir(pair[1]).stage("dpo").decision, {"stage": "dpo", **tried})
    found = dict(words.training(compare(pair)))
    assert found["dpo"] == [
        ("steps", ["12", "1,200"]),
        ("batch", ["8", "8"]),
        ("rows", ["64", "64"]),
        ("replay rows", ["0", "16"]),
        ("trained weights", ["100", "100"]),
        ("train loss at the end", ["0.5", "0.5"]),
        ("eval loss at the end", ["0.75", "0.75"]),
        ("KL, nats an answer", ["-", "2.5"]),
        ("CPU time", ["20 s", "20 s"]),
        ("peak memory", ["3 MiB", "3 MiB"]),
        ("after the gate", ["-", "attempt 2"]),
    ]
    assert dict(found["sft"])["train loss at the end"] == ["0.5", "-"]
    assert "replay rows" not in dict(found["sft"])


def test_a_skill_at_which_a_base_guesses_is_left_out(tmp_path: Path) -> None:
    base = {"copy": 100, "sort": 52}
    folders = [
        made.write_run(tmp_path / name, {"sft": {"copy": 90, "sort": 50}}, base=base, chance=0.5) for name in "ab"
    ]
    found = compare(folders)
    assert [row.name for row in found.tables[0].rows] == ["copy"]
    assert found.left_out == {
        "sort": "it cannot show forgetting, since the base gets 52% of 200 items right, guessing gets 50% (a)"
    }
    assert "sort is not compared: it cannot show forgetting" in " ".join(shown(found, 200).split())


def test_the_terminal_shows_intervals_where_there_is_room(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    wide, narrow = shown(found, 100), shown(found, 70)
    assert re.search(r"^copy +0\.950 OK +0\.550 FORGOT +-0\.400 +\[-0\.491, -0\.294\]$", wide, re.MULTILINE)
    assert re.search(r"^copy +0\.950 OK +0\.550 FORGOT +-0\.400$", narrow, re.MULTILINE)
    assert re.search(r"^stories +1\.65 OK +2\.47 OK +x1\.49 +\[x1\.49, x1\.49\]$", wide, re.MULTILINE)
    assert re.search(r"^seed +1 +2$", wide, re.MULTILINE)
    assert re.search(r"^CPU time +20 s +20 s$", wide, re.MULTILINE)
    assert all(len(line) <= 70 for line in narrow.splitlines())
    assert shown(compare([pair[0], made.write_run(pair[0].parent / "x", {"sft": GOOD})]), 100).count("after ") == 2


def test_equal_recipes_are_said_to_be_equal(tmp_path: Path) -> None:
    folders = [made.write_run(tmp_path / name, {"sft": GOOD}) for name in "ab"]
    found = compare(folders)
    assert found.settings == {} and "The settings are the same." in shown(found, 100)
    assert "The settings are the same." in page.render(found)


def test_the_page_says_the_same_and_escapes_what_it_is_given(pair: tuple[Path, Path], tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x>"
    pair[1].rename(evil)
    found = compare([pair[0], evil])
    text = page.render(found)
    assert "<img" not in text and "<script" not in text
    said = " ".join(
        escaping.unescape(re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]*>", " ", text, flags=re.S)).split()
    )
    sentence = re.sub(r"(?<=[ \[])-", "−", re.sub(r"(?<=[ \[])x(?=\d)", "×", found.findings[0].sentence))
    assert sentence in said
    assert "copy 100 0.950 ✓ OK 0.550 ▼ FORGOT −0.400 [−0.491, −0.294]" in said.replace("\u00a0", " ")
    assert "seed 1 2" in said and "CPU time 20 s 20 s" in said


def test_the_drawing_has_a_dot_and_an_interval_at_the_right_place(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    svg = str(chart.draw(found, found.tables[0], 1))
    lines = [tuple(map(float, pair)) for pair in re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', svg)]
    zero, intervals = lines[0][0], lines[1:]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(dots) == len(intervals) == 4 and lines[0][0] == lines[0][1]  # task, two skills, the mean
    assert all(low < dot < high for (low, high), dot in zip(intervals, dots, strict=True))
    assert dots[0] > zero > dots[1] and (zero - dots[1]) / (dots[0] - zero) == pytest.approx(20, rel=0.02)
    assert "×1.49" in svg and "◀ a better" in svg and "b better ▶" in svg


def test_a_run_under_way_is_compared_and_said_to_be(pair: tuple[Path, Path]) -> None:
    (pair[1] / ".lock").touch()
    with FileLock(pair[1] / ".lock"):
        found = compare(pair)
    assert [run.under_way for run in found.runs] == [False, True]
    assert words.conclusion(found)[-1] == "b is under way: its figures may change."
    assert not compare(pair).runs[1].under_way


def test_stages_that_were_asked_something_else_are_left_out(pair: tuple[Path, Path]) -> None:
    """As where a run goes on with other probes and was interrupted: the stage before was measured anew, this not."""
    made.finish(RunDir(pair[1]), "sft", asked="0")
    assert compare(pair).runs[1].stages == ("dpo",)


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [made.write_run(tmp_path / name / "run", {"sft": GOOD}) for name in "ab"]
    assert [run.label for run in compare(folders).runs] == [str(folder) for folder in folders]


def test_fewer_than_two_different_runs_are_refused(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(pair[0]) == "a comparison needs two runs or more\n  -> align compare runs/a runs/b"
    monkeypatch.chdir(pair[0])
    assert refusal(pair[0], Path()) == "'.' is given twice\n  -> give another run to compare it with"


def test_a_folder_that_is_no_run_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    remedy = "\n  -> give the folder that `align run` wrote, such as runs/NAME"
    assert refusal(pair[0], tmp_path / "none") == f"there is no folder {tmp_path}/none{remedy}"
    assert refusal(pair[0], tmp_path / "empty") == f"{tmp_path}/empty is not a run folder: it has no run.json{remedy}"


def test_a_run_without_measurements_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in (RunDir(pair[1]).base_measurements, RunDir(pair[1]).stage("dpo").measurements):
        (folder / "summary.json").unlink()
    what = f"'{pair[1]}' has no measurements to compare"
    assert refusal(*pair) == f"{what}\n  -> run it first: align run"
    files.write_json(pair[1] / "run.json", files.read_json(pair[1] / "run.json") | {"probes": "none"})
    assert refusal(*pair) == (
        f"{what}: its recipe says `probes: none`\n"
        "  -> set `forgetting.probes` in its recipe and run it again: what is trained is measured, not trained again"
    )


def test_a_run_of_which_only_the_base_is_measured_is_refused(pair: tuple[Path, Path]) -> None:
    for id in ("sft", "dpo"):
        RunDir(pair[1]).stage(id).outcome.unlink()
    assert refusal(*pair) == (
        f"no stage of '{pair[1]}' has been trained and measured yet\n  -> run it first: align run"
    )
    (pair[1] / ".lock").touch()
    with FileLock(pair[1] / ".lock"):
        assert refusal(*pair).endswith("\n  -> wait until one is")


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (made.LAB.model_copy(update={"name": "./mine", "identity": "b"}), "./mine, not lab"),
        (made.LAB.model_copy(update={"identity": "b"}), "other files of the name lab"),
    ],
)
def test_another_base_is_refused(model: Any, names: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = made.write_run(tmp_path / "c", {"sft": GOOD}, model=model)
    assert refusal(pair[0], other) == (
        f"'{other}' has another base than '{pair[0]}': {names}\n  -> compare runs of one base model"
    )


def test_other_probes_and_other_items_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a = pair[0]
    other = made.write_run(tmp_path / "c", {"sft": {"copy": 90, "sort": 90, "add": 90}})
    assert refusal(a, other) == (
        f"'{other}' has other probes than '{a}': only in '{a}': task polite, stories; only in '{other}': add\n"
        f"  -> {REMEASURE}"
    )
    what = f"'{tmp_path}/d' has other items of the probe 'copy' than '{a}'"
    items = made.write_run(tmp_path / "d", {"sft": GOOD}, prefix="other", asked="2")
    assert refusal(a, items) == f"{what}\n  -> {REMEASURE}"
    shutil.rmtree(items)
    made.write_run(items, {"sft": GOOD}, prefix="other")
    assert refusal(a, items) == (
        f"{what}\n  -> `forgetting.items: auto` chose another number in each: write the same one into both recipes and "
        "run them again: they are measured, not trained again"
    )
    content = made.write_run(tmp_path / "e", {"sft": GOOD}, asked="2")
    assert refusal(a, content) == (
        f"'{content}' has probes of the same names as '{a}', but of other content\n  -> {REMEASURE}"
    )


def test_as_many_items_as_auto_chose_are_the_same_items(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def written(name: str, items: object, asked: str, chosen: int | None = None) -> Path:
        recipe = {"forgetting": {"probes": "general", "items": items}}
        folder = made.write_run(tmp_path / name, {"sft": GOOD}, recipe=recipe, asked=asked)
        if chosen:
            size = BatterySize(budget=0.1, planned_tokens=1, tokens=1, within=True, items=chosen)
            files.write_json(RunDir(folder).battery_size, size.written())
        return folder

    auto, fixed = (probes.digest(ForgettingKeys(probes="general", items=n)) for n in ("auto", 60))
    assert auto != fixed
    chose = written("c", "auto", auto, 60)
    assert compare([chose, written("d", 60, fixed)]).tables[0].rows
    content = written("e", 60, "of another version")
    assert refusal(chose, content) == (
        f"'{content}' has probes of the same names as '{chose}', but of other content\n  -> {REMEASURE}"
    )
    other = written("f", "auto", auto, 25)
    assert "but of other content" in refusal(written("g", 60, fixed), other)


def test_what_was_measured_counts_and_not_how_the_recipes_say_it(tmp_path: Path) -> None:
    """The same items of the same probes: by the hash that each probe's measurement has."""
    mine = {"general": True, "mine": {"data": "m.jsonl", "metric": "exact"}}

    def written(name: str, items: object) -> Path:
        recipe = {"forgetting": {"probes": mine, "items": items}}
        return made.write_run(tmp_path / name, {"sft": GOOD}, recipe=recipe, asked=name, sha256="1" * 64)

    auto, fixed = written("auto", "auto"), written("fixed", 60)
    assert compare([auto, fixed]).tables[0].rows
    other = made.write_run(tmp_path / "other", {"sft": GOOD}, asked="auto", sha256="2" * 64)
    assert refusal(auto, other) == (
        f"'{other}' has a probe '{next(iter(GOOD))}' of other content than '{auto}'\n  -> {REMEASURE}"
    )
    older = made.write_run(tmp_path / "older", {"sft": GOOD}, asked="fixed")
    assert compare([fixed, older]).tables[0].rows, "what its recipe had asked is all that is known"
    assert "but of other content" in refusal(auto, older)


def test_a_damaged_recipe_is_named(pair: tuple[Path, Path]) -> None:
    (pair[1] / "recipe.yaml").write_text("a: [", encoding="utf-8")
    assert refusal(*pair) == (
        f"{pair[1]}/recipe.yaml: the file is damaged: it is no recipe\n  -> run `align run` again, which rewrites it"
    )


def test_the_command_prints_text_or_json_and_writes_a_page(pair: tuple[Path, Path], tmp_path: Path) -> None:
    html = tmp_path / "compare.html"
    done = runs.align("compare", *map(str, pair), "--html", str(html))
    said = " ".join(done.stdout.split())
    assert "b is worse than a for certain" in said and said.endswith(f"page: {html}")
    assert html.read_text(encoding="utf-8") == page.render(compare(pair))
    printed = runs.align("compare", *map(str, pair), "--json")
    assert RunsCompared.model_validate(json.loads(printed.stdout)) == compare(pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "compare.html"]
    bad = runs.align("compare", *map(str, pair), "--html", str(tmp_path), code=2)
    assert bad.stderr == f"error '{tmp_path}' cannot be written\n  -> choose a file in an existing folder\n"


def test_no_heavy_library_is_imported(pair: tuple[Path, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from align.compare import build, page\n"
        f"page.render(build.compare([Path({str(pair[0])!r}), Path({str(pair[1])!r})]))\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_real_runs_can_be_compared(gated: runs.Gated) -> None:
    """A run that its gate stopped after sft, and the same when it had gone on."""
    found = compare([gated.stopped, gated.run])
    assert [table.stages for table in found.tables] == [("sft", "dpo"), ("sft", "sft")]
    assert {change.delta for row in found.tables[1].rows for change in row.differences} == {0.0}
    assert found.findings[0].outcome in ("better", "worse", "mixed", "unsure")
    assert found.settings["forgetting.on_violation"] == ("stop", "warn")
    record = reading.read(gated.run / "run.json", RunRecord)
    assert found.runs[1].stages == record.order and set(found.training) == set(record.order)
