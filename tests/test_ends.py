"""Where answers end: the template's end of a turn is learnt, saved and stopped at, whatever the tokenizer's own is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.errors import AlignError
from align.lab import MODEL_DIR
from align.policy import load as loading
from align.policy import stack
from align.preflight.check import prepare
from align.recipe import load
from align.results import chat
from align.run_folder.files import read_json
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy
from models import FULL, LORA, Stages

TALK = [{"role": "user", "content": "What is 7 plus 2?"}, {"role": "assistant", "content": "It is 9."}]
END, OTHER = "<|end|>", "<|system|>"  # the lab's own, and a token that stands for a base's end of documents


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The lab model as a base whose end token is not the one with which its template ends a turn."""
    folder = tmp_path / "base"
    shutil.copytree(MODEL_DIR, folder)
    config = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": OTHER}))
    (folder / "generation_config.json").unlink()
    return folder


def notes(folder: Path, model: str) -> list[str]:
    (folder / "rows.jsonl").write_text(
        json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": TALK[:2]}) + "\n"
    )
    text = (
        f"name: x\nmodel: {model}\nstages:\n  sft: {{data: rows.jsonl, training: {{per_device_train_batch_size: 1}}}}\n"
    )
    (folder / "x.yaml").write_text(text)
    return prepare(load.load(folder / "x.yaml"), weights=False).notes


def test_a_template_that_ends_otherwise_than_the_tokenizer_is_noted(base: Path, tmp_path: Path) -> None:
    what = "the chat template ends answers with <|end|>, but the tokenizer's EOS token is <|system|>: trained models "
    assert what + "stop at any of them (`model.eos_token` sets another)" in notes(tmp_path, f"{{base: {base}}}")
    named = notes(tmp_path, f"{{base: {base}, eos_token: '{END}'}}")
    assert not any("end token" in note for note in named)


def test_a_template_without_an_end_is_noted(tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    what = (
        "the chat template writes no end-of-turn token after an answer: <|end|> is appended, so that the model learns "
    )
    what += "to stop"
    assert what in notes(tmp_path, "{base: lab, chat_template: plain.jinja}")


def test_a_template_that_writes_the_date_is_noted(tmp_path: Path) -> None:
    (tmp_path / "dated.jinja").write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    found = notes(tmp_path, "{base: lab, chat_template: dated.jinja}")
    assert "the chat template writes today's date, so the same rows will have different tokens tomorrow" in found


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_a_token_that_is_not_there_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(AlignError) as caught:
        notes(tmp_path, f"{{base: lab, {key}: '<|stop|>'}}")
    place = f"{tmp_path / 'x.yaml'}:2:"
    assert str(caught.value).startswith(place)
    assert str(caught.value).endswith(
        "the tokenizer of 'lab' has no token '<|stop|>'\n  -> choose a token of its vocabulary"
    )


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_what_is_trained_stops_at_either_end(base: Path, tmp_path: Path, method: dict[str, object]) -> None:
    stages = Stages(RunDir(tmp_path / "run"))
    start = Policy(base=BaseModelIdentity(name="base", path=str(base), identity="1" * 64))
    policy = stages.execute(stages.ticket("sft", "sft", start, method, dtype="float32"))
    folder = stages.run.stage("sft").model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in (END, OTHER)}
    assert set(read_json(folder / "generation_config.json")["eos_token_id"]) == ends
    ours = loading.load_tokenizer(str(base), None, {})
    model = stack.load_policy(policy, {"dtype": "float32"}, stages.run.root).eval()
    asked = [{"role": "user", "content": "Hello, the ladder arrived broken."}]
    said = chat.reply(model, ours, asked, max_new_tokens=60, temperature=0)
    if method == FULL:  # by transformers alone
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = plain.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].size(1) :].tolist()
        assert out[-1] in ends and not ends & set(out[:-1])
        assert tokenizer.decode(out, skip_special_tokens=True).strip() == said
    assert said and "user" not in said and len(ours(said)["input_ids"]) < 50
