"""A model's answers to the prompts of a run, against transformers' own generation of one prompt at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import models
import runs
from align.forgetting import answers
from align.forgetting.bench import Bench
from align.forgetting.prompts import ANSWER_TOKENS
from align.forgetting.records import Answer
from align.run_folder import reading
from align.run_folder.paths import RunDir
from align.run_folder.records import Prompt

TASK = Prompt(id="1", kind="task", value={"prompt": [{"role": "user", "content": "Repeat: a b"}]}, source="a row")
PLAIN = Prompt(id="2", kind="task", value={"prompt": "Once upon a time"})
GENERAL = Prompt(id="3", kind="general", value={"prompt": [{"role": "user", "content": "Who are you?"}]})


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """The ids of an answer without its end."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=special)["input_ids"]])
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": ANSWER_TOKENS, "pad_token_id": 0}
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
    return made[: made.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in made else made


def bench(template: bool = True, ends_at: int | None = None) -> Bench:
    """A random model; it ends at a token of one's choice."""
    tokenizer, model = models.lab_tokenizer(), models.tiny_llama()
    if ends_at is not None:
        model.config.eos_token_id = model.generation_config.eos_token_id = ends_at
    if not template:
        tokenizer.chat_template = None
    return Bench(model, tokenizer, autocast=False)


def test_each_prompt_gets_the_greedy_answer_in_its_own_form() -> None:
    at = bench()
    texts = ["<|bos|><|user|>Repeat: a b<|end|><|assistant|>", "<|bos|>Once upon a time"]
    texts.append("<|bos|><|user|>Who are you?<|end|><|assistant|>")
    at.model.train()
    found = answers.ask(at, [TASK, PLAIN, GENERAL])
    assert at.model.training
    at.model.eval()
    for answer, text in zip(found, texts, strict=True):
        ids = greedy(at.model, at.tokenizer, text, special=False)
        assert answer.answer == at.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.tokens, answer.cut) == (len(ids), len(ids) == ANSWER_TOKENS)
    assert [answer.prompt for answer in found] == ["Repeat: a b", "Once upon a time", "Who are you?"]
    assert found[0].source == "a row" and found[0].cut


def test_an_answer_that_ended_is_not_cut() -> None:
    ids = greedy(bench().model, bench().tokenizer, "<|bos|>Once upon a time", special=False)
    end = ids[5]
    (answer,) = answers.ask(bench(ends_at=end), [PLAIN])
    assert (answer.tokens, answer.cut) == (ids.index(end), False)


class Talkative:
    """A tokenizer that reads every answer as one that goes on with another question."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.asked = tokenizer, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, **rest: Any) -> Any:
        return self.tokenizer(text, **rest)

    def decode(self, ids: list[int], **rest: Any) -> str:
        return " A friend.\nUser: And who"


def test_without_a_template_a_general_question_is_text_and_its_answer_ends_at_the_next() -> None:
    at = bench(template=False)
    (answer,) = answers.ask(at, [GENERAL])
    ids = greedy(at.model, at.tokenizer, "User: Who are you?\nAssistant:", special=True)
    assert answer.answer == at.tokenizer.decode(ids, skip_special_tokens=True).strip() and answer.cut
    at.tokenizer = Talkative(at.tokenizer)  # type: ignore[assignment]
    first, second = answers.ask(at, [GENERAL, PLAIN])
    assert (first.answer, first.cut) == ("A friend.", False)
    assert (second.answer, second.cut) == ("A friend.\nUser: And who", True)  # a row of the task says what it says


def test_a_line_is_written_for_each_prompt_and_no_file_for_none(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    spent = answers.write(bench(), [TASK, PLAIN], path)
    assert list(reading.rows(path, Answer)) == answers.ask(bench(), [TASK, PLAIN])
    assert spent.seconds > 0 and spent.cpu_seconds > 0
    assert answers.write(bench(), [], tmp_path / "none") == answers.Spent() and not (tmp_path / "none").exists()


def test_a_run_keeps_the_answers_of_the_base_and_of_each_stage(gated: runs.Gated) -> None:
    run = RunDir(gated.run)
    base, sft, dpo = (
        reading.rows(path, Answer) for path in (run.base_answers, run.stage("sft").answers, run.stage("dpo").answers)
    )
    asked = [answer.id for answer in base]
    assert [answer.id for answer in sft] == [answer.id for answer in dpo] == asked and len(asked) == 12
    assert {answer.source for answer in base[:6]} == {"a held-out row of sft"}  # the one stage with held-out rows
    assert [answer.answer for answer in base] != [answer.answer for answer in sft]
    assert "The same questions before and after" in (gated.run / "report.html").read_text(encoding="utf-8")
    shown = next(answer for answer in sft if answer.answer != base[asked.index(answer.id)].answer)
    assert shown.answer.split()[0] in gated.said_at_the_stop


@pytest.mark.slow
def test_lost_answers_are_asked_again_of_the_trained_policies(gated: runs.Gated, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(gated.run, run.root)
    paths = [run.base_answers, run.stage("sft").answers, run.stage("dpo").answers]
    before, weights = [path.read_text(encoding="utf-8") for path in paths], runs.weights(run.root)
    for path in paths:
        path.unlink()
    done = runs.run(gated.folder / "small.yaml", run.root, "--set", "forgetting.on_violation=warn")
    assert "sft: trained already; only its answers are written again" in done.stderr
    assert "measuring" not in done.stderr and runs.weights(run.root) == weights
    assert [path.read_text(encoding="utf-8") for path in paths] == before
