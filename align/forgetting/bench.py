"""A model on the bench: one forward pass over many questions, texts or prompts, rows of similar length together.

An answer is exactly right under greedy decoding if and only if, with the right answer given, the most probable token
at each of its positions is the right one. That takes one forward pass instead of one a token;
benchmarks/measure.py holds that the two agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting import decoder, greedy
from align.forgetting.battery.likelihoods import Asked, log_likelihoods, prefix
from align.forgetting.measurements import Split
from align.forgetting.probes import Question
from align.forgetting.records import Sample
from align.forgetting.share import Share
from align.policy import generation
from align.policy.unwrapped import unwrapped

LOGIT_BUDGET = 2**26  # elements of one batch's logits: 128 MiB in bfloat16
TOKEN_BUDGET = 2**14  # tokens of one batch, padding included
ROWS = 512  # of one batch
ANSWER_TOKENS = 32  # of an answer that is graded or shown
ANSWERS = 64  # rows of a batch that is generated: several processes share its batches

Record = dict[str, Any]
Encoded = tuple[list[list[int]], list[list[int]]]  # token ids of prompts, and of their answers


@dataclass
class Bench:
    """A model on the bench.

    Attributes:
        autocast: arithmetic precision of training, so that the same model is measured that was trained.
        encoded: token ids of (probe, split); share it between benches of one tokenizer, since rendering and
            tokenising the questions costs as much as answering them.
        share: the batches of this process; all processes get all figures.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    autocast: bool
    items: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    encoded: dict[tuple[str, Split], Encoded] = field(default_factory=dict)
    asked: dict[str, list[Asked]] = field(default_factory=dict)
    share: Share = field(default_factory=Share)

    @property
    def device(self) -> torch.device:
        found = next(self.model.parameters()).device
        assert isinstance(found, torch.device)
        return found

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Those of position `first` and after: (batch, tokens - first, vocabulary)."""
        # as positions rather than a number: of a slice the head's product is twice as slow
        keep = {"logits_to_keep": torch.arange(first, ids.shape[1], device=ids.device)} if self._keeps() else {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        return found if keep else found[:, found.shape[1] - ids.shape[1] + first :]  # a learnt prompt stands before it

    def _keeps(self) -> bool:
        """Whether the model can apply its head to the last positions alone, as most can; not behind a learnt prompt."""
        if getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
            return False
        return "logits_to_keep" in inspect.signature(unwrapped(self.model).forward).parameters


def encode_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> Encoded:
    """Token ids of questions and their right answers, each answer through its end token."""
    asked, right = [question.prompt for question in questions], [question.answer for question in questions]
    return encode.question_ids(asked, right, TextTokenizer.of(tokenizer))


def exact(bench: Bench, questions: Encoded) -> list[bool]:
    """Whether greedy decoding would give exactly the right answer and end there, for each question."""
    return [all(hits) for hits in hits_of(bench, *questions)]


def hits_of(bench: Bench, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[list[bool]]:
    """For each answer token: whether it is the most probable one, given all before it."""
    out: dict[int, list[bool]] = {}
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    starts = [max(len(prompt) - 1, 0) for prompt in prompts]  # a token is predicted one position before it
    for _, batch in bench.share.mine(batches(bench, rows, starts)):
        ids, mask = padded(bench, [rows[i] for i in batch])
        where = [(k, starts[i] + t) for k, i in enumerate(batch) for t in range(len(answers[i]))]
        row, position = torch.tensor(where, dtype=torch.long, device=ids.device).reshape(-1, 2).unbind(1)
        first = min(starts[i] for i in batch)
        best = bench.logits(ids, mask, first)[row, position - first].argmax(-1)
        hits = iter((best == ids[row, position + 1]).tolist())
        for i in batch:
            out[i] = [next(hits) for _ in answers[i]]
    found = bench.share.together(out)
    return [found[i] for i in range(len(rows))]


def likelihoods(bench: Bench, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Negative log-likelihood in nats and number of predicted tokens of each text: of the text alone.

    No end is appended, which a model may come to expect better or worse than the text goes on. What the tokenizer puts
    before a text is context, and does not count.
    """
    limit = getattr(bench.model.config, "max_position_embeddings", None)
    rows, firsts = text_ids(bench.tokenizer, texts)
    rows = [row[:limit] for row in rows]
    if decoder.masked(bench.model, max(map(len, rows), default=0)):
        return _likelihoods(bench, rows, firsts)
    out: dict[int, tuple[float, int]] = {}
    for _, batch in bench.share.mine(batches(bench, rows, [0] * len(rows))):
        ids, mask = padded(bench, [rows[i] for i in batch])
        logits = bench.logits(ids, mask)[:, :-1].float()
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        for k, i in enumerate(batch):
            mask[k, : firsts[i]] = 0
        sums = (flat.view(ids[:, 1:].shape) * mask[:, 1:]).sum(1).tolist()
        for k, i in enumerate(batch):
            out[i] = (sums[k], max(len(rows[i]) - firsts[i], 0))
    found = bench.share.together(out)
    return [found[i] for i in range(len(rows))]


def _likelihoods(bench: Bench, rows: Sequence[list[int]], firsts: Sequence[int]) -> list[tuple[float, int]]:
    """The same of token ids, without padding."""
    longer = [i for i, (row, first) in enumerate(zip(rows, firsts, strict=True)) if len(row) > first]
    asked = [Asked(rows[i][: firsts[i]], [rows[i][firsts[i] :]], [0]) for i in longer]
    pad = bench.tokenizer.pad_token_id
    sums = log_likelihoods(bench.model, [asked], pad=pad, autocast=bench.autocast, share=bench.share)[0]
    found = {i: (-likelihood, len(rows[i]) - firsts[i]) for i, (likelihood,) in zip(longer, sums, strict=True)}
    return [found.get(i, (0.0, 0)) for i in range(len(rows))]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Token ids of texts, with what the tokenizer puts before a text and without what it puts after one; and the
    position of the first token of each that is predicted."""
    rows: list[list[int]] = []
    firsts: list[int] = []
    for text in texts:
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(text)["input_ids"])
        lead = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        if bare[:1] == [tokenizer.bos_token_id]:  # the text begins with the mark already
            lead = 0
        rows.append(whole[:lead] + bare)
        firsts.append(max(lead, 1))  # nothing stands before the very first
    return rows, firsts


def generate(bench: Bench, prompts: Sequence[str], tokens: int) -> list[list[int]]:
    """Greedy answers as token ids, without the end token, which follows where the answer ended by itself."""
    return generate_ids(bench, encode.prompt_ids(prompts, TextTokenizer.of(bench.tokenizer)), tokens)


def generate_ids(bench: Bench, rows: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """The same, of prompts as token ids."""
    out: dict[int, list[int]] = {}
    stop = generation.ends(bench.model, bench.tokenizer)
    # of all that is computed, the logits of one token of each row at a time are kept
    for _, batch in bench.share.mine(
        batches(bench, rows, [len(row) + tokens - 1 for row in rows], extra=tokens, most=ANSWERS)
    ):
        with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.autocast):
            made = _greedy(bench, [rows[i] for i in batch], tokens, stop)
        out |= dict(zip(batch, made, strict=True))
    found = bench.share.together(out)
    return [found[i] for i in range(len(rows))]


def _greedy(bench: Bench, rows: Sequence[list[int]], tokens: int, stop: Sequence[int]) -> list[list[int]]:
    """Of one batch."""
    if decoder.ordinary(bench.model):
        begun = prefix(rows) if decoder.window(bench.model) is None else 0  # padding after it would push it away
        ids, mask = padded(bench, [row[begun:] for row in rows], left=True)
        return greedy.answers(bench.model, rows[0][:begun], ids, mask, tokens, stop)
    ids, mask = padded(bench, rows, left=True)
    with generation.settings(bench.model, generation.plain(stop, bench.tokenizer.pad_token_id, tokens)):
        made = bench.model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
    return [generation.cut(row, stop) for row in made]


def batches(
    bench: Bench, rows: Sequence[list[int]], starts: Sequence[int], *, extra: int = 0, most: int = ROWS
) -> list[list[int]]:
    """The places of rows of similar length together, the longest first.

    Args:
        starts: the first position of each row whose logits are wanted.
        extra: tokens that each row will grow by.
        most: rows of a batch.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = []
    while order:
        found.append(_fill(bench, rows, starts, order, extra, most))
    return found


def padded(bench: Bench, rows: Sequence[list[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, both (rows, tokens), padded on the right or on the left."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), bench.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[k, where] = torch.tensor(row, dtype=torch.long)
        mask[k, where] = 1
    return ids.to(bench.device), mask.to(bench.device)


def _fill(
    bench: Bench, rows: Sequence[list[int]], starts: Sequence[int], order: list[int], extra: int, most: int
) -> list[int]:
    """Take as many of the longest rows left in `order` as the budgets allow, and at least one."""
    vocabulary = bench.model.config.get_text_config().vocab_size
    width = len(rows[order[-1]]) + extra
    first = width
    batch: list[int] = []
    while order and len(batch) < most:
        first = min(first, starts[order[-1]])
        count = len(batch) + 1
        if batch and (count * width > TOKEN_BUDGET or count * vocabulary * (width - first) > LOGIT_BUDGET):
            break
        batch.append(order.pop())
    return batch
