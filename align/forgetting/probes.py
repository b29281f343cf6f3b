"""Held-out questions and texts that a model is measured on before training and after every stage. No torch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.forgetting.battery import skill as battery
from align.forgetting.battery.skill import Item, Skill
from align.forgetting.keys import MOST_ITEMS, ForgettingKeys, ProbeFile
from align.forgetting.measurements import Kind, Split
from align.run_folder import files

SPLITS: tuple[Split, Split] = ("gate", "report")
GENERAL_TEXT, AGREEMENT = "general text", "agreement with the base"
HELPDESK = ("correct", "polite", "parses")  # the measures of the lab's help desk
VERSION = 2  # raised when the same probes come to be measured differently; 2: of a text, the text alone


@dataclass(frozen=True)
class Question:
    """A prompt; `answer` is the one right answer where there is one."""

    id: str
    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class Exact:
    """Right or wrong: the greedy answer is exactly the expected one."""

    name: str
    kind: Kind
    items: dict[Split, list[Question]]
    replayed: bool | None = None


@dataclass(frozen=True)
class Texts:
    """Perplexity on running text."""

    name: str
    texts: dict[Split, list[str]]


@dataclass(frozen=True)
class Graded:
    """Answers written by the model and graded by several yes-or-no measures, each a probe `<name> <measure>`."""

    name: str
    items: dict[Split, list[Question]]
    measures: tuple[str, ...]
    grade: Callable[[Split, str, str], dict[str, bool]]  # split, id of the question, the model's answer


@dataclass(frozen=True)
class Agreement:
    """How many of the base's own answer tokens the model would still choose."""

    name: str
    items: dict[Split, list[Question]]


@dataclass(frozen=True)
class Battery:
    """A skill of the general battery, with its items by id."""

    name: str
    skill: Skill
    items: dict[Split, dict[str, Item]]


Probe = Exact | Texts | Graded | Agreement | Battery


def load(keys: ForgettingKeys, root: Path, *, replays: bool = False, items: int | None = None) -> list[Probe]:
    """The probes that a recipe names; `auto` is settled when a recipe is read.

    Args:
        items: of each skill of the general battery; None: as the recipe says, and all where it leaves that open.
        replays: whether the recipe replays rows; then the lab's skills are told apart by whether the replay has them.

    Raises:
        AlignError: a user's file is wrong.
    """
    if isinstance(keys.probes, dict):
        return [_from_file(name, file, root) for name, file in keys.probes.items()]
    if keys.probes == "lab":
        return _lab(replays)
    if keys.probes == "general":
        count = items or (MOST_ITEMS if keys.items == "auto" else keys.items)
        return [*(_skill(name, count) for name in battery.names()), running_text(count)]
    return []  # none


def names(keys: ForgettingKeys) -> list[str]:
    """What the probes of a recipe are called in every table, without their items."""
    if isinstance(keys.probes, dict):
        return list(keys.probes)
    if keys.probes == "general":
        return [*(_named(name) for name in battery.names()), GENERAL_TEXT]
    if keys.probes == "lab":
        from align.lab import skills

        return [*skills.SKILLS, "stories", *(f"helpdesk {measure}" for measure in HELPDESK)]
    return []


def called(probe: Probe) -> tuple[str, ...]:
    """What a probe is called in every table: of graded answers, each of its measures."""
    if isinstance(probe, Graded):
        return tuple(f"{probe.name} {measure}" for measure in probe.measures)
    return (probe.name,)


def part(probe: Probe, splits: Collection[Split]) -> Probe:
    """A probe with the items of some halves alone."""
    field = "texts" if isinstance(probe, Texts) else "items"
    halves = getattr(probe, field)
    chosen: dict[str, Any] = {field: {name: half if name in splits else type(half)() for name, half in halves.items()}}
    return replace(probe, **chosen)


def _lab(replays: bool) -> list[Probe]:
    from align.lab import data, probes, skills

    def questions(skill: str, split: Split) -> list[Question]:
        return [Question(item.id, item.prompt, item.answer) for item in probes.items(skill, split)]

    desk = {split: {case.id: case for case in probes.helpdesk(split)} for split in SPLITS}
    found: list[Probe] = [
        Exact(
            name,
            "skill",
            {split: questions(name, split) for split in SPLITS},
            name not in data.NOT_REPLAYED if replays else None,
        )
        for name in skills.SKILLS
    ]
    found.append(Texts("stories", {split: probes.stories(split) for split in SPLITS}))
    found.append(
        Graded(
            "helpdesk",
            {split: [Question(c.id, c.prompt) for c in desk[split].values()] for split in SPLITS},
            HELPDESK,
            lambda split, id, text: probes.grade(desk[split][id], text),
        )
    )
    return found


def running_text(count: int | None = None) -> Texts:
    """Short texts of general knowledge, the first so many where not all are wanted."""
    texts = [row["text"] for row in _of_general_knowledge() if "text" in row][:count]
    return Texts(GENERAL_TEXT, {"gate": texts[::2], "report": texts[1::2]})


def _agreement() -> Agreement:
    """Questions of general knowledge, for a model that has no probes of its own."""
    rows = enumerate(_of_general_knowledge())
    prompts = [Question(f"general-{i}", row["prompt"]) for i, row in rows if "prompt" in row]
    return Agreement(AGREEMENT, {"gate": prompts[::2], "report": prompts[1::2]})


def _of_general_knowledge() -> list[dict[str, str]]:
    lines = (Path(__file__).parent / "general.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def content() -> str:
    """Hash of the files of the battery: other items are other probes."""
    folder = battery.SKILLS.parent
    shipped = [*folder.rglob("*.py"), *folder.rglob("*.txt"), folder.parent / "general.jsonl"]
    return files.digest([[path.name, files.file_sha256(path)] for path in sorted(shipped)])


def _skill(name: str, items: int) -> Battery:
    """So many items, half of them for each split, in an order that hangs on nothing but the items."""
    skill, halves = battery.load(name), {split: dict[str, Item]() for split in SPLITS}
    numbered = {zlib.crc32(_said(item).encode()): item for item in skill.items()}
    wanted = {"gate": (items + 1) // 2, "report": items // 2}
    for number in sorted(numbered):
        split = SPLITS[number % 2]
        if len(halves[split]) < wanted[split]:
            halves[split][f"{name}-{number:08x}"] = numbered[number]
    return Battery(_named(name), skill, halves)


def _named(skill: str) -> str:
    return skill.replace("_", " ")


def _said(item: Item) -> str:
    return "\n".join(message["content"] for message in item.messages)


def _from_file(name: str, file: ProbeFile, root: Path) -> Probe:
    from align.data import checks
    from align.data.formats import Kind as RowKind
    from align.data.formats import prompt_of
    from align.data.sources import DataSource

    wanted: frozenset[RowKind] = frozenset({"text"})
    if file.metric == "accuracy":
        wanted = frozenset({"prompt_completion", "chat"})
    table = checks.load([DataSource(source=file.data)], root=root, accepts=wanted, stage=f"probe '{name}'")
    if file.metric == "perplexity":
        texts: dict[Split, list[str]] = {"gate": [], "report": []}
        for example in table.examples:
            texts[_split(example.value["text"])].append(example.value["text"])
        _check_halves(name, texts)
        return Texts(name, texts)
    items: dict[Split, list[Question]] = {"gate": [], "report": []}
    for i, example in enumerate(table.examples):
        prompt_of(example)  # which refuses a row that asks nothing
        prompt, answer = question(example.value)
        items[_split(prompt)].append(Question(f"{name}-{i}", prompt, answer))
    _check_halves(name, items)
    return Exact(name, "skill", items)


def _check_halves(name: str, halves: Mapping[Split, Sequence[object]]) -> None:
    """Raises AlignError where the gate or the report would have nothing to look at."""
    empty = next((split for split, items in halves.items() if not items), None)
    if empty is not None:
        rows = sum(map(len, halves.values()))
        what = f"the probe '{name}' has {rows} {'row' if rows == 1 else 'rows'}, none of them in the {empty}'s half"
        raise AlignError(what, "give it more rows: it takes about 200 in each half to detect a drop of 0.05")


def _split(text: str) -> Split:
    """By content: a row keeps its side when others are added."""
    return SPLITS[zlib.crc32(text.encode()) % 2]


def question(row: dict[str, Any]) -> tuple[str, str]:
    """What a row asks last, and the answer expected."""
    if "messages" in row:
        return row["messages"][-2]["content"], row["messages"][-1]["content"]
    prompt, answer = row["prompt"], row["completion"]
    return (
        prompt if isinstance(prompt, str) else prompt[-1]["content"],
        answer if isinstance(answer, str) else answer[-1]["content"],
    )
