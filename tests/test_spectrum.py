"""Signal-to-noise ratios against SVDs and a numerical law of noise, the choice by hand, the scan and its cache."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import cache
from io import StringIO
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from transformers import JetMoeConfig, JetMoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from align.errors import AlignError
from align.parameterization import method
from align.policy import targets
from align.spectrum import choose, noise, scan, table
from align.spectrum.analyzer import SpectrumAnalyzer
from align.spectrum.choose import Matrix, Record

ESTIMATORS = ("reference", "mp")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- one matrix, against other ways to compute it


@cache
def law_iqr(beta: float) -> float:
    """From the density of singular values, sqrt((b - s^2) (s^2 - a)) / (pi beta s), summed on a fine grid."""
    low, high = 1 - sqrt(beta), 1 + sqrt(beta)
    edges = np.linspace(low, high, 400_001)
    s = (edges[1:] + edges[:-1]) / 2
    mass = np.cumsum(np.sqrt((high**2 - s**2) * (s**2 - low**2)) / (pi * beta * s)) * (edges[1] - edges[0])
    assert abs(mass[-1] - 1) < 1e-5
    return float(np.interp(0.75, mass, s) - np.interp(0.25, mass, s))


def snr_of_svd(values: torch.Tensor, shape: tuple[int, ...], estimator: str) -> float:
    """The published program's own steps on the singular values, with its 1.349 or with the law of noise."""
    beta = min(shape) / max(shape)
    spread = torch.quantile(values, 0.75) - torch.quantile(values, 0.25)
    limit = spread / (1.349 if estimator == "reference" else law_iqr(beta)) * (1 + sqrt(beta))
    above = values > limit
    below = values[~above].sum() if (~above).any() else torch.tensor(1.0)
    return float(values[above].sum() / below / values.max())


def measured(weight: torch.Tensor, estimator: str) -> noise.Measure:
    return noise.measure(noise.eigenvalues(noise.gram(weight.numpy())), max(weight.shape), estimator)


def weight(rows: int, columns: int, seed: int, spikes: int, strength: float, outlier: float = 0.0) -> torch.Tensor:
    """A bulk of noise with rows of unlike scale, directions that decay above it, and one far above all if asked."""
    made = torch.Generator().manual_seed(seed)
    bulk = torch.randn(rows, columns, generator=made) * torch.empty(rows, 1).uniform_(0.7, 1.3, generator=made)
    left = torch.linalg.qr(torch.randn(rows, spikes, generator=made)).Q
    right = torch.linalg.qr(torch.randn(columns, spikes, generator=made)).Q
    edge = sqrt(rows) + sqrt(columns)
    sizes = edge * (1 + strength / torch.arange(1, spikes + 1))
    if outlier:
        sizes[0] = edge * outlier
    return 0.02 * (bulk + left * sizes @ right.T)


def model_of_24(outlier: float) -> dict[str, torch.Tensor]:
    shapes = {"self_attn.q_proj": (96, 96), "self_attn.v_proj": (48, 96), "mlp.up_proj": (256, 96)}
    return {
        f"model.layers.{layer}.{kind}.weight": weight(*shape, 31 * layer + number, 4 + 5 * layer % 17, 3.0, outlier)
        for layer in range(24)
        for number, (kind, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("outlier", [0.0, 300.0])
def test_ratios_and_choices_are_those_of_an_svd(estimator: str, outlier: float) -> None:
    tensors = model_of_24(outlier)
    records = scan.scan_tensors(tensors.items(), estimator)
    assert len(records) == len(tensors) == 72
    groups: dict[str, list[tuple[float, str]]] = {}
    for record in records:
        w = tensors[f"{record.name}.weight"]
        expected = snr_of_svd(torch.linalg.svdvals(w.double()), record.shape, estimator)
        assert record.snr == pytest.approx(expected, rel=1e-4)
        groups.setdefault(record.name.split(".", 3)[3], []).append((-expected, record.name))
    for threshold, count in ((0.25, 18), (0.5, 12), (0.75, 6)):
        chosen = choose.by_threshold(records, threshold).names
        ranked = {name for group in groups.values() for _, name in sorted(group)[:count]}
        assert len(ranked) == 3 * count and set(chosen) == ranked


@pytest.mark.parametrize("torch_from", [1, 10_000])
@pytest.mark.parametrize("shape", [(300, 300), (100, 350), (60, 2500), (2500, 60), (1, 40)])
def test_eigenvalues_are_squares_of_singular_values(
    shape: tuple[int, int], torch_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # both solvers, both orientations, and more than the 1024 rows or columns that are taken at a time
    monkeypatch.setattr(noise, "TORCH_FROM", torch_from)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = noise.eigenvalues(noise.gram(w.numpy()))
    expected = torch.linalg.svdvals(w.double()).flip(0).numpy() ** 2
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_rows_and_columns_may_be_exchanged() -> None:
    w = weight(60, 200, 3, 5, 2.0)
    for estimator in ESTIMATORS:
        one, other = measured(w, estimator), measured(w.T.contiguous(), estimator)
        assert (one.snr, one.threshold) == pytest.approx((other.snr, other.threshold), rel=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.2857, 0.125])
def test_the_law_of_noise_is_that_of_random_matrices(beta: float) -> None:
    assert noise.mp_iqr(beta) == pytest.approx(law_iqr(beta), rel=1e-4)
    long = 600
    short = round(beta * long)
    drawn = np.random.default_rng(0).standard_normal((4, short, long)) / sqrt(long)
    low, high = np.quantile(np.linalg.svd(drawn, compute_uv=False), [0.25, 0.75])
    assert noise.mp_iqr(short / long) == pytest.approx(high - low, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "share"),  # of noise that the published threshold calls signal, as measured elsewhere
    [((384, 384), 0.237), ((256, 512), 0.649), ((288, 1008), 0.987), ((256, 2048), 1.0)],
)
def test_noise_is_noise_for_mp_and_not_for_the_reference(shape: tuple[int, int], share: float) -> None:
    above: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
    for seed in range(4):
        w = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        values = torch.linalg.svdvals(w.double()).numpy()
        for estimator in ESTIMATORS:
            found = measured(w, estimator)
            above[estimator].append(float(np.mean(values > found.threshold)))
            assert found.degenerate == (above[estimator][-1] == 1.0)
            if found.degenerate:
                assert found.snr == pytest.approx(values.sum() / values.max(), rel=1e-6)  # noise counts as 1.0
            elif estimator == "mp":
                # the upper edge that entries of this deviation have, in the units of the weights
                assert found.threshold == pytest.approx(0.02 * (sqrt(shape[0]) + sqrt(shape[1])), rel=0.05)
    assert np.mean(above["mp"]) < 0.01
    assert np.mean(above["reference"]) == pytest.approx(share, abs=0.02)


def test_a_signal_in_noise_ranks_above_noise() -> None:
    for shape in ((256, 256), (128, 1024)):
        plain = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert measured(weight(*shape, 1, 6, 3.0), "mp").snr > 3 * measured(plain, "mp").snr


def test_matrices_without_spread_are_degenerate_and_finite() -> None:
    for estimator in ESTIMATORS:
        assert measured(torch.zeros(8, 8), estimator) == noise.Measure(0.0, 0.0, True)
        flat = measured(2 * torch.eye(8), estimator)
        assert flat.degenerate and flat.snr == pytest.approx(8.0)  # 16 over 1.0 over 2
        lone = measured(torch.ones(4, 9), estimator)  # one value of 6, and zeros that sum to nothing
        assert lone.degenerate and lone.snr == pytest.approx(1.0, rel=1e-6)


def test_an_unknown_estimator_is_refused() -> None:
    message = "there is no estimator 'mpp'\n  -> write mp or reference"
    for call in (lambda: scan.scan_tensors([], "mpp"), lambda: SpectrumAnalyzer(nn.Linear(2, 2), "mpp")):
        with pytest.raises(AlignError) as raised:
            call()
        assert str(raised.value) == message


# --- what a module is, and the choice


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.1.mlp.gate", ("model.layers", 1, "mlp.gate", -1)),
        ("model.layers.11.mlp.gate_proj", ("model.layers", 11, "mlp.gate_proj", -1)),
        ("transformer.h.3.attn.c_attn", ("transformer.h", 3, "attn.c_attn", -1)),
        ("h.0.mlp.c_fc", ("h", 0, "mlp.c_fc", -1)),
        ("model.layers.0.mlp.experts.7.down_proj", ("model.layers", 0, "mlp.experts.down_proj", 7)),
        ("model.layers.0.mlp.experts.gate_up_proj[3]", ("model.layers", 0, "mlp.experts.gate_up_proj", 3)),
        ("model.layers.0.mlp.0", ("model.layers", 0, "mlp.0", -1)),
        ("lm_head", None),
        ("model.norm", None),
    ],
)
def test_where_a_module_stands(name: str, place: tuple[str, int, str, int] | None) -> None:
    assert choose.locate(name) == place


def record(layer: int, kind: str, snr: float, degenerate: bool = False) -> Record:
    return Record(f"model.layers.{layer}.{kind}", kind, layer, (4, 8), snr, 1.0, degenerate)


HAND = [
    *(record(layer, "mlp.gate", snr) for layer, snr in enumerate([0.1, 0.4, 0.4, 0.3, 0.2])),
    *(record(layer, "mlp.gate_proj", snr, layer == 1) for layer, snr in enumerate([0.2, 9.0, 0.3, 0.1, 0.0])),
]


@pytest.mark.parametrize(
    ("threshold", "gates", "projections"),
    [
        (0.0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (0.2, [1, 2, 3, 4], [0, 2, 3, 4]),  # the degenerate 9.0 is last
        (0.4, [1, 2, 3], [0, 2, 3]),
        (0.8, [1], [2]),  # equal ratios: the lower layer
        (1.0, [1], [2]),  # never none of a type
    ],
)
def test_the_best_of_each_type_are_chosen(threshold: float, gates: list[int], projections: list[int]) -> None:
    choice = choose.by_threshold(HAND, threshold)
    assert choice.names == [
        *(f"model.layers.{layer}.mlp.gate" for layer in gates),
        *(f"model.layers.{layer}.mlp.gate_proj" for layer in projections),
    ]
    assert choice.degenerate == ["model.layers.1.mlp.gate_proj"]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 50])
def test_a_threshold_outside_0_and_1_is_refused(threshold: float) -> None:
    with pytest.raises(AlignError) as raised:
        choose.by_threshold(HAND, threshold)
    assert str(raised.value) == (
        f"snr_threshold is {threshold:g}, which is not between 0 and 1\n  -> 0.75 trains a quarter"
    )


def test_layers_are_taken_whole_and_layer_1_is_not_11() -> None:
    there = [
        Matrix(f"model.layers.{layer}.{kind}", kind, layer, (4, 8))
        for layer in range(12)
        for kind in ("mlp.gate", "mlp.gate_proj")
    ]
    assert choose.by_layers(there, [1]).names == ["model.layers.1.mlp.gate", "model.layers.1.mlp.gate_proj"]
    assert len(choose.by_layers(there, [11, 0]).names) == 4
    for layers, named in (([12], "12"), ([0, -1, 30], "-1, 30")):
        with pytest.raises(AlignError) as raised:
            choose.by_layers(there, layers)
        assert str(raised.value) == (
            f"layers_to_finetune names layer {named}, but the model has layers 0 to 11\n  -> name layers that exist"
        )
    with pytest.raises(AlignError) as raised:
        choose.by_layers(there, [])
    assert str(raised.value) == "layers_to_finetune is empty\n  -> name at least one layer, or write auto"


def test_experts_of_a_layer_are_chosen_as_they_train() -> None:
    """As one; in files two matrices an expert, in memory one. The best mean of its type, not the best expert."""
    ratios = {0: [1.0, 1.0, 5.0], 1: [4.0, 4.0, 4.0], 2: [0.1, 0.1, 0.1], 3: [3.0, 3.0, 3.0]}
    in_files = [
        record(layer, f"mlp.experts.{number}.{kind}", ratio)
        for layer, found in ratios.items()
        for number, ratio in enumerate(found)
        for kind in ("gate_proj", "up_proj", "down_proj")
    ]
    in_files = [dataclasses.replace(one, type=re.sub(r"\d+\.", "", one.type)) for one in in_files]
    in_memory = [
        dataclasses.replace(record(layer, kind, ratio), name=f"model.layers.{layer}.{kind}[{n}]")
        for layer, found in ratios.items()
        for n, ratio in enumerate(found)
        for kind in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    ]
    for records, matrices in ((in_files, 9), (in_memory, 6)):
        names = choose.by_threshold(records, 0.5).names
        assert {int(name.split(".")[2]) for name in names} == {1, 3}
        assert len(names) == 2 * matrices, "every expert of a layer, or none"


@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("block_sparse_moe.gate", True),
        ("mlp.gate.wg", True),
        ("feed_forward.router", True),
        ("mlp.router.classifier", True),
        ("block_sparse_moe.router.layer", True),
        ("mlp.gate_proj", False),
        ("mlp.experts.gate_up_proj", False),
        ("self_attn.gate_proj", False),
        ("mlp.aggregate", False),
    ],
)
def test_what_is_a_router(name: str, router: bool) -> None:
    assert choose.is_router(f"model.layers.3.{name}") is router
    assert choose.is_weight(f"model.layers.3.{name}.weight", (8, 16)) is not router


def test_a_scan_marks_as_many_as_a_run_trains(tmp_path: Path) -> None:
    """Qwen3's experts are apart in files and together in memory."""
    sizes = {"hidden_size": 16, "moe_intermediate_size": 24, "intermediate_size": 24, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 3}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=20, num_experts_per_tok=2, **sizes, **heads))
    model.save_pretrained(tmp_path)
    marked = choose.by_threshold(scan.scan(tmp_path), 0.5).names
    run = method.load("spectrum")
    model = run.apply(model, run.Keys.model_validate({"method": "spectrum"}), "default", tmp_path / "stage")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    chosen = json.loads((tmp_path / "stage/spectrum.json").read_text())["chosen"]
    assert len(trained) == 2 * (4 + 2), "half of four layers: four projections and two tensors of experts in each"
    assert {f"{name}.weight" if "[" not in name else name.partition("[")[0] for name in chosen} == {*trained}
    apart = [name for name in marked if ".experts." in name]
    together = [name for name in chosen if ".experts." in name]
    assert (len(marked) - len(apart), len(apart)) == (8, 2 * 3 * 3)
    assert (len(chosen) - len(together), len(together)) == (8, 2 * 2 * 3)
    assert not [name for name in (*marked, *trained) if choose.is_router(name)]


def test_lora_leaves_routers_alone() -> None:
    """JetMoE's is a linear layer of its own, in the attention too."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "kv_channels": 8}
    heads = {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 2}
    model = JetMoeForCausalLM(JetMoeConfig(vocab_size=20, **sizes, **heads))
    assert any(name.endswith("router.layer") for name, _ in model.named_modules())
    found = targets.find(model)
    assert not [name for name in (*found.modules, *found.parameters) if choose.is_router(name) or name == "layer"]
    assert found.parameters and found.modules == ["kv_proj"]


# --- files


def files(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two shards of a model of 12 layers, some of them with a router and experts, and what is not to be scanned."""
    folder.mkdir(exist_ok=True)
    made = torch.Generator().manual_seed(2)
    tensors = {
        "model.embed_tokens.weight": torch.randn(50, 16, generator=made),
        "lm_head.weight": torch.randn(50, 16, generator=made),
        "model.norm.weight": torch.ones(16),
        "vision.layers.0.fc.weight": torch.randn(16, 16, generator=made),
    }
    for layer in range(12):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = torch.ones(16)
        tensors[f"{at}.mlp.gate_in.weight"] = weight(4, 16, layer, 1, 1.0)
        tensors[f"{at}.mlp.gate.weight"] = weight(4, 16, layer, 1, 1.0)
        tensors[f"{at}.mlp.router.layer.weight"] = weight(4, 16, layer, 1, 1.0)
        tensors[f"{at}.mlp.shared_expert_gate.weight"] = torch.randn(1, 16, generator=made)
        tensors[f"{at}.mlp.gate_proj.weight"] = weight(24, 16, layer, 2, 2.0)
        tensors[f"{at}.mlp.gate_proj.bias"] = torch.ones(24)
        tensors[f"{at}.conv1d.weight"] = torch.randn(16, 1, 4, generator=made)
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.stack([weight(32, 16, n, 3, 2.0) for n in range(5)])
    tensors["model.layers.0.mlp.experts.gate_up_proj_bias"] = torch.ones(5, 32)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    where = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensor for name, tensor in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    return tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_files_are_scanned_by_layer_and_expert(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = files(tmp_path / "model", dtype)
    records = scan.scan(tmp_path / "model")
    experts = [f"model.layers.0.mlp.experts.gate_up_proj[{n}]" for n in range(5)]
    kinds = ("mlp.gate_in", "mlp.gate_proj")
    rest = [f"model.layers.{layer}.{kind}" for layer in range(1, 12) for kind in kinds]
    assert [r.name for r in records] == [*experts, *(f"model.layers.0.{kind}" for kind in kinds), *rest]
    assert {r.type for r in records} == {"mlp.gate_in", "mlp.gate_proj", "mlp.experts.gate_up_proj"}
    assert records[2].type == "mlp.experts.gate_up_proj" and records[2].shape == (32, 16)
    third = tensors["model.layers.0.mlp.experts.gate_up_proj"][2].double()
    assert records[2].snr == pytest.approx(snr_of_svd(torch.linalg.svdvals(third), (32, 16), "mp"), rel=1e-4)
    last = tensors["model.layers.11.mlp.gate_proj.weight"].double()
    assert records[-1].snr == pytest.approx(snr_of_svd(torch.linalg.svdvals(last), (24, 16), "mp"), rel=1e-4)
    assert [Matrix(r.name, r.type, r.layer, r.shape) for r in records] == scan.matrices(tmp_path / "model")


def test_processes_find_the_same_and_report_each_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "model")
    alone = scan.scan(tmp_path / "model", "reference")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(scan, "IN_PROCESS", 0.0)
    monkeypatch.setattr(scan, "measure", None)  # nothing is measured in this process
    told: list[tuple[int, int]] = []
    together = scan.scan(tmp_path / "model", "reference", workers=2, progress=lambda *done: told.append(done))
    assert together == alone
    assert told == [(number, 29) for number in range(1, 30)]


CACHED = """
import json, sys, time
from pathlib import Path
from align.spectrum import noise, scan
if sys.argv[2] == "cached":
    noise.measure = noise.gram = noise.eigenvalues = None
records = scan.scan(Path(sys.argv[1]))
heavy = sorted({"torch", "numpy", "scipy"} & set(sys.modules))
print(json.dumps([[r.snr for r in records], heavy, time.process_time()]))
"""


def test_a_known_model_is_answered_without_computing_and_without_torch(tmp_path: Path) -> None:
    def run(how: str) -> tuple[list[float], list[str], float]:
        command = [sys.executable, "-c", CACHED, str(tmp_path / "model"), how]
        limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=True)
        snr, heavy, seconds = json.loads(done.stdout)
        return snr, heavy, seconds

    files(tmp_path / "model", torch.bfloat16)
    first, heavy, _ = run("new")
    assert heavy == ["numpy", "scipy"]
    again, heavy, seconds = run("cached")
    assert again == first and heavy == [] and seconds <= 1.0


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/align/spectrum/tensors").rglob("*.json"))


def test_what_is_damaged_in_the_cache_is_measured_again(tmp_path: Path) -> None:
    files(tmp_path / "model")
    first = scan.scan(tmp_path / "model")
    assert len(entries(tmp_path)) == 25  # 12 layers of two, and one tensor of experts
    whole = {path: path.read_text(encoding="utf-8") for path in entries(tmp_path)}
    torn, changed, foreign = entries(tmp_path)[:3]
    torn.write_text(whole[torn][:40], encoding="utf-8")
    kept = json.loads(whole[changed])
    kept["measures"][0]["snr"] += 1.0
    changed.write_text(json.dumps(kept), encoding="utf-8")
    foreign.write_text("[]", encoding="utf-8")
    told: list[tuple[int, int]] = []
    assert scan.scan(tmp_path / "model", progress=lambda *done: told.append(done)) == first
    assert told and all(total in range(3, 12) for _, total in told)  # a tensor of experts counts five
    assert {path: path.read_text(encoding="utf-8") for path in entries(tmp_path)} == whole


def test_another_content_is_another_entry(tmp_path: Path) -> None:
    files(tmp_path / "model", torch.float32)
    first = scan.scan(tmp_path / "model")
    assert scan.scan(tmp_path / "model", "reference") != first
    tensors = files(tmp_path / "model", torch.bfloat16)
    second = scan.scan(tmp_path / "model")
    assert [r.snr for r in second] != [r.snr for r in first]
    assert second == scan.scan_tensors((n, t) for n, t in tensors.items() if not n.startswith("vision"))


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "model")
    first = scan.scan(tmp_path / "model")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert scan.scan(tmp_path / "model") == first


def test_a_convolution_of_gpt2_has_the_figures_of_its_transpose() -> None:
    w = weight(48, 16, 1, 3, 2.0)
    (straight,) = scan.scan_tensors([("h.1.attn.c_attn.weight", w)])
    (turned,) = scan.scan_tensors([("h.1.attn.c_attn.weight", w.T.contiguous())])
    assert straight.shape == (48, 16) and turned.shape == (16, 48)
    assert turned.snr == pytest.approx(straight.snr, rel=1e-9)


def faulty(folder: Path, extra: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": weight(16, 24, 0, 2, 1.0), **extra}, folder / "model.safetensors")
    with pytest.raises(AlignError) as raised:
        scan.scan(folder)
    return str(raised.value)


def test_a_packed_model_is_refused(tmp_path: Path) -> None:
    packed = {
        f"model.layers.{layer}.mlp.down_proj.weight{end}": tensor
        for layer in range(2)
        for end, tensor in {
            "": torch.zeros(192, 1, dtype=torch.uint8),
            ".absmax": torch.zeros(6, dtype=torch.uint8),
            ".quant_map": torch.zeros(16),
            ".quant_state.bitsandbytes__nf4": torch.zeros(99, dtype=torch.uint8),
        }.items()
    }
    path = tmp_path / "packed/model.safetensors"
    assert faulty(tmp_path / "packed", packed) == (
        f"the tensor 'model.layers.0.mlp.down_proj.weight' and 1 more of '{path}' is packed (U8), so it cannot "
        "be ranked by singular values\n  -> give the original, unquantised model"
    )
    gptq = {"model.layers.0.mlp.down_proj.qweight": torch.zeros(2, 16, dtype=torch.int32)}
    assert faulty(tmp_path / "gptq", gptq) == (
        f"the tensor 'model.layers.0.mlp.down_proj.qweight' of '{tmp_path}/gptq/model.safetensors' is packed (I32), so "
        "it cannot be ranked by singular values\n  -> give the original, unquantised model"
    )
    with pytest.raises(AlignError) as raised:
        scan.scan_tensors([("model.layers.0.mlp.up_proj.weight", torch.zeros(8, 1, dtype=torch.uint8))])
    assert str(raised.value) == (
        "the tensor 'model.layers.0.mlp.up_proj.weight' of the model is packed (uint8), so it cannot be ranked by "
        "singular values\n  -> give the original, unquantised model"
    )


@pytest.mark.parametrize("limit", [0.0, 2e10])
def test_nan_is_refused_in_this_process_and_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    monkeypatch.setattr(scan, "IN_PROCESS", limit)
    broken = weight(16, 24, 0, 2, 1.0)
    broken[3, 7] = float("nan")
    assert faulty(tmp_path / "model", {"model.layers.1.mlp.up_proj.weight": broken}) == (
        f"the weight 'model.layers.1.mlp.up_proj' of '{tmp_path}/model/model.safetensors' contains NaN or infinite "
        "values\n  -> copy or download the model again, or train from a checkpoint before it diverged"
    )


def test_files_that_cannot_be_scanned_are_refused(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(AlignError) as raised:
            scan.scan(folder)
        return str(raised.value)

    path = tmp_path / "model.safetensors"
    assert message(tmp_path) == (
        f"'{path}' cannot be read (No such file or directory)\n"
        "  -> name a folder with model.safetensors, or with all shards of its index"
    )
    save_file({"lm_head.weight": torch.ones(4, 4)}, path)
    assert message(tmp_path) == (
        f"'{tmp_path}' has no weight matrix in a transformer layer\n  -> name a folder of a language model"
    )
    save_file({"model.layers.0.up_proj.weight": torch.ones(40, 40)}, path)
    whole = path.read_bytes()
    torn = f"'{path}' is damaged, or not a safetensors file\n  -> copy or download the model again"
    for content in (whole[:-100], whole[:30], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        assert message(tmp_path) == torn
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{", encoding="utf-8")
    assert message(tmp_path) == f"'{index}' is damaged: it has no weight_map\n  -> copy or download the model again"


# --- a loaded model


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.gate_in, self.gate_proj, self.norm = nn.Linear(16, 4), nn.Linear(16, 24), nn.LayerNorm(16)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.stack([weight(32, 16, seed + n, 3, 2.0) for n in range(2)]))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.lm_head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.layers = nn.ModuleList(Block(10 * layer) for layer in range(12))


def test_the_analyzer_freezes_all_others() -> None:
    model = Model()
    analyzer = SpectrumAnalyzer(model)
    assert len(analyzer.snr()) == 12 * 4 and analyzer.snr() is analyzer.snr()
    names = analyzer.trainable(0.75)
    assert names == choose.by_threshold(analyzer.snr(), 0.75).names and len(names) == 3 + 3 + 6

    analyzer.freeze_others(["layers.1.gate_in", "layers.1.gate_proj", "layers.3.experts.up[1]"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"layers.1.gate_in.weight", "layers.1.gate_proj.weight", "layers.3.experts.up"}

    with pytest.raises(AlignError) as raised:
        analyzer.freeze_others(["layers.2.gate_in", "layers.12.gate_in"])
    assert str(raised.value) == "the model has no module 'layers.12.gate_in'\n  -> take names of a scan of this model"
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_model_in_4_bits_is_measured_dequantised_and_not_trained() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    plain = weight(64, 128, 1, 4, 3.0)
    layer = bnb.nn.Linear4bit(128, 64, bias=False, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(plain, requires_grad=False, quant_type="nf4").to("cpu")
    assert layer.weight.dtype == torch.uint8
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"up": layer})])
    analyzer = SpectrumAnalyzer(model)
    (found,) = analyzer.snr()
    (exact,) = scan.scan_tensors([("layers.0.up.weight", plain)])
    assert found.shape == (64, 128) and found.snr == pytest.approx(exact.snr, rel=0.05) and found.snr != exact.snr
    with pytest.raises(AlignError) as raised:
        analyzer.freeze_others(["layers.0.up"])
    assert str(raised.value) == (
        "the weight of 'layers.0.up' is quantised and cannot be trained\n  -> load the model unquantised"
    )


# --- for people and programs


def test_the_table_shows_what_is_chosen_and_what_is_degenerate() -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(table.snr_table(HAND, "reference", 0.8))
    lines = [line.split() for line in console.export_text().splitlines()]
    shown = [line for line in lines if line and "─" not in line[0]]
    assert shown[:7] == [
        ["SNR,", "reference"],
        ["layer", "gate", "gate_proj"],
        ["0", "0.1", "0.2"],
        ["1", "0.4", "*", "9?"],
        ["2", "0.4", "0.3", "*"],
        ["3", "0.3", "0.1"],
        ["4", "0.2", "0"],
    ]
    legend = " ".join(word for line in shown[7:] for word in line)
    assert legend == "* trained at snr_threshold 0.8: 2 of 10; ? degenerate, ranked last: 1"


def test_json_holds_every_module() -> None:
    given = table.spectrum(HAND[:1], "mp").written()
    module = {"name": "model.layers.0.mlp.gate", "type": "mlp.gate", "shape": [4, 8]}
    assert given == {"estimator": "mp", "modules": [{**module, "snr": 0.1, "threshold": 1.0, "degenerate": False}]}
    assert json.loads(json.dumps(given)) == given
