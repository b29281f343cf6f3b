"""What quantising a base costs it, as a figure and as a warning."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.forgetting import quantization
from align.forgetting.bench import Bench
from align.forgetting.probes import Exact, Question, Texts
from align.forgetting.records import QuantizationCost
from align.lab import MODEL_DIR
from align.lab import probes as lab
from align.report.page import build
from align.report.records import load
from align.run_folder.paths import RunDir
from models import BASE, QLORA, Stages, lab_tokenizer

COST = QuantizationCost(before=22.11, after=28.74, ratio=1.30, ci95=(1.2481, 1.3549), n=40)


def test_the_cost_is_the_ratio_of_the_perplexities_over_all_texts() -> None:
    """Two texts by hand: 3 nats a token each before; after 3.2 and 3.4."""
    found = quantization.compare([(30.0, 10), (60.0, 20)], [(32.0, 10), (68.0, 20)])
    assert found.before == pytest.approx(math.exp(3))
    assert found.after == pytest.approx(math.exp(100 / 30))
    assert found.ratio == pytest.approx(math.exp(10 / 30)) and found.n == 2
    assert found.ci95 is not None and found.ci95[0] < found.ratio < found.ci95[1]


def test_a_cost_that_is_surely_there_and_large_is_a_warning() -> None:
    assert quantization.warning(COST) == (
        "quantising the base costs before anything is trained: perplexity of running text 22.11 to 28.74, x1.30 (95 % "
        "interval x1.25 to x1.35, 40 texts); every change of this run is counted from the quantised base; "
        "`method: lora` leaves the base unquantised, if it fits in memory"
    )
    assert quantization.warning(COST.but(ratio=1.1, ci95=(1.05, 1.15))) is None
    assert quantization.warning(COST.but(ci95=(0.9, 1.9))) is None, "too few texts to be sure"
    assert quantization.warning(COST.but(ratio=None)) is None


def test_only_running_text_is_asked() -> None:
    probes = [
        Texts("stories", {"gate": ["a b"], "report": ["c d"]}),
        Exact("same", "skill", {"gate": [Question("1", "Why?")], "report": []}),
    ]
    assert quantization.texts(probes) == ["a b", "c d"]


def test_a_worse_model_costs_more_than_the_same() -> None:
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    shaken, texts = copy.deepcopy(base), lab.stories("report")[:20]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    whole, same, worse = (
        quantization.measured(Bench(model, lab_tokenizer(), autocast=False), texts) for model in (base, base, shaken)
    )
    assert quantization.compare(whole, same).ratio == 1
    found = quantization.compare(whole, worse)
    assert found.ratio is not None and found.ratio > 1.1 and quantization.warning(found) is not None
    assert found.ci95 is not None and found.ci95[0] is not None and found.ci95[0] > 1


def test_a_run_that_quantises_its_base_measures_that_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "stories.txt"
    texts.write_text("\n\n".join(lab.stories("report")[:30]))
    monkeypatch.setattr(quantization, "warning", lambda found: f"told: {found.n}")
    stages = Stages(RunDir(tmp_path / "run"))
    ticket = stages.ticket("sft", "sft", BASE, QLORA)
    ticket.probes = {"stories": {"data": str(texts), "metric": "perplexity"}}
    ticket.measure_base, ticket.warnings = True, ["2 of 28 rows are left"]
    stages.execute(ticket)
    found = json.loads(stages.run.quantization.read_text())
    assert 0.9 < found["ratio"] < 1.1 and found["n"] == 30 and found["ci95"][0] <= found["ratio"] <= found["ci95"][1]
    assert stages.outcomes["sft"].warnings[:2] == ["2 of 28 rows are left", "told: 30"]
    told = [json.loads(line) for line in (stages.run.stage("sft").progress).read_text().splitlines()]
    assert list(dict.fromkeys(entry.get("at") or entry["warning"] for entry in told)) == [  # again, where it takes long
        "measuring the base on 1 probe, before anything is trained", "told: 30", "loading", "measuring the policy",
    ]  # fmt: skip


def test_the_cost_stands_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1, "name": "q"}')
    (tmp_path / "base" / "measurements").mkdir(parents=True)
    (tmp_path / "base" / "measurements" / "quantization.json").write_text(json.dumps(COST.written()))
    page = build(load(tmp_path))
    assert [fact.value for fact in page.facts if fact.label == "Cost of quantising"] == [
        "perplexity x1.30 [x1.25, x1.35]"
    ]
