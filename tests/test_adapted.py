"""Named adapters on one base, beside a direct computation of the weights: switched, stacked, merged, combined."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from align.adapters.adapted import Adapted, Counts
from align.errors import AlignError
from align.lab import MODEL_DIR
from align.policy import stack
from align.run_folder.records import Adapter
from models import tensors, tiny_llama

IDS = torch.arange(5, 29).view(2, 12)
TWO = {"lora": {"r": 4, "alpha": 6}}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base() -> LlamaForCausalLM:
    return tiny_llama().eval()


@pytest.fixture(scope="module")
def quantized() -> Iterator[Any]:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    yield AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, quantization_config=config).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def spread(model: Adapted, *names: str, std: float = 0.2) -> None:
    """Adapters as if they were trained, each with values of its own."""
    for number, name in enumerate(names):
        torch.manual_seed(number + 7)
        for parameter in model.parameters(name).values():
            torch.nn.init.normal_(parameter, std=std)


def flags(model: Adapted) -> dict[str, bool]:
    return {f"{n}/{key}": p.requires_grad for n in model.names for key, p in model.parameters(n).items()}


@contextmanager
def refused(what: str, remedy: str) -> Iterator[None]:
    with pytest.raises(AlignError) as caught:
        yield
    assert str(caught.value) == f"{what}\n  -> {remedy}"


def update(model: Adapted, name: str, scale: float) -> dict[str, torch.Tensor]:
    """alpha / r * B A of each module, from the parameters alone."""
    found = model.parameters(name)
    modules = {key.partition(".lora_")[0] for key in found}
    return {
        module: scale * found[f"{module}.lora_B.{name}.weight"] @ found[f"{module}.lora_A.{name}.weight"]
        for module in modules
    }


@torch.no_grad()
def computed(*terms: tuple[float, dict[str, torch.Tensor]]) -> torch.Tensor:
    """The logits of W + sum_i w_i * update_i, on a fresh base without PEFT."""
    plain = tiny_llama().eval()
    for weight, change in terms:
        for module, delta in change.items():
            plain.get_submodule(module).weight += weight * delta
    return logits(plain)


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    """Two LoRA adapters of other ranks, scales and modules, which plain PEFT made and saved in runs of their own."""
    folders = {}
    for seed, (name, settings) in enumerate({
        "sft": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]},
        "dpo": {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
    }.items()):  # fmt: skip
        made = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **settings))
        torch.manual_seed(seed)
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        made.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    return folders


@pytest.fixture
def loaded(base: LlamaForCausalLM, saved: dict[str, Path]) -> Adapted:
    model = Adapted(base)
    for name, folder in saved.items():
        model.load(folder, name)
    return model


# Switching and stacking ------------------------------------------------------------------------------------------


def test_two_adapters_of_other_runs_switch_and_stack(loaded: Adapted, saved: dict[str, Path]) -> None:
    bare = logits(tiny_llama().eval())
    assert loaded.names == ("sft", "dpo") and loaded.active == () and loaded.model is loaded.base
    assert torch.equal(logits(loaded), bare), "what is loaded does not act yet"
    sft, dpo = update(loaded, "sft", 6 / 3), update(loaded, "dpo", 7 / 2)
    for chosen, terms in {
        ("sft",): [(1, sft)],
        ("dpo",): [(1, dpo)],
        ("sft", "dpo"): [(1, sft), (1, dpo)],
        ("dpo", "sft"): [(1, dpo), (1, sft)],
    }.items():
        loaded.switch(*chosen)
        assert loaded.active == chosen
        close(logits(loaded), computed(*terms))
        assert not torch.allclose(logits(loaded), bare, atol=1e-3)
    for name, folder in saved.items():
        loaded.switch(name)
        assert torch.equal(logits(loaded), logits(PeftModel.from_pretrained(tiny_llama(), folder).eval()))
    loaded.switch()
    assert loaded.active == () and torch.equal(logits(loaded), bare)


def test_mixed_methods_act_as_put_would_stack_them_in_any_order(base: LlamaForCausalLM, tmp_path: Path) -> None:
    model = Adapted(base)
    bare = logits(model)
    for name, method, keys in (("train", "lora", TWO), ("ia3", "ia3", {}), ("lora", "lora", {"lora": {"r": 2}})):
        model.add(name, method, **keys)
    model.add("one", "adapter", adapter={"r": 4})
    model.add("two", "adapter", adapter={"r": 3, "non_linearity": "relu", "placement": "houlsby"})
    assert model.active == ("train", "ia3", "lora", "one", "two")
    spread(model, *model.names, std=0.4)
    for name in model.names:
        model.save(name, tmp_path / name)
        kept = {"adapter_config.json", "adapter_model.safetensors"}
        assert {path.name for path in (tmp_path / name).iterdir()} >= kept
    seen = [bare]
    for order in (
        ["train", "ia3", "lora"],
        ["ia3", "train"],
        ["train", "ia3"],
        ["lora", "one", "train"],
        ["one", "lora", "ia3"],
    ):
        model.switch(*order)
        policy = [Adapter(name=name, path=name, method="", settings={}) for name in order]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second time")
            theirs = stack.put(tiny_llama().eval(), policy, tmp_path).eval()
        close(logits(model), logits(theirs))
        assert not any(torch.allclose(logits(model), other, atol=1e-3) for other in seen), order
        seen.append(logits(model))
    for name in model.names:  # each file alone, by PEFT, on the bare base
        model.switch(name)
        assert torch.equal(logits(model), logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / name).eval()))
    model.switch()
    assert torch.equal(logits(model), bare)


def test_lora_and_ia3_in_both_orders_are_what_the_formulas_say(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    model.add("low", "lora", lora={"r": 2, "alpha": 4, "target_modules": ["q_proj"]})
    model.add("scale", "ia3", peft={"target_modules": ["q_proj"], "feedforward_modules": []})
    spread(model, *model.names, std=0.5)
    delta = update(model, "low", 2.0)[Q]
    [vector] = model.parameters("scale").values()
    x, weight = torch.randn(1, 3, 16), base.get_submodule(Q).get_base_layer().weight
    for order, matrix in (
        (("low", "scale"), vector * (weight + delta)),
        (("scale", "low"), vector * weight + delta),
    ):
        model.switch(*order)
        torch.testing.assert_close(base.get_submodule(Q)(x), x @ matrix.T)


def test_bottlenecks_on_one_block_act_in_the_order_given(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    for name in ("one", "two", "three"):
        model.add(name, "adapter", adapter={"r": 4})
    spread(model, *model.names, std=0.5)
    block, x = base.model.layers[0].mlp, torch.randn(1, 3, 16)
    model.switch()
    hidden = block(x)
    for name in ("three", "one", "two"):
        p = {
            key.rsplit(".", 2)[0].rsplit(".", 1)[1] + key.rsplit(".", 1)[1]: v
            for key, v in model.parameters(name).items()
        }
        inner = torch.nn.functional.gelu(hidden @ p["bottleneck_downweight"].T + p["bottleneck_downbias"])
        hidden = hidden + inner @ p["bottleneck_upweight"].T + p["bottleneck_upbias"]
    model.switch("three", "one", "two")
    torch.testing.assert_close(block(x), hidden)
    model.switch("two")
    model.switch()
    assert len(block._forward_hooks) == 0 and not hasattr(block, "adapter")


def test_prompts_act_with_other_adapters(base: LlamaForCausalLM, tmp_path: Path) -> None:
    model = Adapted(base)
    bare = logits(model)
    model.add("low", "lora", **TWO)
    model.add("words", "prompt_tuning", peft={"num_virtual_tokens": 3})
    spread(model, "low", "words")
    [vectors] = model.parameters("words").values()
    assert list(model.parameters("words")) == ["prompt_encoder.words.embedding.weight"] and vectors.requires_grad
    given = torch.cat([vectors.expand(2, -1, -1), base.get_input_embeddings()(IDS)], 1)
    with torch.no_grad():
        expected = base(inputs_embeds=given).logits
    assert torch.equal(logits(model), expected) and expected.shape[1] == 15
    model.save("words", tmp_path / "words")
    alone = logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "words").eval())
    model.switch("words")
    assert torch.equal(logits(model), alone)
    model.switch("low")
    assert logits(model).shape == bare.shape
    model.disable()
    assert torch.equal(logits(model), bare)


# Flags -----------------------------------------------------------------------------------------------------------


def test_only_the_new_adapter_trains_and_nothing_but_add_changes_a_flag(
    base: LlamaForCausalLM, saved: dict[str, Path], tmp_path: Path
) -> None:
    model = Adapted(base)
    bare, untouched = logits(model), tensors(base)
    model.add("first", "lora", **TWO)
    model.load(saved["dpo"], "dpo")
    model.add("second", "lora", lora={"r": 2, "target_modules": ["q_proj"]})
    spread(model, "first")
    name = f"{Q}.lora_A.second.weight"
    assert set(model.trainable_parameters()) == {name, name.replace("lora_A", "lora_B")}
    assert model.trainable_parameters()[name] is model.parameters("second")[name]
    assert not any(parameter.requires_grad for parameter in base.parameters() if id(parameter) not in {
        id(p) for p in model.parameters("second").values()
    })  # fmt: skip
    model.parameters("first")[f"{Q}.lora_B.first.weight"].requires_grad_(True)  # a part of another, by hand
    before, acting = flags(model), model.active
    assert acting == ("first", "second"), "what is loaded acts only when switched to"
    expected = logits(model)
    model.disable()
    assert model.active == () and model.trainable_parameters() == {} and model.model is base
    assert torch.equal(logits(model), bare) and models_equal(untouched, tensors(base))
    model.disable()
    model.enable()
    assert model.active == acting and flags(model) == before and torch.equal(logits(model), expected)
    model.switch("dpo")
    model.save("second", tmp_path / "second")
    model.merge()
    model.unmerge()
    model.combine("mixed", {"first": 1.0, "dpo": 1.0})
    model.switch("first", "second")
    assert {key: value for key, value in flags(model).items() if not key.startswith("mixed/")} == before
    assert not any(value for key, value in flags(model).items() if key.startswith("mixed/"))
    assert torch.equal(logits(model), expected)


def models_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_training_moves_the_trainable_adapter_alone(base: LlamaForCausalLM, saved: dict[str, Path]) -> None:
    model = Adapted(base)
    model.load(saved["sft"], "sft")
    model.load(saved["dpo"], "dpo", trainable=True)
    model.switch("sft", "dpo")
    before = {name: {key: p.clone() for key, p in model.parameters(name).items()} for name in model.names}
    weights = [p.clone() for p in base.parameters()]
    assert set(model.trainable_parameters()) == set(model.parameters("dpo"))
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    model.model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert models_equal(before["sft"], model.parameters("sft"))
    assert not any(torch.equal(before["dpo"][key], p) for key, p in model.parameters("dpo").items())
    moved = sum(not torch.equal(one, two) for one, two in zip(weights, base.parameters(), strict=True))
    assert moved == len(model.parameters("dpo"))


def test_dropout_follows_the_mode_of_the_base(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    model.add("a", "lora", lora={"r": 2, "dropout": 0.5})
    model.add("b", "lora", lora={"r": 2})
    spread(model, "a", "b")
    model.switch("b")
    base.train()
    model.switch("a")
    assert not torch.equal(logits(model), logits(model))
    model.switch("b")
    base.eval()
    model.switch("a")
    assert torch.equal(logits(model), logits(model))


def test_counts(base: LlamaForCausalLM) -> None:
    total = sum(parameter.numel() for parameter in base.parameters())
    model = Adapted(base)
    model.add("one", "lora", lora={"r": 3, "target_modules": ["q_proj", "down_proj"]})
    one = 3 * (16 + 16) + 3 * (32 + 16)
    assert model.counts() == Counts(base=total, adapters={"one": one}, trainable=one)
    model.add("two", "adapter", adapter={"r": 4})
    two = 2 * 4 * 16 + 4 + 16
    assert model.counts() == Counts(base=total, adapters={"one": one, "two": two}, trainable=two)
    model.switch("one")
    assert model.counts() == Counts(base=total, adapters={"one": one, "two": two}, trainable=0)


# Merging ---------------------------------------------------------------------------------------------------------


def test_merged_weights_are_the_sum_and_unmerged_ones_the_same_bits(loaded: Adapted) -> None:
    base, untouched = loaded.base, tensors(loaded.base)
    sft, dpo = update(loaded, "sft", 2.0), update(loaded, "dpo", 3.5)
    places = {id(parameter): parameter.data_ptr() for parameter in base.parameters()}
    loaded.switch("dpo")
    loaded.merge("sft", "dpo")
    assert loaded.merged == loaded.active == ("sft", "dpo")
    for module in {*sft, *dpo}:
        expected = untouched.get(f"{module}.weight", untouched.get(f"{module}.base_layer.weight"))
        assert expected is not None
        expected = expected + sft.get(module, 0) + dpo.get(module, 0)
        torch.testing.assert_close(base.get_submodule(module).get_base_layer().weight.data, expected)
    close(logits(loaded), computed((1, sft), (1, dpo)))
    loaded.unmerge()
    loaded.unmerge()
    assert loaded.merged == () and loaded.active == ("dpo",)
    loaded.switch()
    assert models_equal(untouched, tensors(base))
    assert {id(parameter): parameter.data_ptr() for parameter in base.parameters()} == places


def test_a_merged_adapter_lies_under_those_that_still_act(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    model.add("scale", "ia3")
    model.add("low", "lora", **TWO)
    model.add("block", "adapter", adapter={"r": 4})
    model.add("norm", "ln_tuning")
    spread(model, "scale", "low", "block", "norm", std=0.4)
    model.disable()
    untouched = tensors(base)
    model.enable()
    for merged, order in (
        (("low",), ["low", "scale", "block", "norm"]),
        (("norm", "scale", "low"), ["norm", "scale", "low", "block"]),
    ):
        model.switch("scale", "low", "block", "norm")
        model.merge(*merged)
        found = logits(model)
        assert list(model.active) == order
        model.unmerge()
        assert model.active == ("scale", "low", "block", "norm")
        model.switch(*order)
        close(found, logits(model))
    model.disable()
    assert models_equal(untouched, tensors(base))


@pytest.mark.filterwarnings("ignore:OSF does not support unmerging")
@pytest.mark.parametrize("method", ["adalora", "hra", "ln_tuning", "oft", "osf", "vera"])
def test_other_methods_merge_and_come_back_bit_for_bit(base: LlamaForCausalLM, method: str) -> None:
    """OSF's own unmerge does nothing, and LN tuning's merge swaps modules."""
    model = Adapted(base)
    bare, untouched = logits(model), tensors(base)
    model.add("x", method, **({"peft": {"init_r": 4, "target_r": 2}} if method == "adalora" else {}))
    model.model.eval()
    torch.manual_seed(3)
    for parameter in model.parameters("x").values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    acting = logits(model)
    assert not torch.allclose(acting, bare, atol=1e-3)
    model.merge()
    torch.testing.assert_close(logits(model), acting, rtol=1e-3, atol=1e-4)
    model.unmerge()
    assert torch.equal(logits(model), acting)
    model.switch()
    assert models_equal(untouched, tensors(base))


def test_while_merged_nothing_else_is_done(loaded: Adapted, saved: dict[str, Path], tmp_path: Path) -> None:
    loaded.switch("sft")
    loaded.merge()
    for action in (
        lambda: loaded.switch("dpo"),
        loaded.disable,
        loaded.merge,
        lambda: loaded.add("new", "lora"),
        lambda: loaded.load(saved["sft"], "new"),
        lambda: loaded.save("dpo", tmp_path / "new"),
        lambda: loaded.combine("new", {"dpo": 1.0}),
    ):
        with refused("'sft' is merged into the base's weights", "call unmerge() first"):
            action()


# Combining -------------------------------------------------------------------------------------------------------


def test_a_combination_is_the_weighted_sum_exactly(loaded: Adapted, tmp_path: Path) -> None:
    sft, dpo = update(loaded, "sft", 2.0), update(loaded, "dpo", 3.5)
    made = loaded.combine("mixed", {"sft": 0.7, "dpo": -0.3})
    assert (made.rank, made.error) == (3 + 2, 0.0) and loaded.active == ()
    found = update(loaded, "mixed", 1.0)
    assert found.keys() == {*sft, *dpo}
    for module, delta in found.items():
        torch.testing.assert_close(
            delta, 0.7 * sft.get(module, torch.zeros(())) - 0.3 * dpo.get(module, torch.zeros(()))
        )
    loaded.switch("mixed")
    close(logits(loaded), computed((0.7, sft), (-0.3, dpo)))
    loaded.save("mixed", tmp_path / "mixed")
    theirs = PeftModel.from_pretrained(tiny_llama(), tmp_path / "mixed").eval()
    assert torch.equal(logits(theirs), logits(loaded))
    ranks = {name: dict(layer.r)["default"] for name, layer in theirs.named_modules() if isinstance(layer, LoraLayer)}
    assert sorted(ranks.values()) == [2, 3, 5]


def test_interpolation_reaches_both_ends_and_equal_ranks(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    for name in ("a", "b"):
        model.add(name, "lora", lora={"r": 4, "alpha": 4, "use_rslora": name == "b"})
    spread(model, "a", "b")
    a, b = update(model, "a", 1.0), update(model, "b", 4 / 4**0.5)
    for t in (0.0, 0.25, 1.0):
        assert model.combine(f"at{int(t * 100)}", {"a": 1 - t, "b": t}).rank == 8
        for module, delta in update(model, f"at{int(t * 100)}", 1.0).items():
            torch.testing.assert_close(delta, (1 - t) * a[module] + t * b[module])


def test_a_truncated_combination_is_the_best_of_its_rank_and_says_what_it_costs(loaded: Adapted) -> None:
    weights = {"sft": 0.7, "dpo": 0.3}
    loaded.combine("exact", weights)
    exact = update(loaded, "exact", 1.0)
    for rank in (1, 2, 4, 9):
        made = loaded.combine(f"rank{rank}", weights, rank=rank)
        assert made.rank == min(rank, 5)
        lost = whole = 0.0
        for module, delta in update(loaded, f"rank{rank}", 1.0).items():
            values = torch.linalg.svdvals(exact[module].double())
            assert float((delta - exact[module]).norm()) == pytest.approx(
                float(values[rank:].norm()), rel=1e-4, abs=1e-5
            )
            assert torch.linalg.matrix_rank(delta.double(), rtol=1e-5) <= rank
            lost, whole = lost + float((values[rank:] ** 2).sum()), whole + float((values**2).sum())
        assert made.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4, abs=1e-6)
    assert made.error < 1e-6 < 0.05 < loaded.combine("one", weights, rank=1).error


# Over 4 bits -----------------------------------------------------------------------------------------------------


def test_adapters_over_a_4_bit_base(quantized: Any, tmp_path: Path) -> None:
    model = Adapted(quantized)
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in quantized.modules()), (
        "the layout with wrong gradients is off"
    )
    bare, packed = logits(model), tensors(quantized)
    model.add("sft", "qlora", lora={"r": 4, "alpha": 8})
    model.add("scale", "ia3")
    model.add("block", "adapter", adapter={"r": 8})
    model.add("dpo", "lora", lora={"r": 2, "alpha": 4})
    assert {p.dtype for p in model.trainable_parameters().values()} == {torch.float32}
    spread(model, "sft", "scale", "block", "dpo", std=0.05)
    model.switch("sft", "dpo")
    both = logits(model)
    model.combine("mixed", {"sft": 1.0, "dpo": 1.0})
    model.switch("mixed")
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-4)
    model.switch("sft", "scale", "block", "dpo")
    assert not torch.allclose(logits(model), both, atol=1e-2)
    with refused(
        "adapters cannot be merged onto weights in 4 or 8 bits, which would lose most of the update",
        "merge through export, which dequantises the base first",
    ):
        model.merge("sft")
    with refused("the base is in memory already", "leave `quantization` out, and load the base quantised"):
        model.add("more", "qlora", quantization={"bits": 4})
    with refused(
        "'quantization': PEFT's 'boft' does not support a quantised base",
        "choose ia3, or leave `quantization` out",
    ):
        model.add("more", "boft")
    model.disable()
    assert torch.equal(logits(model), bare) and models_equal(packed, tensors(quantized))


# What is refused -------------------------------------------------------------------------------------------------


def test_names(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    with refused("there is no adapter 'sft'", "add() or load() one"):
        model.switch("sft")
    with refused("'a.b' cannot be an adapter's name", "use letters, digits, - and _"):
        model.add("a.b", "lora")
    model.add("sft", "lora", **TWO)
    with refused("there is already an adapter 'sft'", "give it another name"):
        model.add("sft", "lora")
    with refused("there is no adapter 'sff'", "did you mean 'sft'?"):
        model.switch("sff")
    with refused("the adapter 'sft' is named twice", "name each only once"):
        model.switch("sft", "sft")
    assert model.active == ("sft",)


@pytest.mark.parametrize(
    ("method", "keys", "what", "remedy"),
    [
        ("full", {}, "full trains the base's own weights and is not an adapter", "choose another method"),
        ("spectrum", {}, "spectrum trains the base's own weights and is not an adapter", "give spectrum `lora={}`"),
        ("loraa", {}, "there is no parameterization 'loraa'", "did you mean 'lora'?"),
        ("qlora", {}, "qlora needs a base in 4 or 8 bits", "load the base quantised, or use lora"),
        ("lora", {"lora": {"rank": 4}}, "unknown key 'lora.rank'", None),
        ("lora", {"lora": {"r": 0}}, "'lora.r' must be at least 1, not 0", None),
        (
            "lora",
            {"lora": {"target_modules": ["nowhere"]}},
            "PEFT cannot put 'lora' on this model: Target modules {'nowhere'} not found in the base model. "
            "Please check the target modules and try again",
            "fix the keys of the parameterization, or choose another method",
        ),
        (
            "lora",
            {"lora": {"bias": "all"}},
            "`bias: all` trains biases of the base itself, which cannot be switched off",
            "leave it out",
        ),
        (
            "lora",
            {"lora": {"init_lora_weights": "pissa"}},
            "'lora.init_lora_weights' cannot be 'pissa'",
            "choose one of: gaussian, orthogonal",
        ),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    base: LlamaForCausalLM, method: str, keys: dict[str, Any], what: str, remedy: str | None
) -> None:
    model = Adapted(base)
    model.add("first", "lora", **TWO)
    spread(model, "first")
    before, found, names = logits(model), flags(model), set(tensors(base))
    with pytest.raises(AlignError) as caught:
        model.add("second", method, **keys)
    assert caught.value.what == what and remedy in (None, caught.value.remedy)
    assert model.names == model.active == ("first",)
    assert torch.equal(logits(model), before) and flags(model) == found and set(tensors(base)) == names


def test_what_cannot_be_loaded(base: LlamaForCausalLM, saved: dict[str, Path], tmp_path: Path) -> None:
    model = Adapted(base)
    with refused(f"there is no adapter in '{tmp_path}'", "give a folder with an adapter_config.json"):
        model.load(tmp_path, "x")
    other = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    made = get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path / "large")
    names = set(tensors(base))
    with pytest.raises(AlignError) as caught:
        model.load(tmp_path / "large", "x")
    assert caught.value.what.startswith(f"the adapter in '{tmp_path / 'large'}' does not fit this base: ")
    assert model.names == () and set(tensors(base)) == names
    model.load(saved["sft"], "x")
    with refused(f"the folder '{saved['dpo']}' is not empty", "give another"):
        model.save("x", saved["dpo"])


def test_what_cannot_be_merged(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    with refused("there is nothing to merge", "enable() or switch() to the adapters first"):
        model.merge()
    untouched = tensors(base)
    for name in ("adapter", "prompt_tuning", "beft", "lily"):
        model.add(f"my_{name}", name)
        with refused(
            f"'my_{name}' cannot be merged: what {name} learns is not a change of weights", "keep it as an adapter"
        ):
            model.merge(f"my_{name}")
        assert model.merged == ()
    model.switch()
    assert models_equal(untouched, tensors(base))


def test_what_cannot_be_combined(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    made: dict[str, tuple[str, dict[str, Any], str]] = {
        "ia3": ("ia3", {}, "the updates of ia3 are not products B A that can be added up"),
        "ada": (
            "adalora",
            {"peft": {"init_r": 4, "target_r": 2}},
            "the updates of adalora are not products B A that can be added up",
        ),
        "block": ("adapter", {}, "the updates of adapter are not products B A that can be added up"),
        "dora": ("lora", {"lora": {"use_dora": True}}, "DoRA and other variants of LoRA are not linear in B A"),
        "head": ("lora", {"lora": {"modules_to_save": ["lm_head"]}}, "it trains full modules"),
        "words": ("lora", {"lora": {"target_modules": ["embed_tokens"]}}, "it is on embeddings"),
    }
    model.add("plain", "lora", **TWO)
    for name, (method, keys, reason) in made.items():
        model.switch()
        model.add(name, method, **keys)
        with refused(f"'{name}' cannot be combined: {reason}", "combine plain LoRA adapters, or stack by switch()"):
            model.combine("new", {"plain": 0.5, name: 0.5})
    with refused("the weights of a combination must be finite numbers", "give one for each adapter"):
        model.combine("new", {"plain": float("nan")})
    with refused("the weights of a combination must be finite numbers", "give one for each adapter"):
        model.combine("new", {})
    with refused("the rank of a combination must be at least 1, not 0", "give a larger one"):
        model.combine("new", {"plain": 1.0}, rank=0)
    assert "new" not in model.names


@pytest.mark.parametrize("method", ["hra", "shira", "supertuning", "glora"])
def test_an_adapter_that_would_silence_another_cannot_act_over_it(base: LlamaForCausalLM, method: str) -> None:
    """They compute with the base's weight itself, whatever lies between."""
    keys = {"peft": {"r": 4}} if method == "shira" else {}
    model = Adapted(base)
    model.add("low", "lora", **TWO)
    spread(model, "low")
    acting = logits(model)
    with refused(
        f"'over' cannot act over 'low': {method} computes with the base's own weights, and 'low' would have no effect",
        "put 'over' first, or merge()",
    ):
        model.add("over", method, **keys)
    assert model.names == model.active == ("low",) and torch.equal(logits(model), acting)
    model.switch()
    model.add("under", method, **keys)
    model.switch("under", "low")
    close(logits(model), acting)


def test_modules_that_are_trained_whole_act_alone(base: LlamaForCausalLM, tmp_path: Path) -> None:
    model = Adapted(base)
    bare = logits(model)
    model.add("head", "lora", lora={"r": 2, "modules_to_save": ["lm_head"]})
    spread(model, "head")
    head = logits(model)
    with refused(
        "'head' and 'other' cannot be active together: 'head' trains lm_head in full", "activate one of them at a time"
    ):
        model.add("other", "lora", lora={"r": 2, "modules_to_save": ["lm_head"]})
    model.switch()
    assert torch.equal(logits(model), bare)
    model.add("other", "lora", lora={"r": 2, "modules_to_save": ["lm_head"]})
    close(logits(model), bare)
    model.switch("head")
    assert torch.equal(logits(model), head)
    model.save("head", tmp_path / "head")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "head").eval()), head)
    model.disable()
    assert torch.equal(logits(model), bare)


def test_two_adapters_with_prompts_do_not_act_together(base: LlamaForCausalLM) -> None:
    model = Adapted(base)
    model.add("one", "prompt_tuning")
    with refused("'one' and 'two' both have prompts", "activate one of them at a time"):
        model.add("two", "prefix_tuning")
