"""A model's answers to the skills of the battery, all skills in one go, so that rows of one length share a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.data.tokenizer import TextTokenizer
from align.forgetting.battery import asking
from align.forgetting.battery.likelihoods import Asked, log_likelihoods
from align.forgetting.battery.skill import Item
from align.forgetting.measurements import Split
from align.forgetting.probes import Battery
from align.forgetting.share import Share

Generate = Callable[[Sequence[list[int]], Sequence[int]], list[str]]
"""Token ids of prompts, and how many tokens each answer may have -> the answers."""


@dataclass(frozen=True)
class Answer:
    """What a model answers to an item.

    Attributes:
        said: the likeliest of the choices, or what was generated.
        probability: of the right choice, among the choices; None where the answer is checked.
    """

    probe: str
    split: Split
    id: str
    item: Item
    right: bool
    said: str
    probability: float | None = None

    def line(self) -> dict[str, Any]:
        """Its line in items.jsonl."""
        found = {"probe": self.probe, "split": self.split, "id": self.id, "score": int(self.right), "said": self.said}
        return found if self.probability is None else found | {"p": round(self.probability, 6)}


def encode(probe: Battery, tokenizer: PreTrainedTokenizerBase) -> list[Asked]:
    """Token ids of a skill's items, in the order of the gate and then the report."""
    text = TextTokenizer.of(tokenizer)
    items = [item for half in probe.items.values() for item in half.values()]
    if probe.skill.scorer == "choice":
        return asking.choices(items, probe.skill.shots, text)
    return [Asked(ids, [], []) for ids in asking.prompts(items, probe.skill.shots, text)]


def answers(
    model: Any,
    probes: Sequence[tuple[Battery, list[Asked]]],
    generate: Generate,
    *,
    pad: int,
    autocast: bool,
    share: Share | None = None,
) -> list[Answer]:
    """The answers to all items, skill by skill.

    Args:
        probes: each skill with its encoded items.
        generate: greedy answers of the model.
        pad, autocast, share: as in `log_likelihoods`.
    """
    chosen = [(probe, encoded) for probe, encoded in probes if probe.skill.scorer == "choice"]
    groups = log_likelihoods(model, [encoded for _, encoded in chosen], pad=pad, autocast=autocast, share=share)
    scores = iter(
        _counted(one, asked, probe.skill.per_token)
        for (probe, encoded), group in zip(chosen, groups, strict=True)
        for one, asked in zip(group, encoded, strict=True)
    )
    checked = [n for n, (probe, _) in enumerate(probes) if probe.skill.scorer == "check"]
    prompts = [(asked.shared, probes[n][0].skill.tokens) for n in checked for asked in probes[n][1]]
    made = iter(generate([ids for ids, _ in prompts], [tokens for _, tokens in prompts]) if prompts else [])
    written = {n: [next(made) for _ in probes[n][1]] for n in checked}
    found = []
    for number, (probe, _) in enumerate(probes):
        said = iter(written.get(number, []))
        for split, half in probe.items.items():
            for id, item in half.items():
                if probe.skill.scorer == "choice":
                    found.append(_chosen(probe, split, id, item, next(scores)))
                else:
                    found.append(_checked(probe, split, id, item, next(said)))
    return found


def _counted(scores: Sequence[float], asked: Asked, per_token: bool) -> list[float]:
    """What the choices of a question count by."""
    lengths = [len(rest) - first for rest, first in zip(asked.rest, asked.first, strict=True)]
    return [score / length if per_token else score for score, length in zip(scores, lengths, strict=True)]


def _chosen(probe: Battery, split: Split, id: str, item: Item, scores: Sequence[float]) -> Answer:
    right, said, probability = likeliest(item.choices, item.answer, scores)
    return Answer(probe.name, split, id, item, right, said, probability)


def likeliest(choices: Sequence[str], answer: str, scores: Sequence[float]) -> tuple[bool, str, float]:
    """Whether the likeliest choice is the right one, which it is, and the probability of the right one among them.

    Of equally likely ones a wrong one is taken, and a model without finite scores is wrong.

    Args:
        scores: the log-likelihood of each choice in nats.
    """
    right = choices.index(answer)
    if not all(map(math.isfinite, scores)):
        return False, "", 0.0
    best = max(range(len(scores)), key=lambda i: (scores[i], i != right))
    weights = [math.exp(score - max(scores)) for score in scores]
    return best == right, choices[best], weights[right] / sum(weights)


def _checked(probe: Battery, split: Split, id: str, item: Item, said: str) -> Answer:
    assert probe.skill.check is not None
    said = said.split(asking.STOP, 1)[0].strip()
    return Answer(probe.name, split, id, item, probe.skill.check(item, said), said)
