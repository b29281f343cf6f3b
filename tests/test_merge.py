"""LoRA adapters merged from their files, beside W + sum_i w_i s_i B_i A_i computed from the same files by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from align.adapters.adapted import Adapted
from align.errors import AlignError, Exit
from align.lab import MODEL_DIR
from align.merging import into_base
from align.policy import stack
from align.results.merge import merge
from align.run_folder import files
from align.run_folder.records import Adapter, Policy
from models import LAB, at_strength, tiny_llama

Tensors = dict[str, torch.Tensor]
IDS = torch.arange(5, 29).view(2, 12)
A, B = ({"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]},
        {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]})  # fmt: skip


def tokenizer_files(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL_DIR / name, folder)


def base_in(folder: Path, model: Any = None, dtype: torch.dtype = torch.float32) -> Path:
    (tiny_llama() if model is None else model).to(dtype).save_pretrained(folder)
    tokenizer_files(folder)
    return folder


def adapter_in(folder: Path, base: Path, config: Any = None, **settings: Any) -> Path:
    """An adapter that plain PEFT made and saved, with values as if it were trained."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = get_peft_model(model, config or LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(len(folder.name) + ord(folder.name[0]))
    for key, parameter in made.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and two adapters of other ranks, scales and modules, the first with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    base_in(Path("base"))
    tokenizer_files(adapter_in(Path("a"), Path("base"), **A))
    adapter_in(Path("b"), Path("base"), **B)
    return tmp_path


def updates(folder: Path, scale: float | Callable[[str], float]) -> Tensors:
    """s B A by module, from the file alone."""
    found = load_file(folder / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in found}
    return {
        name: (scale if isinstance(scale, float) else scale(name))
        * found[f"base_model.model.{name}.lora_B.weight"].double()
        @ found[f"base_model.model.{name}.lora_A.weight"].double()
        for name in names
    }


def summed(*terms: tuple[float, Tensors]) -> Tensors:
    found: Tensors = {}
    for weight, change in terms:
        for name, delta in change.items():
            found[name] = found.get(name, 0) + weight * delta
    return found


def same(one: Tensors, two: Tensors) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6)


def changed(base: Path, change: Tensors, *, transposed: bool = False) -> Tensors:
    """The base's tensors with an update, in float64."""
    found = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    for name, delta in change.items():
        found[f"{name}.weight"] += delta.T if transposed else delta
    return found


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.usefixtures("two")
def test_the_combined_adapter_is_the_weighted_sum() -> None:
    done = merge(Path("new/out"), ["a=0.7", "b=-0.3"], rank=None, form="adapter")
    assert (done.folder, done.rank, done.error, done.merge, done.base) == (Path("new/out"), 5, 0.0, None, "base")
    expected = summed((0.7, updates(Path("a"), 2.0)), (-0.3, updates(Path("b"), 3.5)))
    same(updates(done.folder, 1.0), expected)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), done.folder)
    plain = tiny_llama()
    plain.load_state_dict({name: tensor.float() for name, tensor in changed(Path("base"), expected).items()})
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)
    assert {path.name for path in done.folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base" and config["inference_mode"] is True


@pytest.mark.usefixtures("two")
def test_it_is_the_combination_of_named_adapters_at_every_rank() -> None:
    model = Adapted(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32))
    for name in ("a", "b"):
        model.load(name, name)
    for rank in (None, 1, 4):
        done = merge(Path(f"out{rank}"), ["a", "b"], rank=rank, form="adapter")
        theirs = model.combine(f"at{rank}", {"a": 0.5, "b": 0.5}, rank=rank)
        assert (done.rank, done.error) == (theirs.rank, pytest.approx(theirs.error, rel=1e-5))
        model.save(f"at{rank}", Path(f"their{rank}"))
        same(updates(done.folder, 1.0), updates(Path(f"their{rank}"), 1.0))
    exact = summed((0.5, updates(Path("a"), 2.0)), (0.5, updates(Path("b"), 3.5)))
    values = [torch.linalg.svdvals(delta) ** 2 for delta in exact.values()]
    lost, whole = sum(float(v[1:].sum()) for v in values), sum(float(v.sum()) for v in values)
    card = Path("out1/README.md").read_text()
    assert f"- rank 1, which leaves out {(lost / whole) ** 0.5:.1%} of the sum (Frobenius norm)\n" in card


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_weights_in_the_precision_of_the_base(two: Path, dtype: torch.dtype) -> None:
    base_in(Path("base"), dtype=dtype)
    done = merge(Path("out"), ["a=0.25", "b=0.5"], rank=None, form="merged")
    found, untouched = load_file(Path("out/model.safetensors")), load_file(Path("base/model.safetensors"))
    change = summed((0.25, updates(Path("a"), 2.0)), (0.5, updates(Path("b"), 3.5)))
    expected = changed(Path("base"), change)
    assert found.keys() == expected.keys() and {tensor.dtype for tensor in found.values()} == {dtype}
    for name, tensor in found.items():
        if name.removesuffix(".weight") in change:
            torch.testing.assert_close(tensor, expected[name].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
            assert not torch.equal(tensor, untouched[name])
        else:
            assert torch.equal(tensor, untouched[name]), name
    assert done.merge is not None and done.merge.dtype == str(dtype).removeprefix("torch.")
    assert done.merge.kl < 1e-4 < done.merge.moved_kl and (dtype != torch.float32 or done.merge.kl < 1e-9)
    assert AutoTokenizer.from_pretrained("out").chat_template == (MODEL_DIR / "chat_template.jinja").read_text()
    assert not list(two.glob(".merge-*"))


@pytest.mark.usefixtures("two")
def test_scales_of_every_kind_are_peft_s() -> None:
    """rsLoRA, and ranks and scales by patterns."""
    adapter_in(Path("rs"), Path("base"), r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj"])
    patterns = {"rank_pattern": {"q_proj": 1, "layers.0.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 5, "up_.*": 9}}
    modules = ["q_proj", "v_proj", "up_proj"]
    adapter_in(Path("pattern"), Path("base"), r=4, lora_alpha=8, target_modules=modules, **patterns)
    merge(Path("out"), ["rs=1", "pattern=1"], rank=None, form="adapter")
    scales = {"q_proj": 8 / 1, "v_proj": 5 / 4, "up_proj": 9 / 2}
    pattern = updates(Path("pattern"), lambda name: scales[name.rpartition(".")[2]])
    same(updates(Path("out"), 1.0), summed((1.0, updates(Path("rs"), 6 / 2)), (1.0, pattern)))
    base = AutoModelForCausalLM.from_pretrained("base")
    model = PeftModel.from_pretrained(base, "rs")
    model.load_adapter("pattern", "pattern")
    model.base_model.set_adapter(["default", "pattern"])
    both = logits(model)
    fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "out")
    torch.testing.assert_close(both, logits(fresh), rtol=1e-4, atol=1e-5)


def test_matrices_of_gpt_2_are_transposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=800, n_embd=16, n_layer=1, n_head=2, n_positions=256))
    base_in(Path("base"), model)
    for name in ("a", "b"):
        settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
        tokenizer_files(adapter_in(Path(name), Path("base"), r=2, lora_alpha=2, **settings))
    done = merge(Path("out"), ["a", "b"], rank=None, form="merged")
    assert done.merge is not None and done.merge.kl < 1e-9 and done.merge.agreement == 1.0
    change = summed((0.5, updates(Path("a"), 1.0)), (0.5, updates(Path("b"), 1.0)))
    found, expected = load_file(Path("out/model.safetensors")), changed(Path("base"), change, transposed=True)
    same({name: tensor.double() for name, tensor in found.items()}, {name: expected[name] for name in found})
    merge(Path("alone"), ["a", "b"], rank=None, form="adapter")
    assert json.loads(Path("alone/adapter_config.json").read_text())["fan_in_fan_out"] is True


# Which base ------------------------------------------------------------------------------------------------------


def edit(folder: str, **settings: Any) -> None:
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("other", ["base/../base", "link", "copy"])
@pytest.mark.usefixtures("two")
def test_the_same_base_under_another_name(other: str) -> None:
    Path("link").symlink_to("base")
    shutil.copytree("base", "copy")
    edit("b", base_model_name_or_path=other)
    assert merge(Path("out"), ["a", "b"], rank=None, form="adapter").rank == 5


@pytest.mark.parametrize(("revision", "fits"), [(None, True), ("main", True), ("1" * 40, True), ("2" * 40, False)])
def test_a_base_of_the_hub(two: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, fits: bool) -> None:
    cache = two / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    model = cache / "models--acme--tiny"
    shutil.copytree("base", model / "snapshots" / ("1" * 40))
    (model / "refs").mkdir()
    (model / "refs/main").write_text("1" * 40)
    edit("a", base_model_name_or_path="acme/tiny", revision="1" * 40)
    edit("b", base_model_name_or_path="acme/tiny", revision=revision)
    if not fits:
        says = (
            f"'a' was made for the base 'acme/tiny' at revision '{'1' * 40}', and 'b' for 'acme/tiny' at revision "
            f"'{'2' * 40}'\n  -> merge adapters of one base"
        )
        assert refusal(["a", "b"]) == says
        return
    merge(Path("out"), ["a", "b"], rank=None, form="adapter")
    card = Path("out/README.md").read_text()
    assert "base_model: acme/tiny\n" in card and f"Base model: **acme/tiny** at revision `{'1' * 40}`." in card


def stage(adapter: str, run: Path, name: str, *beneath: str) -> str:
    """The adapter's folder as that of a run's stage on the lab, which stands on those of earlier stages."""
    folder = run / "stages" / name / "model"
    shutil.copytree(adapter, folder)
    made = [Adapter(name=each, path=f"stages/{each}/model", method="lora", settings={}) for each in (*beneath, name)]
    outcome = {"policy": Policy(base=LAB, adapters=made).model_dump(mode="json")}
    files.write_json(folder.parent / "outcome.json", outcome)
    return str(folder)


@pytest.mark.usefixtures("two")
def test_an_adapter_on_top_of_another_is_merged_with_it_alone() -> None:
    sft, dpo = stage("a", Path("run"), "sft"), stage("b", Path("run"), "dpo", "sft")
    assert refusal([dpo]) == (
        f"'{dpo}' was trained on top of the adapter in '{Path(sft).resolve()}' and does not work without it\n"
        "  -> give that one too, each with its weight; with weight 1 for both you get the policy of the run"
    )
    done = merge(Path("out"), [f"{sft}=1", f"{dpo}=1"], rank=None, form="merged")
    policy = [Adapter(name=each, path=f"run/stages/{each}/model", method="", settings={}) for each in ("sft", "dpo")]
    theirs = stack.put(AutoModelForCausalLM.from_pretrained("base"), policy, Path())
    merged = AutoModelForCausalLM.from_pretrained("out")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-5)
    sha = [files.file_sha256(Path(each) / "adapter_model.safetensors")[:12] for each in "ab"]
    assert done.merge is not None and done.merge.kl < 1e-9
    assert done.base == "lab" and Path("out/README.md").read_text() == (
        "---\nlibrary_name: transformers\ntags: [align, merge]\n---\n\n# A merge of adapters\n\n"
        "A weighted sum of LoRA adapters, which `align merge` made. Base model: **lab**.\n\n"
        f"- 1 of `run: sft` (sha256 `{sha[0]}`)\n- 1 of `run: dpo` (sha256 `{sha[1]}`)\n- rank 5\n"
        f"- merged into the weights of the base in float32: {done.merge.figures}\n"
    )


# What is refused -------------------------------------------------------------------------------------------------


def refusal(given: list[str], *, out: str = "out", rank: int | None = None, form: str = "adapter") -> str:
    """What is said; nothing may have been written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(AlignError) as caught:
        merge(Path(out), given, rank=rank, form=form)
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no adapter is given\n  -> give folders with an adapter_config.json"),
        (["a=much", "b=1"], "the weight of 'a' cannot be 'much'\n  -> give a number, as in FOLDER=0.7"),
        (["a=nan", "b=1"], "the weight of 'a' cannot be 'nan'\n  -> give a number, as in FOLDER=0.7"),
        (["a=1", "b"], "'b' has no weight, but others have one\n  -> give every adapter a weight, or none of them"),
        (["a", "./a"], "the adapter './a' is named twice\n  -> name each only once"),
        (["a=1", "a=2"], "the adapter 'a' is named twice\n  -> name each only once"),
        (
            ["base", "no", "run", "empty"],
            "'base' has full weights and no adapter\n  -> give a folder with an adapter_config.json\n"
            "there is no folder 'no'\n  -> give a folder with an adapter_config.json\n"
            "'run' is a run, not an adapter\n  -> give one of its stages: run/stages/sft/model\n"
            "'empty' has no adapter\n  -> give a folder with an adapter_config.json",
        ),
    ],
)
@pytest.mark.usefixtures("two")
def test_what_was_given(given: list[str], says: str) -> None:
    stage("a", Path("run"), "sft")
    Path("empty").mkdir()
    assert refusal(given) == says


@pytest.mark.usefixtures("two")
def test_folder_rank_and_form() -> None:
    assert refusal(["a"], out="base") == "'base' already exists\n  -> give a new folder, or remove it"
    file = Path("b/README.md").absolute()
    under = f"'b/README.md/out' cannot be a folder: '{file}' is a file\n  -> give another folder"
    assert refusal(["a"], out="b/README.md/out") == under
    assert refusal(["a"], rank=0) == "the rank of a combination must be at least 1, not 0\n  -> give a larger one"
    says = "a merge cannot have the form 'full'\n  -> choose one of: merged, adapter"
    assert refusal(["a"], form="full") == says
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    assert merge(Path("link"), ["a"], rank=1, form="adapter").rank == 1
    assert Path("empty/adapter_config.json").is_file(), "an empty folder may be there"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "the updates of ia3 are not products B A that can be added up"),
        ({"peft_type": "BOTTLENECK"}, "the updates of adapter are not products B A that can be added up"),
        ({"use_dora": True}, "DoRA and other variants of LoRA are not linear in B A"),
        ({"alora_invocation_tokens": [1]}, "DoRA and other variants of LoRA are not linear in B A"),
        ({"modules_to_save": ["lm_head"]}, "it trains full modules"),
        ({"target_parameters": ["experts"]}, "it is on expert tensors"),
        ({"lora_bias": True}, "its B has a bias"),
        ({"bias": "all"}, "`bias: all` trains biases of the base itself, which cannot be switched off"),
        (
            {"init_lora_weights": "pissa"},
            "`init_lora_weights: pissa` moves weights of the base into the adapter, and changes the base",
        ),
    ],
)
@pytest.mark.usefixtures("two")
def test_settings_that_do_not_add_up(change: dict[str, Any], reason: str) -> None:
    edit("b", **change)
    assert refusal(["a", "b"]) == f"'b' cannot be combined: {reason}\n  -> give plain LoRA adapters"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "DoRA and other variants of LoRA are not linear in B A"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "it trains full modules"),
        ({"target_modules": ["embed_tokens"]}, "it trains full modules"),  # PEFT saves the embedding itself beside it
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "its B has a bias"),
    ],
)
@pytest.mark.usefixtures("two")
def test_tensors_that_do_not_add_up(settings: dict[str, Any], reason: str) -> None:
    """Whatever the settings say."""
    adapter_in(Path("c"), Path("base"), r=2, **settings)
    edit("c", use_dora=False, modules_to_save=None, lora_bias=False)
    assert refusal(["a", "c"]) == f"'c' cannot be combined: {reason}\n  -> give plain LoRA adapters"


@pytest.mark.usefixtures("two")
def test_other_methods_and_broken_files() -> None:
    adapter_in(Path("ia3"), Path("base"), IA3Config(task_type="CAUSAL_LM"))
    reason = "the updates of ia3 are not products B A that can be added up"
    assert refusal(["a", "ia3"]) == f"'ia3' cannot be combined: {reason}\n  -> give plain LoRA adapters"
    weights, whole = Path("b/adapter_model.safetensors"), load_file(Path("b/adapter_model.safetensors"))
    again = "copy or download the adapter again"
    cut = f"the adapter_model.safetensors of 'b' is truncated, or not a safetensors file\n  -> {again}"
    for content in (weights.read_bytes()[:-9], weights.read_bytes()[:40], b"version https://git-lfs.github.com/spec"):
        weights.write_bytes(content)
        assert refusal(["a", "b"]) == cut
    save_file({key: tensor for key, tensor in whole.items() if "lora_A" in key}, weights)
    assert refusal(["a", "b"]) == f"the weights of 'b' are not pairs of lora_A and lora_B\n  -> {again}"
    weights.unlink()
    assert refusal(["a", "b"]) == f"the adapter 'b' has no adapter_model.safetensors\n  -> {again}"
    Path("b/adapter_model.bin").touch()
    assert refusal(["a", "b"]) == (
        "the adapter 'b' has no adapter_model.safetensors, only pickled weights, which can run code when loaded\n"
        "  -> load it with PEFT and save it again"
    )
    Path("b/adapter_config.json").write_text("{")
    assert refusal(["a", "b"]) == f"the adapter_config.json of 'b' is broken\n  -> {again}"


@pytest.mark.usefixtures("two")
def test_another_base() -> None:
    edit("b", base_model_name_or_path=None)
    assert refusal(["a", "b"]) == (
        "the adapter 'b' does not say which base it was made for\n"
        "  -> write its base into adapter_config.json, as base_model_name_or_path"
    )
    edit("b", base_model_name_or_path="other")
    base_in(Path("other"), tiny_llama(seed=1))
    different = "'a' was made for the base 'base', and 'b' for 'other'"
    assert refusal(["a", "b"]) == f"{different}\n  -> merge adapters of one base"
    shutil.rmtree("other")
    assert refusal(["a", "b"]) == f"{different}\n  -> merge adapters of one base", "not looked up either"
    lab = str(MODEL_DIR)
    adapter_in(Path("c"), MODEL_DIR, r=2, target_modules=["q_proj"])
    width = json.loads((MODEL_DIR / "config.json").read_text())["hidden_size"]
    first = f"{Q}.lora_A.weight is 2 x {width}, the weight there 16 x 16"
    assert refusal(["a", "c"]) == (
        f"'a' was made for the base 'base', and 'c' for '{lab}', which does not fit: {first}\n"
        "  -> merge adapters of one base"
    )
    edit("c", base_model_name_or_path="base")
    now = "its base has changed: give the one that it was trained on"
    assert refusal(["a", "c"]) == f"'c' was made for the base 'base', but does not fit it: {first}\n  -> {now}"


@pytest.mark.usefixtures("two")
def test_a_base_that_changed_since() -> None:
    """Fewer layers, another width inside, or other names."""
    now = "its base has changed: give the one that it was trained on"
    weights = Path("b/adapter_model.safetensors")
    kept = load_file(weights)
    for old, new, says in (
        ("layers.0", "layers.1", "it has no model.layers.1.self_attn.q_proj.weight"),
        ("model.layers.0", "transformer.h.0", "it has no transformer.h.0.self_attn.q_proj.weight"),
    ):
        save_file({key.replace(old, new): tensor for key, tensor in kept.items()}, weights)
        assert refusal(["a", "b"]) == f"'b' was made for the base 'base', but does not fit it: {says}\n  -> {now}"
    deeper = {key.replace("layers.0", "layers.1"): tensor.clone() for key, tensor in kept.items()}
    save_file({**kept, **deeper}, weights)
    lacks = "it has no model.layers.1.self_attn.q_proj.weight"
    assert refusal(["a", "b"]) == f"'b' was made for the base 'base', but does not fit it: {lacks}\n  -> {now}"
    renamed = {f"base_model.model.router.lora_{m}.weight": torch.ones(2, 2) for m in "AB"}
    save_file({**kept, **renamed}, weights)  # transformers may call a module otherwise than the files do
    merge(Path("out"), ["a", "b"], rank=None, form="adapter")
    assert refusal(["a", "b"], out="whole", form="merged") == (
        f"the adapters change router, which the base 'base' does not have\n  -> {now.replace('it was', 'they were')}"
    )
    name = f"base_model.model.{Q}.lora_B.weight"
    save_file({**kept, name: torch.zeros(24, 2)}, weights)
    wrong = f"{Q}.lora_B.weight is 24 x 2, the weight there 16 x 16"
    assert (
        refusal(["a", "b"], out="new") == f"'b' was made for the base 'base', but does not fit it: {wrong}\n  -> {now}"
    )


@pytest.mark.usefixtures("two")
def test_a_base_that_is_not_there() -> None:
    edit("a", base_model_name_or_path="acme/none")
    assert refusal(["a", "b"]) == (
        "the model 'acme/none' is not in the local cache, and the Hub cannot be reached\n"
        "  -> connect, or fetch it where there is a network: hf download acme/none"
    )
    edit("a", base_model_name_or_path="./none")
    assert refusal(["a", "b"]) == (
        "there is no model folder './none'\n  -> give a folder with config.json, a Hub id (owner/name), or lab"
    )


@pytest.mark.usefixtures("two")
def test_whole_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path("base/config.json")
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"quantization_config": {"quant_method": "gptq"}}))
    assert refusal(["a"], form="merged") == (
        "the base 'base' is saved quantised, so full weights would be too\n"
        "  -> write only the combination: --form adapter"
    )
    config.write_text(whole)
    monkeypatch.setattr(into_base, "merged", at_strength(2.0))
    with pytest.raises(AlignError) as caught:
        merge(Path("new/out"), ["a"], rank=None, form="merged")
    says = caught.value
    assert says.exit == Exit.STAGE_FAILED and says.remedy == "write only the combination: --form adapter"
    assert says.what.startswith("the merged model differs from the adapted one: KL ")
    assert not Path("new").exists() and not list(Path().glob(".merge-*"))


@pytest.mark.usefixtures("two")
def test_a_refusal_imports_nothing_heavy() -> None:
    adapter_in(Path("c"), MODEL_DIR, r=2, target_modules=["q_proj"])
    program = (
        "import sys\nfrom pathlib import Path\nfrom align.errors import AlignError\n"
        "from align.results.merge import merge\n"
        "try:\n    merge(Path('out'), ['a', 'c'], rank=None, form='merged')\n"
        "except AlignError as error:\n    print(error.what[:29])\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'trl'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "'a' was made for the base 'ba\n[]\n"
