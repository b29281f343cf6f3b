"""How an item of the battery is put to a model: through its chat template, or as text after solved examples."""

from __future__ import annotations

from collections.abc import Sequence

from align.data import encode
from align.data.encode import Text
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from align.forgetting.battery.likelihoods import Asked
from align.forgetting.battery.skill import Item, Message

TURNS = {"system": "Instructions", "user": "User", "assistant": "Assistant"}
STOP = f"\n{TURNS['user']}:"  # where an answer in text ends: the model goes on with another question


def written(messages: Sequence[Message], answer: str | None = None) -> str:
    """A conversation as text, up to where an answer begins, or with it."""
    lines = [f"{TURNS[message['role']]}: {message['content']}\n" for message in messages]
    return "".join(lines) + f"{TURNS['assistant']}:" + (f" {answer}\n" if answer is not None else "")


def question(item: Item, shots: Sequence[Item], tokenizer: TextTokenizer) -> str:
    """The text up to where the answer begins, special tokens of a chat template included.

    A template that knows no system turn gets its content at the beginning of the user's.
    """
    if tokenizer.template is None:
        examples = "".join(written(shot.messages, shot.answer) + "\n" for shot in shots)
        return examples + written(item.messages)
    messages = [dict(message) for message in item.messages]
    try:
        return tokenizer.template.ask(messages)
    except AlignError:
        if messages[0]["role"] != "system":
            raise
        first, *rest = messages[1:]
        content = f"{messages[0]['content']}\n\n{first['content']}"
        return tokenizer.template.ask([{**first, "content": content}, *rest])


def prompts(items: Sequence[Item], shots: Sequence[Item], tokenizer: TextTokenizer) -> list[list[int]]:
    """Token ids of questions."""
    rendered = tokenizer.template is not None
    texts = [Text(question(item, shots, tokenizer), [], rendered=rendered) for item in items]
    return [row.ids for row in encode.rows(texts, tokenizer)]


def choices(items: Sequence[Item], shots: Sequence[Item], tokenizer: TextTokenizer) -> list[Asked]:
    """Token ids of questions with each of their choices."""
    rendered = tokenizer.template is not None
    between = "" if rendered else " "
    texts = []
    for item in items:
        asked = question(item, shots, tokenizer)
        for choice in item.choices:
            whole = f"{asked}{between}{choice}"
            texts.append(Text(whole, [(len(asked), len(whole))], rendered=rendered))
    rows = iter(encode.rows(texts, tokenizer))
    found = []
    for item in items:
        own = [next(rows) for _ in item.choices]
        found.append(Asked.of([row.ids[: row.last] for row in own], [max(row.first, 1) for row in own]))
    return found
