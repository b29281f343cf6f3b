"""A new user's own files: a small model folder made from a config, Alpaca rows and ShareGPT preferences."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import runs

NOUNS = ["river", "stone", "lamp", "garden", "letter", "bridge", "window", "forest", "engine", "market"]
VERBS = ["moves", "holds", "finds", "warms", "follows", "opens", "carries", "shows", "keeps", "turns"]


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}." for _ in range(count))


def make_model(folder: Path) -> None:
    """A Llama of random weights and its tokenizer, without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([sentences(i, 20) for i in range(50)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_model(folder / "model")
    alpaca = [
        {"instruction": f"Write {i}.", "input": "" if i % 2 else sentences(i, 1), "output": sentences(i, 3)}
        for i in range(60)
    ]
    (folder / "alpaca.json").write_text(json.dumps(alpaca, indent=2), encoding="utf-8")
    pairs = [
        {
            "conversations": [{"from": "human", "value": f"Tell me about {i}."}],
            "chosen": {"from": "gpt", "value": sentences(i, 2)},
            "rejected": {"from": "gpt", "value": sentences(i + 99, 2)},
        }
        for i in range(40)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return folder


RECIPE = """\
name: mine
model: {base: ./model, chat_template: plain}
pipeline: sft_dpo
parameterization: {method: lora}
stages:
  sft:
    data: alpaca.json
    eval_data: 0.1
    training: {max_steps: 6, per_device_train_batch_size: 4}
  dpo:
    data: pairs.json
    training: {max_steps: 4, per_device_train_batch_size: 4}
"""


def test_from_check_to_report(project: Path) -> None:
    (project / "mine.yaml").write_text(RECIPE.replace(", chat_template: plain", ""), encoding="utf-8")
    refused = runs.align("check", "mine.yaml", cwd=project, code=2)
    assert (
        "mine.yaml:2:9: the base './model' has no chat template, and 'sft' and 'dpo' train on chats\n"
        "  -> write `chat_template: plain` under `model:`, or name a .jinja file there"
    ) in refused.stderr

    (project / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    checked = runs.align("check", "mine.yaml", cwd=project).stdout
    assert "sft: sft from base, lora, 52 rows, 8 held out" in checked
    ran = runs.align("run", "mine.yaml", cwd=project)
    assert "report: runs/mine/report.html" in ran.stdout
    assert "general text" in ran.stdout and "cannot show forgetting" in ran.stdout
    outcome = runs.outcome(project / "runs" / "mine", "sft")
    assert outcome["metrics"]["eval_loss"] > 0 and outcome["data"]["eval_rows"] == 8
    page = (project / "runs/mine/report.html").read_text(encoding="utf-8")
    assert "general text" in page and "cannot show forgetting" in page
    assert runs.align("chat", "runs/mine", stdin="Hello\n", cwd=project).returncode == 0


@pytest.mark.slow
def test_without_a_recipe_one_is_written_and_can_be_run_again(project: Path) -> None:
    arguments = ("run", "--model", "./model", "--data", "alpaca.json", "--method", "full")
    first = runs.align(*arguments, cwd=project)
    assert "wrote model-alpaca-sft-full.yaml; running it" in first.stderr
    again = runs.align("run", "model-alpaca-sft-full.yaml", cwd=project)
    assert "sft: done already" in again.stderr
