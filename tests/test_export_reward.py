"""A reward model leaves its run: whole, scored by plain transformers alike; and `reward:` takes it from there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import runs
from align.errors import AlignError
from align.policy import score_head, stack
from align.results import export, find
from models import preferences

RECIPE = """\
name: judged
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora, lora: {r: 8, target_modules: [embed_tokens, q_proj, v_proj]}}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {learning_rate: 4.0e-3, max_steps: 4, per_device_train_batch_size: 8, save_strategy: "no"}
  judge:
    stage: reward
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 48}
    parameterization: {method: METHOD}
    training: {learning_rate: 2.0e-3, max_steps: 6, per_device_train_batch_size: 8, save_strategy: "no"}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of adapters: one on the tied embedding from a policy, its own on top with the head."""
    here = tmp_path_factory.mktemp("judged")
    runs.run(runs.write(here, RECIPE.replace("METHOD", "lora")), here / "run")
    return here / "run"


@torch.no_grad()
def scores(model: Any, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [row["prompt"] + row[side] for row in preferences(6) for side in ("chosen", "rejected")]
    rows = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    return model(**rows).logits[:, 0].float()


def trained(run: Path) -> Any:
    ticket, outcome = find.find(run, "judge", rewards=True)
    assert outcome.reward is not None
    model = stack.load_reward(outcome.reward, ticket.model, run)
    model.config.pad_token_id = AutoTokenizer.from_pretrained(run / "stages/judge/model").pad_token_id
    return model


def check(run: Path, out: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    assert type(plain).__name__ == "LlamaForSequenceClassification" and plain.config.num_labels == 1
    theirs, ours = scores(plain, out), scores(trained(run), out)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01


def test_a_reward_model_of_adapters_is_written_out_whole(run: Path, tmp_path: Path) -> None:
    said = runs.align("export", str(run), str(tmp_path / "out"), "--stage", "judge")
    figure = r"[\d.]+(e-\d+)?"
    assert re.fullmatch(
        rf".*: [\d.]+ MB, merged; scores differ from the adapted model's by {figure} \(root mean square\)\n",
        said.stdout,
    )
    assert said.stderr == ""
    check(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "The reward model after the stage `judge`" in card and "library_name: transformers" in card
    assert "- merged into the weights of the base: scores differ from the adapted model's by " in card


def test_whole_weights_of_a_reward_model(tmp_path: Path) -> None:
    runs.run(runs.write(tmp_path, RECIPE.replace("METHOD", "full").replace("4.0e-3", "1.0e-3")), tmp_path / "run")
    done = export.export(tmp_path / "run", "judge", tmp_path / "out", "merged")
    assert done.merge is None
    check(tmp_path / "run", tmp_path / "out")


def test_the_head_stays_exact_in_weights_of_few_bits(run: Path, tmp_path: Path) -> None:
    made = export.export(run, "judge", tmp_path / "out", "merged", "bfloat16").merge
    assert made is not None and made.verdict == "fine" and made.kl < 1e-4 < 1e-2 < made.moved_kl
    tensors = load_file(tmp_path / "out/model.safetensors")
    own = load_file(run / "stages/judge/model/adapter_model.safetensors")
    [head] = [tensor for name, tensor in own.items() if score_head.is_head(name)]
    assert torch.equal(tensors["score.weight"], head) and head.dtype == torch.float32
    assert {tensor.dtype for name, tensor in tensors.items() if name != "score.weight"} == {torch.bfloat16}


def test_its_adapters_alone(run: Path, tmp_path: Path) -> None:
    export.export(run, "judge", tmp_path / "out", "adapter")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["1-sft", "2-judge", "README.md"]
    assert "score" in json.loads((tmp_path / "out/2-judge/adapter_config.json").read_text())["modules_to_save"]


def test_another_recipe_takes_the_export(run: Path, tmp_path: Path) -> None:
    export.export(run, "judge", tmp_path / "judge", "merged")
    text = RECIPE.partition("stages:")[0] + (
        "stages:\n  ppo:\n    data: {source: lab/helpdesk, limit: 16}\n    reward: ./judge\n    training: "
        "{max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 8, bf16: false}\n"
    )
    runs.run(runs.write(tmp_path, text), tmp_path / "ppo")
    assert runs.outcome(tmp_path / "ppo", "ppo")["steps"] == 1


def test_nobody_talks_to_a_reward_model(run: Path, tmp_path: Path) -> None:
    says = (
        f"stage 'judge' of '{run}' trained a reward model, which scores answers but cannot write them\n"
        f"  -> choose one of: sft; or export it: align export {run} FOLDER --stage judge"
    )
    said = runs.align("chat", str(run), "--stage", "judge", code=2)
    assert said.stderr == f"error {says}\n" and said.stdout == ""
    with pytest.raises(AlignError) as caught:
        find.find(run, "judge")
    assert str(caught.value) == says
    assert find.find(run, None, rewards=True)[1].stage == "sft", "the last policy, where none is named"
