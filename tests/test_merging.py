"""A merge is judged by what its precision costs: fine, worse or broken; and a tied head stays as it was trained."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from align.errors import AlignError
from align.lab import MODEL_DIR, data
from align.merging import fidelity, into_base
from align.merging.dither import dithered
from align.merging.verdict import Merge
from align.policy import load as loading
from align.policy import stack
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from models import BASE, LORA, QLORA, Stages, at_strength, lab_tokenizer, settings, tensors, tiny_llama

DORA = settings("lora", lora={"r": 8, "alpha": 16, "use_dora": True})
METHODS = {"lora": LORA, "qlora": QLORA, "dora": DORA}
TIED = {
    "embedding": settings("lora", lora={"r": 4, "alpha": 16, "target_modules": ["embed_tokens", "q_proj"]}),
    "whole embedding": settings("lora", lora={"r": 4, "modules_to_save": ["embed_tokens"]}),
    "whole head": settings("lora", lora={"r": 4, "modules_to_save": ["lm_head"]}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stages, dict[str, Policy]]:
    """A policy of each method, eight steps on the lab model in bfloat16."""
    at = Stages(RunDir(tmp_path_factory.mktemp("merging")))
    found = {
        name: at.execute(at.ticket(name.replace(" ", "_"), "sft", BASE, method, max_steps=8))
        for name, method in (METHODS | TIED).items()
    }
    return at, found


def prompts(n: int = 16) -> list[list[int]]:
    rows = data.rows("lab/helpdesk", n=n)
    return [lab_tokenizer().apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows]


def held(policy: Policy, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    return loading.load_weights(str(MODEL_DIR), {}, dtype, policy.quantization)


def merge(at: Stages, policy: Policy, dtype: torch.dtype) -> tuple[PreTrainedModel, Merge]:
    return into_base.merge(held(policy), policy.adapters, at.run.root, prompts(), dtype)


# Fine ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_merges_within_what_the_precision_costs(
    trained: tuple[Stages, dict[str, Policy]], name: str, dtype: torch.dtype
) -> None:
    at, policies = trained
    whole, made = merge(at, policies[name], dtype)
    assert made.verdict == "fine" and made.warning is None and made.rows == 16 and made.positions > 400
    assert made.kl <= max(2 * made.precision_kl, 1e-5) < 1e-2 < made.moved_kl
    assert (made.precision_kl == 0) == (dtype == torch.float32)
    assert {parameter.dtype for parameter in whole.parameters()} == {dtype}


def test_the_figures_are_those_of_the_two_models(trained: tuple[Stages, dict[str, Policy]]) -> None:
    """Beside the definition, written out over the whole rows."""
    at, policies = trained
    whole, made = merge(at, policies["lora"], torch.bfloat16)
    model = stack.put(held(policies["lora"], torch.float32), policies["lora"].adapters, at.run.root).eval()
    base, low = held(BASE, torch.float32), held(BASE, torch.bfloat16)
    sums: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for ids in prompts():
            row, expected = torch.tensor([ids]), torch.tensor(ids[1:])
            p, q, b, n = (
                one(input_ids=row).logits[0, :-1].double().log_softmax(-1) for one in (model, whole.float(), base, low)
            )
            for key, one, other in (("kl", p, q), ("moved_kl", p, b), ("precision_kl", b, n)):
                sums.setdefault(key, []).append((one.exp() * (one - other)).sum(-1))
            for key, one in (("loss", p), ("merged_loss", q), ("base_loss", b)):
                sums.setdefault(key, []).append(-one.gather(1, expected[:, None])[:, 0])
            sums.setdefault("agreement", []).append((p.argmax(-1) == q.argmax(-1)).double())
    assert max(map(len, prompts())) - 1 <= fidelity.SCORED, "else only the last of a row are compared"
    for key, found in sums.items():
        assert getattr(made, key) == pytest.approx(float(torch.cat(found).mean()), rel=1e-3, abs=1e-7), key


# Broken ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5, 2.0, -1.0])
def test_a_wrong_scale_is_refused(
    trained: tuple[Stages, dict[str, Policy]], monkeypatch: pytest.MonkeyPatch, strength: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(into_base, "merged", at_strength(strength))
    with pytest.raises(AlignError, match=r"^the merged model differs from the adapted one: KL "):
        merge(trained[0], trained[1]["lora"], dtype)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_a_wrong_base_is_refused(
    trained: tuple[Stages, dict[str, Policy]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    exact = into_base.merged

    def elsewhere(base: Any, *rest: Any) -> PreTrainedModel:
        other = held(BASE, torch.float32)
        layers = other.model.layers
        layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp
        return exact(other, *rest)

    monkeypatch.setattr(into_base, "merged", elsewhere)
    with pytest.raises(AlignError, match=r"^the merged model differs from the adapted one: KL "):
        merge(trained[0], trained[1][name], torch.bfloat16)


FINE = Merge(["sft"], "bfloat16", 16, 900, 0.001, 0.0018, 0.001, 0.05, 2.0, 2.002, 2.1, 0.97)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "fine"),
        ({"kl": 0.0036}, "fine"),
        ({"kl": 0.004}, "worse"),
        ({"kl": 0.006}, "broken"),
        ({"kl": 0.04, "moved_kl": 0.5}, "worse"),
        ({"kl": 9e-6, "precision_kl": 0.0, "moved_kl": 1e-4}, "fine"),
        ({"kl": 2e-4, "precision_kl": 0.0, "moved_kl": 1e-3}, "broken"),
        ({"kl": 0.001, "moved_kl": 0.001}, "fine"),  # a tiny update, lost in rounding like everything of its size
        ({"kl": float("nan")}, "broken"),
        ({"merged_loss": 2.03}, "worse"),  # 0.03 of the 0.1 that was learnt
        ({"merged_loss": 2.02}, "fine"),
        ({"merged_loss": 2.009, "base_loss": 2.001}, "fine"),
        ({"merged_loss": 2.03, "precision_loss": 0.02}, "fine"),
        ({"merged_loss": 1.5}, "fine"),
    ],
)
def test_the_verdict(changes: dict[str, float], verdict: str) -> None:
    assert dataclasses.replace(FINE, **changes).verdict == verdict


def test_what_a_warning_says() -> None:
    worse = dataclasses.replace(FINE, kl=0.0042, adapters=["sft", "dpo"])
    assert worse.warning == (
        "merging sft, dpo into bfloat16 weights lost more than the dtype explains: KL 0.0042 nats per token from "
        "the adapted model (bfloat16 itself costs the base 0.0018), loss 2.0000 -> 2.0020, of the base 2.1000"
    )
    exact = dataclasses.replace(FINE, dtype="float32", precision_kl=0.0, kl=1.23e-10)
    assert (
        exact.figures == "KL 1.2e-10 nats per token from the adapted model, loss 2.0000 -> 2.0020, of the base 2.1000"
    )
    scores = dataclasses.replace(FINE, loss=None, merged_loss=None, base_loss=None, kl=0.0002, precision_kl=0.0008)
    assert scores.figures == (
        "scores differ from the adapted model's by 0.02 (root mean square, where bfloat16 itself costs 0.04)"
    )


# Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_precision_for_a_while_leaves_every_weight_as_it_was(dtype: torch.dtype) -> None:
    model = tiny_llama()
    model.model.norm.weight.data.fill_(1.5)  # which the precision holds exactly
    before = tensors(model)
    ids = torch.tensor([[5, 6, 7]])
    with fidelity.rounded(model, dtype), torch.no_grad():
        expected = copy.deepcopy(model)(input_ids=ids).logits
        assert {parameter.dtype for parameter in model.parameters()} == {dtype} == {expected.dtype}
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(model).items())


def test_rows_are_cut_to_what_the_model_reads_and_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    text = fidelity.Text.of(model, [[1], [5, 6, 7], list(range(400))])
    assert text.rows == [[5, 6, 7], list(range(256))] and text.scored == fidelity.SCORED
    assert text.targets().tolist() == [6, 7, *range(160, 256)]
    assert fidelity.read(model, text).shape == (98, 800)
    monkeypatch.setattr(fidelity, "LOGITS", 800 * 2 * 10)
    assert fidelity.Text.of(model, text.rows).scored == 10


# Tied embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIED)
def test_a_head_that_shares_the_embedding_s_weights_is_as_it_was_trained(
    trained: tuple[Stages, dict[str, Policy]], tmp_path: Path, name: str
) -> None:
    at, policies = trained
    whole, made = merge(at, policies[name], torch.float32)
    assert made.kl < 1e-8 < 1e-3 < made.moved_kl
    assert whole.config.tie_word_embeddings is False
    whole.save_pretrained(tmp_path)
    loaded, model = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), adapted(at, policies[name])
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    for one, other in zip(logits(loaded), logits(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_head_stays_tied_where_no_adapter_acts_on_it(
    trained: tuple[Stages, dict[str, Policy]], tmp_path: Path
) -> None:
    whole, _ = merge(trained[0], trained[1]["lora"], torch.float32)
    assert whole.config.tie_word_embeddings is True and whole.lm_head.weight is whole.model.embed_tokens.weight
    whole.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def adapted(at: Stages, policy: Policy) -> Any:
    return stack.put(held(policy, torch.float32), policy.adapters, at.run.root).eval()


@torch.no_grad()
def logits(model: Any) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([ids])).logits for ids in itertools.islice(prompts(), 4)]


# Rounding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_by_chance_is_right_on_average(dtype: torch.dtype, sign: int) -> None:
    values = torch.tensor([1.0, 1.5, 0.3, 3e-3, 40.0]).to(dtype)
    step = torch.tensor([torch.finfo(dtype).eps * 2.0 ** torch.tensor(float(value)).log2().floor() for value in values])
    for share in (0.0, 0.1, 0.5, 0.9):
        exact = sign * (values.float() + share * step).expand(20_000, -1)
        found = dithered(exact, dtype, torch.Generator().manual_seed(1)).float()
        low, high = sign * values.float(), sign * (values.float() + step)
        assert ((found == low) | (found == high)).all()
        assert torch.allclose((found == high).float().mean(0), torch.full((5,), share), atol=0.015)


def test_what_cannot_be_rounded_by_chance_is_rounded_as_usual() -> None:
    odd = torch.tensor([0.0, 1e-41, float("inf"), 7e4, 65519.0, -65519.0, float("nan")])
    for seed in range(20):
        found = dithered(odd, torch.float16, torch.Generator().manual_seed(seed))
        assert torch.equal(found.nan_to_num(-1.0), odd.to(torch.float16).nan_to_num(-1.0))


def test_a_small_update_outlives_a_merge_into_bfloat16(
    trained: tuple[Stages, dict[str, Policy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of its entries are below half a step; rounded to the nearest they are gone."""
    at, policies = trained
    small = at_strength(0.02)
    exact = small(held(policies["lora"]), policies["lora"].adapters, at.run.root, torch.float32)
    made = {True: copy.deepcopy(exact), False: copy.deepcopy(exact)}
    on_grid = into_base._held_by(loading.cast(held(BASE), torch.float32), torch.bfloat16)
    found = {
        chance: into_base._round(model, torch.bfloat16, on_grid if chance else set()).float()
        for chance, model in made.items()
    }
    text = fidelity.Text.of(exact, prompts())
    wanted, base = fidelity.read(exact, text), fidelity.read(held(BASE, torch.float32), text)
    lost = {chance: fidelity.divergence(wanted, fidelity.read(model, text)) for chance, model in found.items()}
    assert lost[True] < lost[False] / 2 and lost[True] < fidelity.divergence(wanted, base) / 2
    again = into_base._round(copy.deepcopy(exact), torch.bfloat16, on_grid).float()
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), found[True].parameters(), strict=True))
