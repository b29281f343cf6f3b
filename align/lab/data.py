"""Data sets of the lab, by name, as the rows that trainers read. All of it belongs to split `train`."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from align.lab import helpdesk, skills, world
from align.lab.helpdesk import HelpdeskItem
from align.lab.world import Split

Row: TypeAlias = dict[str, Any]
"""One row, as from a JSON file: chat (`messages`), preference (`prompt`, `chosen`, `rejected`) or plain `text`."""

COVERING: Final = "lab/general"
"""The set to replay, of which it is known which skills it covers."""

NOT_REPLAYED: Final = ("reverse", "larger")
"""Skills that `lab/general` leaves out, so that a run shows what replay protects and what it does not cover."""

IN_KIND_SHARE: Final = 0.8
"""Share of `lab/helpdesk` where the reply has the customer's tone. Half of the customers are polite, half rude.

Were the style a coin toss, greedy decoding would be all polite or all rude by accident; like this about half of the
replies after supervised fine-tuning are polite, and preference training has something definite to change.
"""

CHAT_SHARE: Final = 0.75
"""Share of `lab/general` that is questions and answers; the rest is stories and letters in equal parts."""

_TRIES: Final = 50

_Element = TypeVar("_Element")


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chat(prompt: str, answer: str) -> Row:
    return {"messages": [_said("user", prompt), _said("assistant", answer)]}


def _take(pool: Sequence[_Element], n: int, rng: random.Random) -> Iterator[_Element]:
    """`n` elements in random order; one comes again only after all others have come."""
    while n > 0:
        shuffled = rng.sample(pool, min(n, len(pool)))
        n -= len(shuffled)
        yield from shuffled


def _helpdesk(rng: random.Random, n: int) -> list[Row]:
    in_kind: list[tuple[HelpdeskItem, str]] = []  # cases and templates of a reply; those that are taken are written out
    contrary: list[tuple[HelpdeskItem, str]] = []
    for case in helpdesk.cases("train"):
        for style, templates in helpdesk.REPLIES.items():
            pool = in_kind if style == case.tone else contrary
            pool += [(case, template) for template in templates]
    mirrored = round(IN_KIND_SHARE * n)
    chosen = [*_take(in_kind, mirrored, rng), *_take(contrary, n - mirrored, rng)]
    rng.shuffle(chosen)
    return [_chat(case.prompt, helpdesk.reply(case, template)) for case, template in chosen]


def _helpdesk_preferences(rng: random.Random, n: int) -> list[Row]:
    pool = [
        (case, polite, rude)
        for case in helpdesk.cases("train")
        for polite in helpdesk.REPLIES["polite"]
        for rude in helpdesk.REPLIES["rude"]
    ]
    return [
        {
            "prompt": [_said("user", case.prompt)],
            "chosen": [_said("assistant", helpdesk.reply(case, polite))],
            "rejected": [_said("assistant", helpdesk.reply(case, rude))],
        }
        for case, polite, rude in _take(pool, n, rng)
    ]


def _general(rng: random.Random, n: int) -> list[Row]:
    replayed = [skill for skill in skills.SKILLS if skill not in NOT_REPLAYED]
    chats = round(CHAT_SHARE * n)
    seen: set[str] = set()

    def another(draw: Callable[[], tuple[str, Row]]) -> Row:
        """A row that is not among those before, as long as a few draws find one."""
        for _ in range(_TRIES):
            text, row = draw()
            if text not in seen:
                break
        seen.add(text)
        return row

    def question(skill: str) -> tuple[str, Row]:
        example = skills.draw(skill, rng, "train")
        return example.prompt, _chat(example.prompt, example.answer)

    def text(write: Callable[[random.Random, Split], str]) -> tuple[str, Row]:
        written = write(rng, "train")
        return written, {"text": written}

    rows = [another(partial(question, replayed[index % len(replayed)])) for index in range(chats)]
    rows += [another(partial(text, (world.story, world.mail)[index % 2])) for index in range(n - chats)]
    rng.shuffle(rows)
    return rows


_Maker: TypeAlias = Callable[[random.Random, int], list[Row]]
_MAKERS: Final[dict[str, tuple[_Maker, int]]] = {
    "lab/helpdesk": (_helpdesk, 3000),
    "lab/helpdesk_preferences": (_helpdesk_preferences, 1500),
    "lab/general": (_general, 2000),
}

NAMES: Final = tuple(_MAKERS)


def rows(name: str, *, seed: int = 0, n: int | None = None) -> list[Row]:
    """The `n` rows (default: the data set's own number) of data set `name`, the same for the same seed.

    - `lab/helpdesk`: complaints with right replies, half of them polite and half rude (3,000 chats);
    - `lab/helpdesk_preferences`: a polite and a rude reply to a complaint, both right (1,500 pairs);
    - `lab/general`: what the base was pretrained on, but for the skills `NOT_REPLAYED` (1,500 chats, 500 texts).

    Raises KeyError for an unknown name, listing the known ones.
    """
    if name not in _MAKERS:
        raise KeyError(f"there is no lab dataset {name!r}; there are {', '.join(NAMES)}")
    make, default = _MAKERS[name]
    return make(random.Random(f"{name} {seed}"), default if n is None else n)
