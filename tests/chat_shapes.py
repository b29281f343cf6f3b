"""Conversations of every shape, with words that occur nowhere else, and tokenizers for the chat templates of TRL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import trl
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as bpe

from align.data.tokenizer import TextTokenizer
from align.errors import AlignError

FOLDER: Final = Path(trl.__file__).parent / "chat_templates"
NAMES: Final = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
BOS, EOS = "<|first|>", "<|last|>"
TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "tide table",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    }
]
_SPECIAL: Final = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>\s]+?｜>|<\|?/?(?:START|END)_[A-Z_]+\|?>|<(?:start|end)_of_\w+>|<\|?(?:turn|channel|tool_\w+)\|?>"
    r"|\[gMASK\]|<sop>"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "tide", "tool_call_id": "call00001", "content": text}


def calls(port: str) -> list[dict[str, Any]]:
    return [{"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": {"port": port}}}]


SYSTEM: Final = {"role": "system", "content": "Speak sysword."}
SHAPES: Final[dict[str, list[dict[str, Any]]]] = {
    "one turn": [user("asked1"), said("answer1")],
    "two turns": [user("asked1"), said("answer1"), user("asked2"), said("answer2")],
    "five turns": [one for k in range(1, 6) for one in (user(f"asked{k}"), said(f"answer{k}"))],
    "system": [SYSTEM, user("asked1"), said("answer1"), user("asked2"), said("answer2")],
    "spaces": [user("  asked1\n"), said("\n  answer1  \n"), user("asked2 "), said(" answer2\n\n")],
    "lines": [user("asked1\n\nassistant\nasked2"), said("answer1\n\nuser: answer2\n- answer3")],
    "reasoning": [user("asked1"), said("answer1", reasoning_content="thought1"), user("asked2"),
                 said("answer2", reasoning_content="thought2")],
    "reasoning in the text": [user("asked1"), said("<think>\nthought1\n</think>\n\nanswer1")],
    "tools": [user("asked1"), said("", tool_calls=calls("port1")), result("result1"), said("answer1")],
    "tools, then on": [user("asked1"), said("", tool_calls=calls("port1")), result("result1"), said("answer1"),
                       user("asked2"), said("answer2")],
    "reasoning and tools": [user("asked1"), said("", tool_calls=calls("port1"), reasoning_content="thought1"),
                           result("result1"), said("answer1", reasoning_content="thought2"), user("asked2"),
                           said("answer2", reasoning_content="thought3")],
    "in a row": [user("asked1"), said("answer1"), said("answer2"), user("asked2"), said("answer3")],
    "assistant first": [said("answer1"), user("asked1"), said("answer2")],
    "one not trained on": [user("asked1"), said("hidden1", train=False), user("asked2"), said("answer2")],
}  # fmt: skip


def has_tools(shape: str) -> bool:
    return "tools" in shape


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_for(template: str) -> TextTokenizer:
    """A token of every byte, besides the tokens that a template writes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(bpe.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    special = sorted({BOS, EOS, *_SPECIAL.findall(template)})
    own.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return TextTokenizer(own, {"bos_token": BOS, "eos_token": EOS}, template)


def decoded(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """Ids as text, special tokens shown."""
    return str(tokenizer._backend.decode(ids, skip_special_tokens=False))


COLUMNS: Final = {
    "turns": ("one turn", "two turns", "five turns", "spaces", "lines", "one not trained on"),
    "system": ("system",),
    "reasoning": ("reasoning", "reasoning in the text"),
    "tools": ("tools", "tools, then on", "reasoning and tools"),
    "in a row": ("in a row",),
    "assistant first": ("assistant first",),
}
_PAGE: Final = """# Chat templates

Which tokens of a conversation are trained on under each chat template that TRL ships: the assistant's words and the end
token of each of its turns, and nothing else. `python tests/chat_shapes.py > docs/chat_templates.md` generates this
page, and a test keeps it up to date; [tests/test_templates.py](../tests/test_templates.py) tests what it says.

- **all**: every turn of the assistant, including its end token.
- **refused**: the template rejects such a conversation, or drops the assistant's words; `align check` reports the row
  before anything is loaded.
- **without …**: the template drops this from some turns, so it is not trained on; `align check` reports how many rows
  are affected. `turns: each` makes a row of every turn, and so includes what the template drops only from earlier
  turns.

| template | ends a turn with | {columns} |
|---|---|{lines}|
{rows}
Conversations: {shapes}.

If the end-of-turn token is not the tokenizer's EOS token, models that are trained here stop at both: in `align chat`,
in probes, in PPO, and through the `generation_config.json` that is saved with them. If a template writes no end of
turn, the EOS token is appended to the last answer. GLM marks the end of a turn with the header of the next one, which
is trained on as its end.
"""


def page() -> str:
    """The table, as Markdown."""
    rows = []
    for name in NAMES:
        tokenizer = tokenizer_for(text_of(name))
        assert tokenizer.template is not None
        ends = ", ".join(f"`{end}`" for end in tokenizer.template.ends).replace("|", "\\|")
        cells = [
            " / ".join(dict.fromkeys(_verdict(tokenizer, shape) for shape in shapes)) for shapes in COLUMNS.values()
        ]
        rows.append(f"| `{name}` | {ends} | {' | '.join(cells)} |\n")
    shapes = "; ".join(f"*{name}*: {', '.join(shapes)}" for name, shapes in COLUMNS.items() if shapes != (name,))
    return _PAGE.format(
        columns=" | ".join(COLUMNS), lines="|".join("---" for _ in COLUMNS), rows="".join(rows), shapes=shapes
    )


def _verdict(tokenizer: TextTokenizer, shape: str) -> str:
    assert tokenizer.template is not None
    tools = TOOLS if has_tools(shape) else None
    try:
        tokenizer.template.write(SHAPES[shape], tools)
    except AlignError:
        return "refused"
    lost = sorted(tokenizer.template.left_out(SHAPES[shape], tools))
    return f"without {', '.join(lost)}" if lost else "all"


if __name__ == "__main__":
    print(page(), end="")
