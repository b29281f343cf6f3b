"""A model's answers to the probes of a user, those that need the same of it in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting.battery import answering, asking
from align.forgetting.battery.likelihoods import log_likelihoods
from align.forgetting.battery.skill import Item
from align.forgetting.bench import Bench, generate_ids
from align.forgetting.own import scoring
from align.forgetting.own.items import OwnItem
from align.forgetting.own.kinds import Answered, Chosen, Greedy, Own, Task
from align.run_folder import heartbeats

Line = dict[str, Any]  # of items.jsonl


def prepare(probes: Sequence[Own]) -> None:
    """Import what scores, and load the tasks of the harness, before any weights are loaded.

    Raises:
        AlignError: something of that cannot be done.
    """
    for probe in probes:
        if isinstance(probe, Answered):
            scoring.of(probe.scorer)
        elif isinstance(probe, Task):
            from align.forgetting.own import harness

            harness.prepare(probe)


def lines(bench: Bench, probes: Sequence[Own]) -> dict[str, list[Line]]:
    """What was measured of each probe, item by item.

    Raises:
        AlignError: a scorer raised or returned no score, with the place of the item.
    """
    found: dict[str, list[Line]] = {}
    first = bench.share.first  # the harness does not share a task among processes
    answered = [probe for probe in probes if isinstance(probe, Answered)]
    for needs in dict.fromkeys(probe.needs for probe in answered):
        found |= _greedy(bench, [probe for probe in answered if probe.needs == needs], needs)
    found |= _chosen(bench, [probe for probe in probes if isinstance(probe, Chosen)])
    for probe in probes:
        if isinstance(probe, Task):
            from align.forgetting.own import harness

            with heartbeats.during("harness"):
                made = {0: harness.lines(bench.model, bench.tokenizer, probe, autocast=bench.autocast)} if first else {}
                found[probe.name] = bench.share.together(made)[0]
    return found


def chance(probe: Own) -> float:
    """The share that guessing gets right."""
    if isinstance(probe, Task):
        from align.forgetting.own import harness

        return harness.chance(probe)
    return probe.chance


def _greedy(bench: Bench, probes: Sequence[Answered], needs: Greedy) -> dict[str, list[Line]]:
    """Scored greedy answers of probes that want the same number of tokens."""
    items = [item for probe in probes for half in probe.items.values() for item in half.values()]
    asked = [tuple(ids) for ids in prompts(items, bench.tokenizer)]
    once = list(dict.fromkeys(asked))  # several probes may score the answers to one file
    made = dict(zip(once, generate_ids(bench, [list(ids) for ids in once], needs.tokens), strict=True))
    answers = iter([made[ids] for ids in asked])
    written_out = TextTokenizer.of(bench.tokenizer).template is None
    found: dict[str, list[Line]] = {}
    for probe in probes:
        score = scoring.of(probe.scorer)
        found[probe.name] = []
        for split, half in probe.items.items():
            for id, item in half.items():
                said = bench.tokenizer.decode(next(answers), skip_special_tokens=True)
                said = said.split(asking.STOP, 1)[0].strip() if written_out and item.is_conversation else said.strip()
                line = {"probe": probe.name, "split": split, "id": id, "score": score(item, said), "said": said}
                found[probe.name].append(line)
    return found


def prompts(items: Sequence[OwnItem], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of what is asked: through the chat template; without one a text is what it is, and a conversation is
    written out."""
    text = TextTokenizer.of(tokenizer)
    if text.template is not None:
        return asking.prompts([_battery_item(item) for item in items], (), text)
    asked: list[str | list[dict[str, Any]]] = [
        asking.written(item.messages) if item.is_conversation else str(item.prompt) for item in items
    ]
    return encode.prompt_ids(asked, text)


def _chosen(bench: Bench, probes: Sequence[Chosen]) -> dict[str, list[Line]]:
    """The likeliest choices."""
    items = [item for probe in probes for half in probe.items.values() for item in half.values()]
    asked = asking.choices([_battery_item(item) for item in items], (), TextTokenizer.of(bench.tokenizer))
    pad = bench.tokenizer.pad_token_id
    scores = iter(log_likelihoods(bench.model, [asked], pad=pad, autocast=bench.autocast, share=bench.share)[0])
    found: dict[str, list[Line]] = {}
    for probe in probes:
        found[probe.name] = []
        for split, half in probe.items.items():
            for id, item in half.items():
                right, said, p = answering.likeliest(item.choices, item.answer, next(scores))
                line = {"probe": probe.name, "split": split, "id": id, "score": int(right), "said": said}
                found[probe.name].append(line | {"p": round(p, 6)})
    return found


def _battery_item(item: OwnItem) -> Item:
    return Item(tuple(_plain(message) for message in item.messages), item.answer, item.choices)


def _plain(message: Mapping[str, Any]) -> Mapping[str, str]:
    return {"role": message["role"], "content": message["content"]}
