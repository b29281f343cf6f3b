"""`mask_above_perplexity`: which tokens are left untrained, against the policy computed row by row; what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import load_file

import runs
from align.data.encode import IGNORE
from align.errors import AlignError
from align.lab import data
from align.policy import stack
from align.report import masked as told
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Ticket
from align.trainers import token_mask
from align.trainers.sft import SftTrainer
from models import BASE, FULL, LORA, QLORA, Stages, settings

LIMIT = 2.5
ROWS = data.rows("lab/helpdesk", n=24)
SPECTRUM = settings("spectrum")


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def sft(
    stages: Stages, policy: Policy = BASE, method: dict[str, Any] = LORA, *, id: str = "sft", **more: Any
) -> Ticket:
    keys = {"mask_above_perplexity": LIMIT, **more.pop("keys", {})}
    given = {"rows": ROWS, "dtype": "float32", "bf16": False, **more}
    return stages.ticket(id, "sft", policy, method, keys=keys, **given)


@contextmanager
def trained_rows() -> Iterator[list[Any]]:
    """The table that the trainer gets, read at once: it goes with the stage."""
    seen: list[Any] = []
    own = SftTrainer.__init__

    def made(self: Any, **arguments: Any) -> None:
        seen.extend(arguments["train_dataset"].to_list())
        own(self, **arguments)

    with mock.patch.object(SftTrainer, "__init__", made):
        yield seen


def tables(stages: Stages, ticket: Ticket) -> tuple[list[Any], list[Any]]:
    """The rows as a stage trains them, and as it would without a limit."""
    with trained_rows() as found:
        stages.execute(ticket)
    plain = ticket.model_copy(
        update={
            "stage": f"{ticket.stage}_plain",
            "keys": {**ticket.keys, "mask_above_perplexity": None, "mask_at_random": False},
        }
    )
    with trained_rows() as whole:
        stages.execute(plain)
    return found, whole


def perplexities(model: Any, row: dict[str, Any]) -> list[float]:
    """Of each token after the first."""
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    return torch.exp(-logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]).tolist()


def expected(model: Any, row: dict[str, Any], limit: float = LIMIT) -> list[int]:
    """The labels of a row with the improbable ones masked, one token after the other."""
    of_token = [0.0, *perplexities(model, row)]
    assert all(abs(value - limit) > 1e-4 for value in of_token), "too near the limit to tell"
    return [IGNORE if value > limit else label for label, value in zip(row["labels"], of_token, strict=True)]


@pytest.mark.parametrize(
    "method", [LORA, FULL, pytest.param(SPECTRUM, marks=pytest.mark.slow)], ids=["lora", "full", "spectrum"]
)
def test_what_the_incoming_policy_finds_improbable_is_not_trained(stages: Stages, method: dict[str, Any]) -> None:
    """Of an adapted policy, on which another adapter is trained, and of one whose weights are."""
    policy = stages.execute(stages.ticket("before", "sft", BASE, LORA, dtype="float32", bf16=False))
    found, whole = tables(stages, sft(stages, policy, method))
    plain = stack.load_policy(policy, {"dtype": "float32"}, stages.run.root).eval()
    labels = [expected(plain, row) for row in whole]
    left = [row for row in labels if any(label != IGNORE for label in row)]
    assert [row["labels"] for row in found] == left
    tokens, masked = (
        sum(label != IGNORE for row in rows for label in row) for rows in ([w["labels"] for w in whole], labels)
    )
    assert stages.outcomes["sft"].data["masked"] == {
        "above_perplexity": LIMIT, "at_random": False, "answer_tokens": tokens,
        "masked_tokens": tokens - masked, "rows_left_out": len(whole) - len(left),
    }  # fmt: skip
    assert 0.1 < 1 - masked / tokens < 0.9
    assert "masked" not in stages.outcomes["sft_plain"].data
    kept = load_file(stages.run.stage("sft").token_log_probs)["log_probs"]
    flat = [
        math.log(p)
        for row in whole
        for p, label in zip([1.0, *perplexities(plain, row)], row["labels"], strict=True)
        if label != IGNORE
    ]
    torch.testing.assert_close(-kept, torch.tensor(flat, dtype=torch.float32), atol=1e-3, rtol=1e-3)


def test_as_many_tokens_of_each_row_are_masked_at_random(stages: Stages) -> None:
    found, whole = tables(stages, sft(stages, id="masked"))
    drawn, _ = tables(stages, sft(stages, id="random", keys={"mask_at_random": True}))
    other = sft(stages, id="other", keys={"mask_at_random": True}).model_copy(update={"seed": 4})
    reseeded, _ = tables(stages, other)

    def counts(rows: list[Any]) -> list[int]:
        return [sum(label != IGNORE for label in row["labels"]) for row in rows]

    assert counts(drawn) == counts(found) == counts(reseeded)
    assert [row["input_ids"] for row in drawn] == [row["input_ids"] for row in found]
    sets = [[row["labels"] for row in rows] for rows in (found, drawn, reseeded, whole)]
    assert all(one != two for n, one in enumerate(sets) for two in sets[:n])
    allowed = [row["labels"] for row in whole if row["input_ids"] in [kept["input_ids"] for kept in found]]
    for row, labels in zip(drawn, allowed, strict=True):
        assert all(a in (b, IGNORE) for a, b in zip(row["labels"], labels, strict=True))


def test_replayed_rows_are_trained_whole(stages: Stages) -> None:
    found, whole = tables(stages, sft(stages, replay=data.rows("lab/general", n=8)))
    assert any(row["align_group"] for row in whole)
    replayed = [[row["labels"] for row in rows if row["align_group"]] for rows in (found, whole)]
    assert replayed[0] == replayed[1]
    assert [r["labels"] for r in found if not r["align_group"]] != [r["labels"] for r in whole if not r["align_group"]]


def test_prompts_and_texts_are_masked_where_they_are_trained(stages: Stages) -> None:
    """The first token of a text has nothing before it: it is no token that is predicted."""
    rows = [*ROWS[:4], {"text": "The capital of Peru is Lima."}]
    found, whole = tables(
        stages, sft(stages, rows=rows, keys={"completion_only_loss": False, "mask_above_perplexity": 50.0})
    )
    plain = stack.load_policy(BASE, {"dtype": "float32"}, stages.run.root).eval()
    assert [row["labels"] for row in found] == [expected(plain, row, 50.0) for row in whole]
    assert all(row["labels"][0] == row["input_ids"][0] for row in found)
    assert stages.outcomes["sft"].data["masked"]["answer_tokens"] == sum(len(row["input_ids"]) - 1 for row in whole)


def test_packed_rows_are_masked_before_they_are_packed(stages: Stages) -> None:
    """Each by itself, in pieces where it is longer than a packed row."""
    found, whole = tables(stages, sft(stages, packing=True, max_length=16, packing_strategy="wrapped"))
    plain = stack.load_policy(BASE, {"dtype": "float32"}, stages.run.root).eval()
    for row, full in zip(found, whole, strict=True):
        assert len(full["input_ids"]) > 16
        parts = [
            {name: full[name][at : at + 16] for name in ("input_ids", "labels")}
            for at in range(0, len(full["input_ids"]), 16)
        ]
        assert row["labels"] == [label for part in parts for label in expected(plain, part)]


def test_rows_without_a_token_left_are_left_out_and_named(stages: Stages) -> None:
    odd = {"messages": [{"role": "user", "content": "Where is my order?"}, {"role": "assistant", "content": "zq"}]}
    ticket = sft(stages, rows=[*ROWS[:8], odd], keys={"mask_above_perplexity": 1.0001})
    with mock.patch.object(token_mask.Limit, "beyond", lambda self, found: np.full(len(found), len(found) < 6)):
        stages.execute(ticket)
    assert stages.outcomes["sft"].data["masked"]["rows_left_out"] == 1
    assert stages.outcomes["sft"].warnings == [
        "1 row has no token left to train with `mask_above_perplexity: 1.0001` and is left out; "
        "the first has the answer 'zq'"
    ]
    with (
        mock.patch.object(token_mask.Limit, "beyond", lambda self, found: np.full(len(found), True)),
        pytest.raises(AlignError) as refused,
    ):
        stages.execute(sft(stages, id="none"))
    assert str(refused.value) == (
        "no token of the answers is left to train: all have a perplexity above 2.5\n"
        "  -> raise `stages.none.mask_above_perplexity`, or leave it out"
    )


@pytest.mark.parametrize("method", [LORA, pytest.param(QLORA, marks=pytest.mark.slow)], ids=["lora", "qlora"])
def test_a_resumed_stage_reads_what_is_kept_and_has_the_same_weights(tmp_path: Path, method: dict[str, Any]) -> None:
    def weights(stages: Stages) -> dict[str, str]:
        return {file.name: files.file_sha256(file) for file in stages.run.stage("sft").model.glob("*.safetensors")}

    stages = Stages(RunDir(tmp_path))
    ticket = sft(stages, BASE, method, save_strategy="steps", save_steps=2)
    stages.execute(ticket)
    whole, here = weights(stages), stages.run.stage("sft")
    for damaged in (False, True):
        here.outcome.unlink()
        if damaged:  # of other rows: computed again
            here.token_log_probs.write_bytes(save({"log_probs": np.zeros(3, np.float32)}, {"rows": "x"}))
        ticket.resume_from = "checkpoints/checkpoint-2"
        with mock.patch.object(token_mask, "_computed", wraps=token_mask._computed) as computed:
            stages.execute(ticket)
        assert computed.call_count == damaged
        assert weights(stages) == whole


def test_the_share_is_told_in_words() -> None:
    data = {
        "above_perplexity": 2.5,
        "at_random": False,
        "answer_tokens": 5678,
        "masked_tokens": 1232,
        "rows_left_out": 0,
    }
    assert told.words({"masked": data}) == "21.7% of 5,678 answer tokens, those above a perplexity of 2.5"
    random = "21.7% of 5,678 answer tokens, drawn at random, as many as are above a perplexity of 2.5"
    assert told.words({"masked": data | {"at_random": True}}) == random
    assert told.words({"rows": 3}) == ""


RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: bfloat16}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    mask_above_perplexity: 2.5
    training: {learning_rate: 1.0e-3, max_steps: 4, per_device_train_batch_size: 8, save_steps: 2, logging_steps: 1}
"""


def test_the_command_tells_what_was_masked(tmp_path: Path) -> None:
    done = runs.run(runs.write(tmp_path, RECIPE), tmp_path / "run")
    words = told.words(runs.outcome(tmp_path / "run", "sft")["data"])
    assert f"sft: masked {words}" in done.stderr.splitlines()
    assert words in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    shown = runs.align("check", str(tmp_path / "small.yaml"))
    assert not shown.stdout.startswith("error")


@pytest.mark.slow
def test_two_processes_mask_the_same_tokens(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RECIPE)
    kept = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        size = f"stages.sft.training.per_device_train_batch_size={8 // processes}"
        runs.run(recipe, folder, "--processes", str(processes), "--set", size, cold=True)
        with safe_open(folder / "stages/sft/token_log_probs.safetensors", "numpy") as file:  # its header has no order
            kept.append((file.metadata(), file.get_tensor("log_probs").tobytes(), runs.outcome(folder, "sft")["data"]))
    assert kept[0] == kept[1]
