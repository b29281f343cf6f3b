"""The sections of the report on how far a policy is from the base, and the line of the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

import report_fixture as made
import runs
from align import report
from align.forgetting.distances import Drift, KlEstimate, Moved, TaskKl
from align.forgetting.table import Forgetting
from align.report.distance_page import distances, in_a_line
from align.report.records import load
from test_report import shown, words

OWN = KlEstimate(kl=0.4123, ci95=(0.35, 0.47), n=64, tokens=900)
DATA = KlEstimate(kl=1.25, ci95=(1.0, None), n=1, tokens=12)
KL = {
    "sft": TaskKl(prompts="64 prompts of the evaluation data", own_answers=OWN, data_answers=DATA, answer_tokens=32),
    "dpo": TaskKl(undefined="there is too little free memory to load the base beside the policy"),
}
LAYERS = tuple(Moved(name=f"layers.{n}", relative=0.01 * (n + 1), update=n + 1.0, weight=100.0) for n in range(14))
DRIFT = {
    "sft": Drift(
        all=Moved(name="all weights", relative=0.0732, update=7.32, weight=100.0),
        layers=(*LAYERS, Moved(name="embed", relative=0.0, update=0.0, weight=3.0)),
        modules=(Moved(name="layers.13.<b>q", relative=0.2, update=1.0, weight=5.0),),
        note="rounding is counted too",
    ),
    "dpo": Drift(undefined="a learnt prompt changes no weight of the base"),
}


@pytest.fixture
def run_dir(gated: runs.Gated, tmp_path: Path) -> Path:
    found = made.write_run(gated, tmp_path / "runs" / "dpo_qlora")
    limits = {**load(found).forgetting.thresholds, "max_kl": 0.3}  # type: ignore[union-attr]
    kl = {stage: one.against(0.3) for stage, one in KL.items()}
    made.change(found / "forgetting.json", Forgetting, task_kl=kl, drift=DRIFT, thresholds=limits)
    return found


def test_the_page_shows_the_kl_with_its_verdict_beside_the_drop(run_dir: Path) -> None:
    text = words(report.write(run_dir)[0].read_text(encoding="utf-8"))
    section = text.partition("KL to the base KL(base || policy)")[2].partition("Layers that moved most")[0]
    mean = load(run_dir).forgetting.mean  # type: ignore[union-attr]
    drops = [f"{mean[stage]['all'].delta:+.3f}" for stage in ("sft", "dpo")]
    assert "The limit is 0.3 nats ( max_kl )." in section
    assert (
        f"sft 0.412 [0.350, 0.470] 1.250 [1.000, inf] {drops[0]} 64 prompts of the evaluation data FORGOT "
        f"dpo n/a n/a n/a n/a {drops[1]} there is too little free memory to load the base beside the policy"
    ) in section
    assert "KL to the base sft 0.412 dpo n/a" in text, "under the matrix"
    assert "max_kl 0.3" in text.partition("Limits of the recipe")[2]


def test_the_page_shows_the_layers_that_moved_most(run_dir: Path) -> None:
    page = report.write(run_dir)[0].read_text(encoding="utf-8")
    section = words(page).partition("Layers that moved most")[2]
    assert "After sft 7.32 % Layer Moved by Drawn layers.13 14 % layers.12 13 % layers.11 12 %" in section
    assert "layers.2 3 % 3 more moved less, or not at all. Modules that moved most: layers.13.<b>q 20 %." in section
    assert "rounding is counted too After dpo n/a a learnt prompt changes no weight of the base" in section
    bars = page.partition('id="drift"')[2].partition("</section>")[0]
    assert bars.count('class="moved"') == 12 and 'x2="190.0"' in bars and 'x2="40.7"' in bars  # 190 x 3 / 14


def test_markdown_has_the_same(run_dir: Path) -> None:
    text = report.write(run_dir)[1].read_text(encoding="utf-8")
    assert "| sft | 0.412 | [0.350, 0.470] | 1.250 | [1.000, inf] |" in text and "| FORGOT |" in text
    assert "- after sft 7.32 %: layers.13 14 %, layers.12 13 %," in text
    assert "and 3 more less or not at all (rounding is counted too)" in text
    assert "- after dpo n/a (a learnt prompt changes no weight of the base)" in text


def test_the_terminal_has_one_line(run_dir: Path) -> None:
    line = "KL to the base on prompts of the task, nats per token: sft 0.412"
    assert shown(run_dir, 120).splitlines().count(line) == 1


def test_a_run_of_an_older_align_has_neither_section(gated: runs.Gated, tmp_path: Path) -> None:
    folder = made.write_run(gated, tmp_path / "run")
    old = made.change(folder / "forgetting.json", Forgetting, task_kl={}, drift={})
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(folder))
    assert in_a_line(old) == "" and distances(old).kl == distances(old).drifts == ()
    for text in (words(page), markdown):
        assert "KL to the base" not in text and "Layers that moved" not in text


def test_a_real_run_has_both(gated: runs.Gated) -> None:
    found = load(gated.run).forgetting
    assert found is not None and set(found.task_kl) == set(found.drift) == {"sft", "dpo"}
    for stage in ("sft", "dpo"):
        own, drift = found.task_kl[stage].own_answers, found.drift[stage]
        assert own is not None and own.kl is not None and own.kl > 0 and drift.all is not None
        assert drift.undefined is None and len(drift.modules) == 10 and drift.layers[0].name == "model.layers.0"
    assert found.task_kl["sft"].prompts == "16 prompts of the evaluation data"
