"""Held-out questions and texts that a model is measured on before training and after every stage. No torch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.forgetting.battery import skill as battery
from align.forgetting.battery.skill import Item, Skill
from align.forgetting.keys import MOST_ITEMS, ForgettingKeys
from align.forgetting.measurements import Kind, Split
from align.forgetting.own import items as own_items
from align.forgetting.own import scorers, tasks
from align.forgetting.own.keys import TOKENS, ProbeFile, ProbeTask
from align.forgetting.own.kinds import Answered, Chosen, Greedy, Own, Task
from align.run_folder import files

SPLITS = own_items.SPLITS
GENERAL_TEXT, STORIES = "general text", "stories"
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
class Battery:
    """A skill of the general battery, with its items by id."""

    name: str
    skill: Skill
    items: dict[Split, dict[str, Item]]


Probe = Exact | Texts | Graded | Battery | Own


def load(keys: ForgettingKeys, root: Path, *, replays: bool = False, items: int | None = None) -> list[Probe]:
    """The probes that a recipe names; `auto` is settled when a recipe is read.

    Args:
        items: of each skill of the general battery; None: as the recipe says, and all where it leaves that open.
        replays: whether the recipe replays rows; then the lab's skills are told apart by whether the replay has them.

    Raises:
        AlignError: a user's file is wrong.
    """
    count = items or (MOST_ITEMS if keys.items == "auto" else keys.items)
    if not isinstance(keys.probes, dict):
        return _shipped(keys.probes, count, replays)
    found: list[Probe] = []
    for name, one in keys.probes.items():
        if isinstance(one, bool):
            found += _shipped(name, count, replays)
        else:
            found.append(own(name, one, root, offline=True)[0])
    seen: set[str] = set()
    for name in [name for probe in found for name in called(probe)]:
        if name in seen:
            raise taken(name)
        seen.add(name)
    return found


def _shipped(name: str, items: int, replays: bool) -> list[Probe]:
    if name == "lab":
        return _lab(replays)
    if name == "general":
        return [*(_skill(one, items) for one in battery.names()), running_text(items)]
    return []  # none


def taken(name: str) -> AlignError:
    """The fault that two probes would stand under one name in the matrix."""
    return AlignError(f"two probes are called '{name}'", "rename your own: a shipped one has that name")


def names(keys: ForgettingKeys) -> list[str]:
    """What the probes of a recipe are called in every table, without their items."""
    if not isinstance(keys.probes, dict):
        return _names(keys.probes)
    return [each for name, one in keys.probes.items() for each in (_names(name) if isinstance(one, bool) else [name])]


def texts(keys: ForgettingKeys) -> dict[str, bool]:
    """By name, whether a probe is running text; without tasks of the harness, which say so themselves."""
    own = keys.probes if isinstance(keys.probes, dict) else {}
    found = {name: name in (GENERAL_TEXT, STORIES) for name in names(keys) if name not in own}
    return found | {name: one.metric == "perplexity" for name, one in own.items() if isinstance(one, ProbeFile)}


def _names(shipped: str) -> list[str]:
    if shipped == "general":
        return [*(_named(name) for name in battery.names()), GENERAL_TEXT]
    if shipped == "lab":
        from align.lab import skills

        return [*skills.SKILLS, STORIES, *(f"helpdesk {measure}" for measure in HELPDESK)]
    return []


def called(probe: Probe) -> tuple[str, ...]:
    """What a probe is called in every table: of graded answers, each of its measures."""
    if isinstance(probe, Graded):
        return tuple(f"{probe.name} {measure}" for measure in probe.measures)
    return (probe.name,)


def part(probe: Probe, splits: Collection[Split]) -> Probe:
    """A probe with the items of some halves alone; of a task of the harness, which has its own items, all of it."""
    if isinstance(probe, Task):
        return probe
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
    found.append(Texts(STORIES, {split: probes.stories(split) for split in SPLITS}))
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


def _of_general_knowledge() -> list[dict[str, str]]:
    lines = (Path(__file__).parent / "general.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def size(keys: ForgettingKeys) -> list[object]:
    """What decides how many items of each skill are asked."""
    return [keys.items, keys.budget] if keys.items == "auto" else [keys.items]


def digest(keys: ForgettingKeys) -> str:
    """Hash of what is measured where all of it ships with align: another hash, another measurement."""
    more = [size(keys), content()] if keys.probes == "general" else []
    return files.digest([VERSION, keys.probes, *more])


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


def own(name: str, keys: ProbeFile | ProbeTask, root: Path, *, offline: bool = False) -> tuple[Probe, own_items.Halves]:
    """A probe of the user's, and its items with their places; a task of the harness keeps its items to itself.

    Args:
        root: the recipe's folder.
        offline: what has to be fetched is looked for in the caches only.

    Raises:
        AlignError, Faults: a file, a row, a scorer or a task is wrong.
    """
    if isinstance(keys, ProbeTask):
        return tasks.find(name, keys, root, offline=offline), {}
    halves = own_items.read(name, keys, root)
    if keys.metric == "perplexity":
        return Texts(name, {split: [str(one.prompt) for one in items] for split, items in halves.items()}), halves
    if not keys.greedy and keys.metric != "choice":
        asked = {
            split: [Question(one.id, one.question, one.answer) for one in items] for split, items in halves.items()
        }
        return Exact(name, "skill", asked), halves
    by_id = {split: {one.id: one for one in items} for split, items in halves.items()}
    if keys.metric == "choice":
        return Chosen(name, by_id), halves
    all_of_them = [one for items in halves.values() for one in items]
    scorer = scorers.find(keys, all_of_them, root, offline=offline)
    return Answered(name, by_id, scorer, Greedy(keys.tokens or TOKENS)), halves


def identity(probe: Probe) -> Any:
    """What makes another probe of a user's, as JSON."""
    return probe.identity() if isinstance(probe, Own) else asdict(probe)


def question(row: dict[str, Any]) -> tuple[str, str]:
    """What a row asks last, and the answer expected."""
    if "messages" in row:
        return row["messages"][-2]["content"], row["messages"][-1]["content"]
    prompt, answer = row["prompt"], row["completion"]
    return (
        prompt if isinstance(prompt, str) else prompt[-1]["content"],
        answer if isinstance(answer, str) else answer[-1]["content"],
    )
