"""The recipes of `benchmarks.fuzz`, and what makers of mutants share."""

from __future__ import annotations

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML

from align.recipe.json_schema import recipe_schema
from benchmarks.fuzzing import mutations, odd_values
from benchmarks.fuzzing.mutations import Words
from benchmarks.fuzzing.odd_values import Pairs

ROOT = Path(__file__).parents[2]
CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
FILES: dict[str, list[dict[str, Any]]] = {
    "rows.jsonl": [{"messages": [{"role": "user", "content": f"{n} + 1?"}, *CHAT[1:]]} for n in range(8)],
    "pairs.jsonl": [{"prompt": f"{n} + 1 = ", "chosen": f"{n + 1}", "rejected": "none"} for n in range(8)],
    "probe.jsonl": [{"prompt": f"{n} + 2 = ", "completion": f"{n + 2}"} for n in range(8)],
}
OWN = """\
def short(prompts, completions, **kwargs):
    return [-len(str(said)) for said in completions]


def right(prediction, reference):
    return float(prediction == reference)
"""
MANY_KEYS = """\
version: 1
name: many
seed: 1
model: {base: lab, dtype: auto, attn_implementation: sdpa, chat_template: plain}
parameterization: {method: lora, lora: {r: 8, alpha: 16, dropout: 0.1, target_modules: auto}}
replay: {data: rows.jsonl, ratio: 0.2}
forgetting:
  probes: {lab: true, own: {data: probe.jsonl, metric: exact}}
  max_drop: 0.1
  on_violation: [retry, rollback]
  retry: {replay: 2}
  budgets: {wall_time: 2h, accuracy: 0.1}
launch: {processes: 2}
trackers: []
stages:
  sft:
    data: {source: rows.jsonl, limit: 6, format: messages}
    eval_data: {source: rows.jsonl, limit: 2}
    training: {learning_rate: 1.0e-4, num_train_epochs: 2, lr_scheduler_type: cosine, warmup_steps: 2}
  second:
    stage: dpo
    policy: sft
    parameterization: {method: lora, lora: {r: 4}}
    data: pairs.jsonl
    beta: 0.2
    replay: {stage: sft, ratio: 0.1}
    training: {max_steps: 4}
  third:
    stage: grpo
    policy: second
    data: rows.jsonl
    reward: [{source: "./own.py:short", weight: 0.5}]
    training: {max_steps: 4, per_device_train_batch_size: 8, num_generations: 4}
"""


@dataclass(frozen=True)
class Case:
    """A mutant: what it is, the arguments of `align` that it is tried with, and the folder that they are given in."""

    shown: str
    commands: list[list[str]]
    folder: Path


class Maker(ABC):
    """Makes the mutants of one kind, each from the seed and its number alone.

    Args:
        runs: where runs to be damaged are, or are put.
        keep: whether the files of a mutant stay.
    """

    colour: ClassVar[bool] = True  # whether every second mutant is told as to a terminal
    batch: ClassVar[int] = 100  # mutants of one fork

    def __init__(self, seed: int, runs: Path, keep: bool) -> None:
        self.seed, self.runs, self.keep = seed, runs, keep

    def chance(self, index: int) -> random.Random:
        return random.Random(f"{type(self).__name__} {self.seed} {index}")

    @abstractmethod
    def make(self, index: int, folder: Path) -> Case:
        """Write a mutant into its folder."""

    @abstractmethod
    def good(self, folder: Path) -> Iterator[Case]:
        """What was not damaged, each of which has to succeed."""


def lay(folder: Path) -> None:
    """What recipes name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "own.py").write_text(OWN, encoding="utf-8")


class Recipes(Maker):
    """Damaged recipes, as trees and as text, and `align check` of them."""

    @cached_property
    def seeds(self) -> list[str]:
        """The shipped recipes, those of GPUs with the lab's model, and one with many keys; all with few rows."""
        texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("**/*.yaml"))]
        texts.append(MANY_KEYS)
        for old, new in (
            (r"lab/helpdesk_preferences|trl-lib/ultra\w+", "pairs.jsonl"),
            (r"lab/\w+", "rows.jsonl"),
            (r"eval_data: 0.0\d", "eval_data: 0.25"),
            (r"(max_completion_length): \d+", r"\1: 40"),
        ):
            texts = [re.sub(old, new, text) for text in texts]
        return [re.sub(r"(base|data|source): [A-Za-z-]+/[^/,}\s]+", _lab, text) for text in texts]

    @cached_property
    def trees(self) -> list[Any]:
        return [YAML(typ="safe", pure=True).load(text) for text in self.seeds]

    @cached_property
    def words(self) -> Words:
        schema = recipe_schema()
        parts = schema["$defs"]
        keys: dict[str, list[Any]] = {}
        below = {"": list(parts["stage"]["properties"])}
        for part in (schema, *parts.values()):
            for name, of_key in _properties(part):
                keys.setdefault(name, []).extend(_fitting(of_key, parts, 3))
                below.setdefault(name, []).extend(_inside(of_key, parts))
        odd_keys = (1, None, True, 1.5, "", "a.b", "a: b", "é", "x" * 300, "[red]", *odd_values.YAML)
        return Words(
            keys,
            {name: inside for name, inside in below.items() if inside},
            (*odd_values.YAML, *odd_values.LARGE, *odd_values.DEEP),
            odd_keys,
        )

    def make(self, index: int, folder: Path) -> Case:
        chance = self.chance(index)
        number = chance.randrange(len(self.seeds))
        if chance.random() < 0.75:
            tree = mutations.damaged(mutations.planted(self.trees[number]), self.words, chance)
            content = mutations.text(tree, blocks=chance.choice((0, 1, 3, 9))).encode("utf-8")
        else:
            content = mutations.spoilt(self.seeds[number].encode("utf-8"), chance)
        lay(folder)
        (folder / "recipe.yaml").write_bytes(content)
        return Case(content.decode("utf-8", "backslashreplace"), [["check", "recipe.yaml"]], folder)

    def good(self, folder: Path) -> Iterator[Case]:
        lay(folder)
        for number, text in enumerate(self.seeds):
            name = f"{number}.yaml"
            for content in (text, mutations.text(mutations.planted(self.trees[number]), blocks=3)):
                (folder / name).write_text(content, encoding="utf-8")
                yield Case(content, [["check", name]], folder)


def _lab(found: re.Match[str]) -> str:
    """The lab's model, or rows of its, in place of those of the Hub."""
    return f"{found[1]}: lab" if found[1] == "base" else f"{found[1]}: rows.jsonl"


def _properties(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key below a part of a schema, with its own part."""
    for name, of_key in part.get("properties", {}).items():
        yield name, of_key
        yield from _properties(of_key)
    for one in part.get("anyOf", ()):
        yield from _properties(one)


def _inside(part: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    """The keys of the mapping that a key may have as its value."""
    yield from part.get("properties", ())
    for one in (part, *part.get("anyOf", ())):
        if "$ref" in one:
            yield from _inside(parts[one["$ref"].rpartition("/")[2]], parts)
        elif one is not part:
            yield from _inside(one, parts)


def _fitting(part: dict[str, Any], parts: dict[str, Any], depth: int) -> list[Any]:
    """Values that a schema allows."""
    if depth == 0:
        return []
    if "$ref" in part:
        return _fitting(parts[part["$ref"].rpartition("/")[2]], parts, depth)
    found: list[Any] = [mutations.planted(part[name]) for name in ("default", "const") if name in part]
    found += part.get("enum", [])[:8]
    for one in part.get("anyOf", ()):
        found += _fitting(one, parts, depth)[:4]
    kind = part.get("type")
    if properties := list(_properties(part))[:12]:
        filled = [[name, values[-1]] for name, one in properties if (values := _fitting(one, parts, depth - 1))]
        found += [Pairs(filled[:1]), Pairs(filled[1:3]), Pairs(filled)]
    if isinstance(others := part.get("additionalProperties"), dict):
        found += [Pairs([["own", one]]) for one in _fitting(others, parts, depth - 1)[:6]]
    if kind == "array":
        found += [_fitting(part.get("items", {}), parts, depth - 1)[:2]]
    simple: dict[Any, list[Any]] = {
        "integer": [1, 4, 0],
        "number": [0.1, 1.5, 0],
        "boolean": [True, False],
        "string": ["rows.jsonl", "sft", "x"],
    }
    return found + simple.get(str(kind), [])
