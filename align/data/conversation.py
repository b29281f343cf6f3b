"""A model's chat template: what it writes of a conversation, which words of that are learnt, and what ends an answer.

Learnt is what a turn of the assistant writes after its header (the role, up to where an answer begins at inference),
through its end token; nothing that follows it, nothing of the other roles. Where a template writes no end, the token
with which the next turn begins is it (GLM), and after the last turn the tokenizer's own is put there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from align.data import template, turns
from align.data.messages import Message, assistant, user
from align.data.turns import Followed
from align.errors import AlignError

THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold what the assistant thought."""

_THINKS: Final = re.compile(r"<[^<>\s]*(?:think|thought|reason)[^<>\s]*>", re.IGNORECASE)
_THOUGHT: Final = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_CALL: Final[Message] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}],
}
_RESULT: Final[Message] = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "calm"}


@dataclass(frozen=True)
class Turn:
    """What the assistant writes in one message, in characters of the whole text."""

    message: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Conversation:
    """A conversation as text.

    Attributes:
        turns: of the assistant, in order; a message of which the template writes nothing has none.
        tail: what the template writes after the last turn's end; part of the text.
    """

    text: str
    turns: list[Turn]
    tail: str


class ChatTemplate:
    """A chat template with the special tokens of its tokenizer.

    Args:
        text: the template.
        tokens: the special tokens by name, as templates see them: `bos_token`, `eos_token`, ...
        special: every token that the tokenizer has been given besides its vocabulary.
    """

    def __init__(self, text: str, tokens: dict[str, Any], special: Collection[str]) -> None:
        self.text = text
        self.tokens = {"bos_token": None, "eos_token": None} | tokens
        self.special = sorted(special, key=len, reverse=True)
        self._headers: dict[tuple[Any, ...], str] = {}
        self._proven: set[tuple[Any, ...]] = set()

    def ask(self, messages: Sequence[Message], tools: list[Any] | None = None) -> str:
        """The text up to where the assistant's answer begins; raises AlignError where the template refuses."""
        return template.render(self.text, messages, add_generation_prompt=True, **self.tokens, tools=tools)

    def write(self, messages: Sequence[Message], tools: list[Any] | None = None) -> Conversation:
        """The whole conversation; raises AlignError where the template refuses it or cannot be followed."""
        messages = [_own(message) for message in messages]
        followed = self._follow(messages, tools)
        text, tail, written = followed.text, "", dict[int, list[tuple[int, int]]]()
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and (
                spans := self._spans(followed, number, messages, tools, self._last_ends)
            ):
                written[number] = spans
        if not written:
            what = "nothing that the chat template writes can be identified as the assistant's"
            raise AlignError(what, "mark the assistant's text with {% generation %}, or choose another chat_template")
        if _loses_an_answer(followed, messages):
            what = "the chat template drops the assistant's words"
            raise AlignError(what, "choose another chat_template")
        last = max(written)
        if last == len(messages) - 1:
            text, tail = self._ended(followed, written[last], messages[last])
        found = [Turn(number, tuple(spans)) for number, spans in written.items()]
        return Conversation(text, found, tail)

    def left_out(
        self, messages: Sequence[Message], tools: list[Any] | None = None, *, last: bool = False
    ) -> frozenset[str]:
        """What the messages have and the text has not: thoughts, words, tool calls, tools.

        Args:
            last: only the assistant's last turn is learnt, and thoughts of earlier ones are not missed.
        """
        messages = [_own(message) for message in messages]
        followed = self._follow(messages, tools)
        unseen = bool(tools) and followed.text == self._follow(messages, None).text
        return _left_out(followed, messages, last) | ({"tools"} if unseen else set())

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokens with which the template ends an answer, and a call of a tool; none where it writes none."""
        if self._last_ends:
            return self._last_ends
        answer = [user("a"), assistant("b"), user("c"), assistant("d")]
        call = [user("a"), _CALL, _RESULT, assistant("d")]
        return tuple(dict.fromkeys(end for end in (self._end_of(one) for one in (answer, call)) if end))

    @cached_property
    def closing(self) -> str:
        """What the template writes after the words of a conversation's last answer: its end, and all that follows.

        Empty where the template refuses a question with an answer.
        """
        try:
            written = self.write([user("a"), assistant("b")])
        except AlignError:
            return ""
        through = written.text[: written.turns[-1].spans[-1][1]]
        end = self._end(through.rstrip()) or ""
        return written.text[len(through.rstrip()) - len(end) :]

    @cached_property
    def _last_ends(self) -> tuple[str, ...]:
        """Those of a conversation's last turn: amid one, an end may be one after which the assistant goes on
        (gpt-oss), and the end of a call may be written as the head of its result (Gemma 4)."""
        found = (self._end_of(one) for one in ([user("a"), assistant("b")], [user("a"), _CALL]))
        return tuple(dict.fromkeys(end for end in found if end))

    def _end_of(self, messages: list[Message]) -> str | None:
        """The end of the assistant's first turn, the second message; None where there is none, or no such turn."""
        try:
            followed = self._follow(messages, None)
        except AlignError:
            return None
        last = len(messages) == 2
        spans = self._spans(followed, 1, messages, None, () if last else self._last_ends)
        return self._end(followed.text[: spans[-1][1]].rstrip()) if spans else None

    def _follow(self, messages: Sequence[Message], tools: list[Any] | None) -> Followed:
        followed = turns.follow(self.text, messages, add_generation_prompt=False, tokens=self.tokens, tools=tools)
        shape = (*((message["role"], *sorted(message)) for message in messages[:8]), bool(tools))
        if shape not in self._proven:
            plain = template.render(self.text, messages, add_generation_prompt=False, **self.tokens, tools=tools)
            if plain != followed.text:
                what = "the chat template cannot be traced, because it tests its own output"
                raise AlignError(what, "mark the assistant's text with {% generation %}, or choose another")
            self._proven.add(shape)
        return followed

    def _spans(
        self,
        followed: Followed,
        number: int,
        messages: Sequence[Message],
        tools: list[Any] | None,
        ends: Collection[str],
    ) -> list[tuple[int, int]]:
        """What is learnt of one message of the assistant."""
        if followed.marked:
            return followed.generated(number)
        spans = followed.of(number)
        if not spans:
            return []
        text = followed.text
        start, end = spans[0]
        spans[0] = (self._after_header(text, start, end, number, messages, tools), end)
        start, end = spans[-1]
        end = start + len(text[start:end].rstrip())
        goes_on = number + 1 < len(messages) and messages[number + 1]["role"] == "assistant"
        leads = None if goes_on else self._leads(text[end:])
        if leads is not None and (leads in ends or self._end(text[start:end]) is None):
            end += len(leads)
        spans[-1] = (start, max(start, end))
        return [(a, b) for a, b in spans if a < b] or spans[-1:]  # an answer that was sampled may be empty

    def _after_header(
        self, text: str, start: int, end: int, number: int, messages: Sequence[Message], tools: list[Any] | None
    ) -> int:
        """Where a turn's own words begin: after as much of the generation prompt as it begins with."""
        header = self._header(number, messages, tools)
        first = not any(message["role"] != "system" for message in messages[:number])
        at = text.find(header, start, end) if header and first else -1  # after a default system prompt
        if at < 0 and first:
            bos = self.tokens["bos_token"]
            at = start + len(bos) if bos and text.startswith(bos, start, end) else start
        at = max(at, start)
        return at + _shared(header, text[at:end])

    def _header(self, number: int, messages: Sequence[Message], tools: list[Any] | None) -> str:
        """What the template writes to ask for an answer after the messages before `number`, without a head start on
        the thoughts, which the assistant otherwise writes itself."""
        before = messages[max(number - 2, 0) : number]
        kind = tuple((message["role"], "tool_calls" in message) for message in before)
        if kind not in self._headers:
            tries = [list(messages[:number])] if number else []
            tries += [[user("a")], []]
            self._headers[kind] = next(filter(None, (self._asked_after(one, tools) for one in tries)), "")
        return self._headers[kind]

    def _asked_after(self, messages: list[Message], tools: list[Any] | None) -> str | None:
        try:
            asked = turns.follow(self.text, messages, add_generation_prompt=True, tokens=self.tokens, tools=tools)
        except AlignError:
            return None
        prompt = asked.text[asked.after :]
        thinks = _THINKS.search(prompt)
        return prompt[: thinks.start()] if thinks else prompt

    def _ended(self, followed: Followed, spans: list[tuple[int, int]], message: Message) -> tuple[str, str]:
        """The text with an end after its last turn, with which it closes, and what stands after that end."""
        text, (start, end) = followed.text, spans[-1]
        if followed.marked or self._end(text[start:end]) is not None:
            return text, text[end:]
        own = self.ends[-1 if message.get("tool_calls") else 0] if self.ends else self.tokens["eos_token"]
        if not own:
            return text, text[end:]
        spans[-1] = (start, end + len(own))
        return text[:end] + own, ""

    def _end(self, written: str) -> str | None:
        """The special token that a turn ends with."""
        return next((token for token in self.special if written.endswith(token)), None)

    def _leads(self, rest: str) -> str | None:
        """The special token with which what follows a turn begins."""
        found = next((token for token in self.special if rest.startswith(token)), None)
        return None if found == self.tokens["bos_token"] else found


def _own(message: Message) -> Message:
    """The message for a template, as an object of its own: marks of training are no business of the template's."""
    return {name: value for name, value in message.items() if name != "train"}


def _shared(one: str, other: str) -> int:
    """Leading characters that both share."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _left_out(followed: Followed, messages: Sequence[Message], last: bool) -> frozenset[str]:
    """What the messages say and the text does not; of thoughts those of the `last` answer, or of all."""
    found: set[str] = set()
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for number in answers:
        message = messages[number]
        said = "".join(followed.text[a:b] for a, b in followed.of(number))
        content = str(message.get("content") or "")
        missed = not last or number == answers[-1]
        thoughts = [*_THOUGHT.findall(content), *(message[key] for key in THOUGHTS if message.get(key))]
        if missed and any(isinstance(one, str) and one.strip() and one.strip() not in said for one in thoughts):
            found.add("reasoning")
        if any(line not in said for line in _lines(content)):
            found.add("words")
        if any(_name(call) not in said for call in message.get("tool_calls") or []):
            found.add("tool calls")
    return frozenset(found)


def _loses_an_answer(followed: Followed, messages: Sequence[Message]) -> bool:
    """Whether nothing is written of what the assistant says openly in one of its messages."""
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] != "assistant" or not content:
            continue
        said = "".join(followed.text[a:b] for a, b in followed.of(number))
        if content not in said and (lines := _lines(content)) and not any(line in said for line in lines):
            return True
    return False


def _lines(content: str) -> list[str]:
    """What an answer says, without the thoughts in it, line by line without the space around it."""
    return [line for line in map(str.strip, _THOUGHT.sub("", content).splitlines()) if line]


def _name(call: Any) -> str:
    """Of the tool that is called."""
    inner = call.get("function", call) if isinstance(call, dict) else {}
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""
