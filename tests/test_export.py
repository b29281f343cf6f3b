"""A result leaves its run: merged weights, adapters alone, and a talk that switches between policies."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import runs
from align.errors import AlignError
from align.lab import data
from align.parameterization import chain
from align.policy.stack import load_policy
from align.results import export, find, policy_switch
from align.results.policy_switch import Switch
from align.run_folder.records import Adapter
from models import lab_tokenizer

RECIPE = """\
name: three
seed: 3
model: {base: lab, dtype: bfloat16}
parameterization: {method: qlora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {learning_rate: 4.0e-3, max_steps: 8, per_device_train_batch_size: 8}
  more:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 32}
    parameterization: {method: qlora, lora: {r: 4, alpha: 8}}
    training: {learning_rate: 4.0e-3, max_steps: 4, per_device_train_batch_size: 8}
  behind:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 32}
    parameterization: {method: adapter, quantization: {}}
    training: {learning_rate: 4.0e-3, max_steps: 4, per_device_train_batch_size: 8}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages over one 4-bit base: an adapter, another one on it, and a bottleneck adapter on it."""
    here = tmp_path_factory.mktemp("export")
    runs.run(runs.write(here, RECIPE), here / "run")
    return here / "run"


def rows_of_ids() -> list[torch.Tensor]:
    tokenizer = lab_tokenizer()
    rows = data.rows("lab/helpdesk", n=12)
    return [
        torch.tensor([tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]]) for row in rows
    ]


@torch.no_grad()
def next_tokens(model: Any) -> torch.Tensor:
    return torch.cat([model(input_ids=ids).logits[0].argmax(-1) for ids in rows_of_ids()])


def adapted(run: Path, stage: str) -> Any:
    ticket, outcome = find.find(run, stage)
    assert outcome.policy is not None
    return load_policy(outcome.policy, ticket.model, run)


@pytest.mark.parametrize("evaluated", [False, True], ids=["fresh", "evaluated"])
def test_a_merged_policy_picks_the_adapted_model_s_tokens(run: Path, tmp_path: Path, evaluated: bool) -> None:
    done = runs.align("export", str(run), str(tmp_path / "out"), "--stage", "more", cold=not evaluated)
    assert done.stderr == "", "what libraries say to each other is not told"
    found = re.fullmatch(
        r"(.*): [\d.]+ MB, merged; KL ([\d.e-]+) nats per token from the adapted model \(bfloat16 itself costs the "
        r"base ([\d.e-]+)\), loss [\d.]+ -> [\d.]+, of the base [\d.]+\n",
        done.stdout,
    )
    assert found and 0 < float(found[2]) < 2 * float(found[3]) < 0.02
    model = adapted(run, "more")
    if evaluated:
        next_tokens(model.eval())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (next_tokens(merged) == next_tokens(model)).float().mean() >= 0.98
    base = AutoModelForCausalLM.from_pretrained(find.find(run, "more")[0].policy.base.path)
    assert (next_tokens(base) == next_tokens(model)).float().mean() < 0.9, "the base itself is another policy"


def test_what_is_exported(run: Path, tmp_path: Path) -> None:
    export.export(run, "more", tmp_path / "out", "merged")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert "quantization_config" not in (tmp_path / "out/config.json").read_text()
    with safe_open(tmp_path / "out/model.safetensors", "pt") as weights:
        assert weights.get_tensor("model.norm.weight").dtype == torch.bfloat16, "as the base's own file"
    card = (tmp_path / "out/README.md").read_text()
    assert "Base model: **lab**" in card and "library_name: transformers" in card
    assert re.search(r"- merged into the weights of the base: KL [\d.e-]+ nats per token from the adapted model", card)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == lab_tokenizer().chat_template


def test_an_adapter_alone(run: Path, tmp_path: Path) -> None:
    export.export(run, "sft", tmp_path / "one", "adapter")
    export.export(run, "more", tmp_path / "two", "adapter")
    assert [path.name for path in sorted((tmp_path / "two").iterdir())] == ["1-sft", "2-more", "README.md"]
    base = AutoModelForCausalLM.from_pretrained(find.find(run, "sft")[0].policy.base.path)
    model = PeftModel.from_pretrained(base, tmp_path / "one")
    assert model.peft_config["default"].r == 16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["behind", "out", "merged"],
            "the adapter of stage 'behind' cannot be merged into weights\n"
            "  -> export only the adapters of 'behind': --form adapter",
        ),
        (["none", "out", "merged"], "'RUN' has no finished stage 'none'\n  -> choose one of: sft, more, behind"),
        (["sft", "full", "merged"], "'full' already exists\n  -> give a new folder, or remove it"),
    ],
)
def test_what_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").touch()
    stage, out, form = arguments
    with pytest.raises(AlignError) as caught:
        export.export(run, stage, Path(out), form)
    assert str(caught.value).replace(str(run), "RUN") == says
    assert not Path("out").exists()


def test_policies_are_switched_without_loading(run: Path) -> None:
    talk = Switch(run, *find.find(run, "more"))
    assert talk.names == ["base", "sft", "more", "behind"]
    weights = {parameter.data_ptr() for parameter in talk.model.parameters()}
    found = {}
    for name in (*talk.names, "more", "sft"):
        talk.use(name)
        found.setdefault(name, []).append(next_tokens(talk.model))
    assert {parameter.data_ptr() for parameter in talk.model.parameters()} == weights
    for name in ("sft", "more", "behind"):
        expected = next_tokens(adapted(run, name))
        assert all(torch.equal(tokens, expected) for tokens in found[name]), name
    assert len({tuple(tokens[0].tolist()) for tokens in found.values()}) == 4
    with pytest.raises(AlignError) as caught:
        talk.use("dpo")
    assert str(caught.value) == "there is no 'dpo' on these weights\n  -> choose one of: base, sft, more, behind"


def test_a_talk_switches_by_name(run: Path) -> None:
    lines = ["Hello, my lamp is broken.", "/use base", "/use nobody", "/what", "/new", "Hello, my lamp is broken.", ""]
    said = runs.align("chat", str(run), "--stage", "sft", "--max-new-tokens", "8", stdin="\n".join(lines)).stdout
    _, switched, nobody, way, what, _ = said.splitlines()
    assert re.fullmatch(r"base answers from here on \(switched in \d+ ms\)", switched)
    assert nobody == "there is no 'nobody' on these weights"
    assert way == "  -> choose one of: base, sft, more, behind"
    assert what == (
        "there is no /what: an empty line ends, /new starts a new conversation, /use NAME switches to one of "
        "base, sft, more, behind"
    )


def test_a_policy_that_would_silence_another_is_not_put_beside_it() -> None:
    """HRA computes with the base's own weight: with a LoRA beneath it, neither would answer as it was trained."""
    from models import settings

    lora, hra = (
        Adapter(name=method, path=f"stages/{method}/model", method=method, settings=settings(method))
        for method in ("lora", "hra")
    )
    on_it = [lora]
    assert not chain.beside(on_it, [hra]) and on_it == [lora]
    assert chain.beside(on_it, [lora]) and on_it == [lora]
    on_it = [hra]
    assert chain.beside(on_it, [lora]) and on_it == [hra, lora]


def test_base_is_offered_only_where_its_weights_are_loaded(run: Path) -> None:
    _, outcome = find.find(run, "sft")
    assert outcome.policy is not None
    trained = outcome.model_copy(update={"policy": outcome.policy.model_copy(update={"weights": "stages/x/model"})})
    assert list(policy_switch.policies(run, trained)) == []
    assert next(iter(policy_switch.policies(run, outcome))) == "base"


def test_what_a_disk_has_altered_is_not_handed_out(run: Path, tmp_path: Path) -> None:
    """One bit under the old size and time."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    stage = list(find.finished(copy))[-1]
    path = next((copy / "stages" / stage / "model").glob("*.safetensors"))
    stat, held = path.stat(), bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(AlignError) as refused:
        find.find(copy, None)
    assert refused.value.what == f"a file of stage '{stage}' is damaged: {path}"
