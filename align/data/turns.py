"""Which words of a rendered conversation are the assistant's, found in one rendering, whatever the template does.

The template itself is followed while it writes: a mark is put into its output where one of its loops comes to a
message, and where such a loop ends. So each piece of the text belongs to the message for which it was written. No two
renderings are compared, since templates write a turn differently once more follows (thoughts are stripped, the last
turn ends with another token). `{% generation %}` marks of the template itself go before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

from align.data import template
from align.data.messages import Message

if TYPE_CHECKING:
    from jinja2 import Template, nodes

# Between noncharacters, which Unicode keeps out of text that is exchanged. A row may hold one by accident; alone it is
# text like any other.
_OPEN: Final = "\ufdd0"
_CLOSE: Final = "\ufdd1"
_MARK: Final = re.compile(rf"{_OPEN}([+-]|\d+(?::\d+)?){_CLOSE}")
_GENERATED: Final = (f"{_OPEN}+{_CLOSE}", f"{_OPEN}-{_CLOSE}")
_COMES_TO, _ASSIGNS, _LEAVES = "_align_comes_to", "_align_assigns", "_align_leaves"


@dataclass(frozen=True)
class Piece:
    """A stretch of the text, in characters, and the message for which it was written: None outside all of them."""

    start: int
    end: int
    message: int | None
    generated: bool  # inside the template's own `{% generation %}` marks


@dataclass(frozen=True)
class Followed:
    """A rendered conversation and its pieces, in order and without gaps.

    Attributes:
        marked: whether the template marks what the assistant says.
    """

    text: str
    pieces: list[Piece]
    marked: bool

    @cached_property
    def after(self) -> int:
        """Where the last piece that was written for a message ends."""
        return max((piece.end for piece in self.pieces if piece.message is not None), default=0)

    @cached_property
    def _by_message(self) -> dict[int | None, list[Piece]]:
        found: dict[int | None, list[Piece]] = {}
        for piece in self.pieces:
            found.setdefault(piece.message, []).append(piece)
        return found

    def of(self, message: int) -> list[tuple[int, int]]:
        """The stretches that were written for a message; neighbours are one."""
        return _joined(self._by_message.get(message, []))

    def generated(self, message: int) -> list[tuple[int, int]]:
        """Those of them inside the template's own marks; after the last message also what is marked outside all."""
        last = max((piece.message for piece in self.pieces if piece.message is not None), default=None)
        outside = [piece for piece in self._by_message.get(None, []) if message == last and piece.start >= self.after]
        return _joined([piece for piece in [*self._by_message.get(message, []), *outside] if piece.generated])


def _joined(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for piece in pieces:
        if found and found[-1][1] == piece.start:
            found[-1] = (found[-1][0], piece.end)
        else:
            found.append((piece.start, piece.end))
    return found


def follow(
    chat_template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tokens: dict[str, Any],
    **extra: Any,
) -> Followed:
    """Render a conversation and tell which of its messages each piece was written for; raises AlignError where the
    template refuses it."""
    followed = _followed(chat_template)
    log = _Log({id(message): number for number, message in enumerate(messages)})
    functions = {_COMES_TO: log.comes_to, _ASSIGNS: log.assigns, _LEAVES: log.leaves}
    text = template.rendered(
        followed.template, messages, add_generation_prompt=add_generation_prompt, **tokens, **extra, **functions
    )
    pieces: list[Piece] = []
    plain: list[str] = []
    at = 0
    for part, message, generated in _parts(text):
        plain.append(part)
        pieces.append(Piece(at, at + len(part), message, generated))
        at += len(part)
    return Followed("".join(plain), pieces, followed.marked)


@dataclass
class _Log:
    """What the marks of one rendering say. Called by the template; `loop` is the number of one of its loops."""

    numbers: dict[int, int]  # of the messages, by the identity of the object
    loops: set[int] = field(default_factory=set)  # whose own variable has been a message
    inside: set[int] = field(default_factory=set)  # in which a message was come to

    def comes_to(self, loop: int, value: object) -> str:
        """At the head of a loop's body: its variable may be a message."""
        number = self.numbers.get(id(value))
        if number is None:
            return ""
        self.loops.add(loop)
        self.inside.add(loop)
        return f"{_OPEN}{loop}:{number}{_CLOSE}"

    def assigns(self, loop: int, value: object) -> str:
        """After `{% set %}` inside a loop: over indices (`set message = messages[i]`) that is where a message begins;
        in a loop over messages it is a look at another one."""
        number = self.numbers.get(id(value))
        if number is None or loop in self.loops:
            return ""
        self.inside.add(loop)
        return f"{_OPEN}{loop}:{number}{_CLOSE}"

    def leaves(self, loop: int) -> str:
        """After a loop."""
        if loop not in self.inside:
            return ""
        self.inside.discard(loop)
        return f"{_OPEN}{loop}{_CLOSE}"


def _parts(text: str) -> Iterator[tuple[str, int | None, bool]]:
    """The text between marks, each with its message and whether it stands between generation marks."""
    stack: list[tuple[str, int]] = []  # loops that were entered, with the message that each has come to
    generated = False
    for number, part in enumerate(_MARK.split(text)):
        if number % 2 == 0:
            if part:
                yield part, stack[-1][1] if stack else None, generated
        elif part in "+-":
            generated = part == "+"
        else:
            loop, comes, message = part.partition(":")
            known = next((k for k, (name, _) in enumerate(stack) if name == loop), len(stack))
            del stack[known:]
            if comes:
                stack.append((loop, int(message)))


@dataclass(frozen=True)
class _Followable:
    template: Template
    marked: bool


@lru_cache(maxsize=8)
def _followed(chat_template: str) -> _Followable:
    """The template with marks in it."""
    from jinja2 import Template, nodes

    environment = template.environment(generated=_GENERATED)
    tree = environment.parse(chat_template)
    loops = _numbered_loops()
    _mark(tree, None, loops)
    marked = any(
        isinstance(part, nodes.TemplateData) and part.data == _GENERATED[0]
        for part in tree.find_all(nodes.TemplateData)
    )
    code = environment.compile(tree)
    return _Followable(Template.from_code(environment, code, environment.make_globals(None)), marked)


def _numbered_loops() -> Callable[[], int]:
    numbers = iter(range(10**6))
    return lambda: next(numbers)


def _mark(node: nodes.Node, loop: int | None, number: Callable[[], int]) -> None:
    """Put calls into every body below `node`: at the head of loops, after assignments inside them, after loops."""
    from jinja2 import nodes

    for name, value in list(node.iter_fields()):
        if not (isinstance(value, list) and any(isinstance(child, nodes.Stmt) for child in value)):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, nodes.Node):
                    _mark(child, loop, number)
            continue
        body: list[nodes.Node] = []
        for child in value:
            body.append(child)
            if isinstance(child, nodes.For):
                own = number()
                _mark(child, own, number)
                if isinstance(child.target, nodes.Name):
                    child.body.insert(0, _call(_COMES_TO, own, child.target.name))
                body.append(_call(_LEAVES, own))
            else:
                _mark(child, loop, number)
                if loop is not None and isinstance(child, nodes.Assign) and isinstance(child.target, nodes.Name):
                    body.append(_call(_ASSIGNS, loop, child.target.name))
        setattr(node, name, body)


def _call(function: str, loop: int, variable: str | None = None) -> nodes.Output:
    from jinja2 import nodes

    given: list[nodes.Expr] = [nodes.Const(loop)]
    if variable is not None:
        given.append(nodes.Name(variable, "load"))
    return nodes.Output([nodes.Call(nodes.Name(function, "load"), given, [], None, None)])
