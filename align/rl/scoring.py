"""The scores of sampled answers: by reward models, token for token as they were sampled, and by Python functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError, Exit
from align.functions import calling
from align.policy import load as models
from align.policy import score_head, stack
from align.policy.score_head import Score
from align.policy.unwrapped import unwrapped
from align.rl.critic import Passes
from align.run_folder.records import Reward

COLUMNS = "align_columns"  # of a data set of prompts: the other columns of each row, as JSON


def columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of rows besides their prompts, each with the names of all, None where it has not that one."""
    found = [row.get("columns", {}) for row in rows]
    names = dict.fromkeys(name for one in found for name in one)
    return [{name: one.get(name) for name in names} for one in found]


@dataclass(frozen=True)
class Question:
    """Answers to be scored, one list each in the same order.

    Attributes:
        prompts, completions: texts, or conversations and the messages that answer them.
        prompt_ids, completion_ids: their tokens, as the policy saw and sampled them.
        columns: what else the rows of the prompts have, for each answer, all with the same names; or none at all.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    columns: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Closed:
    """Answers as reward models are trained on them: the words token for token as they were sampled, and after an answer
    that came to its end what stands there in training, which is where it is read.

    Attributes:
        ends: tokens with which the policy ends an answer.
    """

    tokenizer: TextTokenizer
    ends: frozenset[int]

    def rows(self, asked: Question) -> list[list[int]]:
        """The tokens of each prompt with its answer. One that was cut off gets no end that it does not have."""
        found = []
        for prompt, ids, words in zip(asked.prompts, asked.prompt_ids, asked.completion_ids, strict=True):
            ended = bool(words) and words[-1] in self.ends
            closing = self.tokenizer.closing(conversation=not isinstance(prompt, str)) if ended else []
            found.append([*ids, *(words[:-1] if ended else words), *closing])
        return found


class SharedModel:
    """A reward model that is adapters and a head on the policy's own base.

    Args:
        names: its adapters there.
    """

    def __init__(
        self, name: str, passes: Passes, names: Sequence[str], head: Score, pad: int, size: int, closed: Closed
    ) -> None:
        self.name, self.passes, self.names, self.head = name, passes, names, head
        self.pad, self.size, self.closed = pad, size, closed

    @torch.no_grad()
    def __call__(self, asked: Question) -> list[float]:
        """The score of each answer."""
        switchboard, lm = self.passes.switchboard, self.passes.lm
        assert switchboard is not None

        def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            with switchboard.acting(self.names):
                hidden = self.passes.hidden(lm.base_model, ids, mask)
            at = last_tokens(ids, self.pad)
            found: torch.Tensor = self.head(hidden[torch.arange(len(ids), device=ids.device), at])
            return found.squeeze(-1)

        return _batched(logits, self.closed.rows(asked), self.pad, self.size, lm.device)


class OwnModel:
    """A reward model of its own; with another tokenizer or chat template than the policy's it reads the text.

    Args:
        same: whether both are the policy's.
        size: answers in a batch.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: PreTrainedTokenizerBase, *, same: bool, size: int, closed: Closed
    ) -> None:
        self.name, self.model, self.same, self.size, self.closed = name, model, same, size, closed
        self.tokenizer, self.pad = TextTokenizer.of(tokenizer), padding(tokenizer)
        unwrapped(model).config.get_text_config().pad_token_id = self.pad

    @torch.no_grad()
    def __call__(self, asked: Question) -> list[float]:
        """The score of each answer."""

        def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return found.squeeze(-1)

        rows = self.closed.rows(asked) if self.same else self._reread(asked)
        return _batched(logits, rows, self.pad, self.size, next(self.model.parameters()).device)

    def _reread(self, asked: Question) -> list[list[int]]:
        """The answers in the tokens of this model. One that was cut off gets no end that it does not have."""
        values = [{"prompt": p, "completion": c} for p, c in zip(asked.prompts, asked.completions, strict=True)]
        found = []
        for row, value, sampled in zip(
            encode.encoded(values, self.tokenizer), values, asked.completion_ids, strict=True
        ):
            closing = self.tokenizer.closing(conversation=not isinstance(value["prompt"], str))
            cut = not (sampled and sampled[-1] in self.closed.ends) and row.ids[-len(closing) :] == closing
            found.append(row.ids[: -len(closing)] if cut else row.ids)
        return found


LARGEST = 1e9  # of a score: far from where a mean of squares leaves float32


class Function:
    """A reward function of the user's, with the signature that TRL's trainers give theirs.

    `f(prompts, completions, completion_ids, **columns) -> list of numbers`, None for an answer that it cannot score.
    """

    def __init__(self, reward: Reward) -> None:
        assert reward.path is not None and reward.function is not None
        self.name, self.path = reward.name, Path(reward.path)
        self.function = calling.load(self.path, reward.function, "reward function")

    def __call__(self, asked: Question) -> list[float | None]:
        """The score of each answer.

        Raises:
            AlignError: it raised, or gave something that no scores are.
        """
        called = f"the reward function '{self.name}' of {self.path.name}"
        names = asked.columns[0] if asked.columns else ()
        given = {name: [row[name] for row in asked.columns] for name in names} | {
            "prompts": list(asked.prompts),
            "completions": list(asked.completions),
            "completion_ids": [list(ids) for ids in asked.completion_ids],
        }
        try:
            found = self.function(**calling.taken(self.function, given))
        except BaseException as error:  # also what ends programs: it is the function's
            at = calling.line(error, self.path)
            what = f"{called} raised {calling.raised(error)}"
            first = f"the first prompt was {_shown(asked.prompts[0])}"
            raise AlignError(f"{what} ({at}; {first})", "correct it", exit=Exit.STAGE_FAILED) from error
        try:
            scores = list(found)
        except TypeError:
            what = f"{called} returned {type(found).__name__}, not a list of numbers"
            raise AlignError(what, "return one number per answer", exit=Exit.STAGE_FAILED) from None
        if len(scores) != len(asked.prompts):
            what = f"{called} returned {len(scores)} scores for {len(asked.prompts)} answers"
            raise AlignError(what, "return one number per answer", exit=Exit.STAGE_FAILED)
        return [None if one is None else self._number(one, asked.prompts[i], called) for i, one in enumerate(scores)]

    def _number(self, found: Any, prompt: Any, called: str) -> float:
        try:
            number = float(found)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            what = f"{called} returned {found!r} for the prompt {_shown(prompt)}"
            raise AlignError(
                what,
                f"return a number between -{LARGEST:g} and {LARGEST:g}, or None for no score",
                exit=Exit.STAGE_FAILED,
            )
        return number


Scorer = SharedModel | OwnModel | Function


def own_model(
    reward: Reward, keys: dict[str, Any], run: Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], size: int
) -> OwnModel:
    """Load a reward model beside the policy.

    Args:
        keys: the recipe's `model`.
        tokenizer: the policy's.
        ends: tokens with which the policy ends an answer.
        size: answers in a batch.
    """
    if reward.model is not None:
        root = Path(reward.root) if reward.root else run
        loaded = stack.load_reward(reward.model, keys, root)
        saved = reward.model.adapters[-1].path if reward.model.adapters else reward.model.weights
        own = AutoTokenizer.from_pretrained(root / str(saved)) if reward.root else tokenizer
    else:
        assert reward.path is not None
        dtype = models.dtype_of(keys.get("dtype", "auto"), trains_base=False)
        # the recipe lets code of its base run, not of whatever scores it
        plain = {**keys, "trust_remote_code": False}
        loaded = models.load_weights(reward.path, plain, dtype, None, gives="reward")
        own = AutoTokenizer.from_pretrained(reward.path)
    loaded.requires_grad_(False)
    same = own.get_vocab() == tokenizer.get_vocab() and own.chat_template in (None, tokenizer.chat_template)
    return OwnModel(reward.name, loaded, own, same=same, size=size, closed=closed(tokenizer, ends))


def shared_model(
    reward: Reward,
    names: Sequence[str],
    run: Path,
    passes: Passes,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    size: int,
) -> SharedModel:
    """A reward model whose adapters lie on the policy's base already, by the names in `names`."""
    assert reward.model is not None
    root = Path(reward.root) if reward.root else run
    head = score_head.of_adapter(root / reward.model.adapters[-1].path, passes.lm.device)
    return SharedModel(reward.name, passes, names, head, padding(tokenizer), size, closed(tokenizer, ends))


def closed(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> Closed:
    """How the policy's answers are read, with the tokens that end them."""
    return Closed(TextTokenizer.of(tokenizer), frozenset(ends))


def last_tokens(ids: torch.Tensor, pad: int) -> torch.Tensor:
    """(rows, tokens) -> where each row is scored: at its last token that is no padding, as transformers' models for
    sequence classification find it; a model that is trained and used by one rule."""
    places = torch.arange(ids.size(1), device=ids.device, dtype=torch.int32)
    return ((ids != pad).int() * places).argmax(-1)


def _batched(
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: Sequence[Sequence[int]],
    pad: int,
    size: int,
    device: torch.device,
) -> list[float]:
    """Scores of rows of tokens, padded on the right, those of like length together."""
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        width = max(len(rows[i]) for i in batch)
        ids = torch.full((len(batch), width), pad, device=device)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(rows[i])] = torch.tensor(list(rows[i]), device=device)
            mask[row, : len(rows[i])] = 1
        for i, value in zip(batch, logits(ids, mask).float().tolist(), strict=True):
            if not math.isfinite(value):
                what = f"a reward model scored an answer {value}"
                raise AlignError(what, "train it again at a lower learning rate", exit=Exit.STAGE_FAILED)
            found[i] = value
    return found


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found)


def _shown(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text if len(text) <= 60 else text[:59] + "…")
