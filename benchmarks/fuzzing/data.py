"""The data files of `benchmarks.fuzz`: rows of every format, damaged before they are written and after it."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.fuzzing import mutations, odd_values
from benchmarks.fuzzing.mutations import Words
from benchmarks.fuzzing.odd_values import Pairs
from benchmarks.fuzzing.recipes import CHAT, Case, Maker, lay

NUMBERS = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": NUMBERS}}
CALLED = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "1", "function": {
        "name": "add", "arguments": {"a": 2, "b": 2}}}]},
    {"role": "tool", "name": "add", "tool_call_id": "1", "content": "4"},
    {"role": "assistant", "content": "4"},
]  # fmt: skip
SHARED = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "You."}]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": CHAT},
    "marked": {"messages": [CHAT[0], {**CHAT[1], "train": False}, CHAT[0], {**CHAT[1], "weight": 1}]},
    "tools": {"messages": CALLED, "tools": [TOOL]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1]]},
    "sharegpt": {"conversations": SHARED, "system": "Be short."},
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["1?", "2"]]},
    "question": {"question": "2 + 2?", "answer": "4", "score": 0.5},
    "completion": {"prompt": "2 + 2 = ", "completion": "4"},
    "chats": {"prompt": CHAT[:1], "completion": CHAT[1:], "label": True},
    "text": {"text": "Two and two are four."},
    "label": {"prompt": "2 + 2 = ", "completion": "5", "label": False},
    "pair": {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5", "margin": 0.5},
    "chat_pair": {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "5"}]},
    "whole_pair": {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "5"}]},
    "prompt": {"prompt": "2 + 2 = ", "solution": 4},
}
STAGES = {
    **dict.fromkeys(("messages", "marked", "tools", "parts", "sharegpt", "alpaca", "question"), "sft"),
    "completion": "sft",
    "chats": "kto",
    "text": "sft",
    "label": "kto",
    "pair": "dpo",
    "chat_pair": "dpo",
    "whole_pair": "reward",
    "prompt": "grpo",
}


class Data(Maker):
    """Damaged rows and files of every format, and `align check` of a recipe that reads them."""

    endings = (
        *(".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".ndjson"),
        *(".jsonl.gz", ".csv.gz", ".txt.gz"),
    )

    @cached_property
    def words(self) -> Words:
        keys: dict[str, list[Any]] = {}
        for row in ROWS.values():
            _collect(mutations.planted(row), keys)
        keys |= {"images": ["a.png", ["a.png"]], "": [1], "function_call": [Pairs([["name", "a"]])], "columns": [1]}
        return Words(
            keys,
            {},
            (*odd_values.NOT_FINITE, *odd_values.LARGE, *odd_values.DEEP),
            ("", "__index_level_0__", "a.b", "é"),
        )

    def make(self, index: int, folder: Path) -> Case:
        chance = self.chance(index)
        kind, ending = chance.choice(list(ROWS)), chance.choice(self.endings)
        rows = [numbered(kind, number) for number in range(chance.choice((1, 2, 4)))]
        how = chance.choice(("rows", "rows", "rows", "bytes", "both"))
        if how != "bytes":
            at = chance.randrange(len(rows))
            rows[at] = mutations.damaged(rows[at], self.words, chance)
            if chance.random() < 0.2:
                other = mutations.planted(ROWS[chance.choice(list(ROWS))])
                rows.insert(chance.randrange(len(rows) + 1), other)
        content, ending = written(rows, ending, chance)
        if how != "rows":
            content = mutations.spoilt(content, chance)
        if ending.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
            content = mutations.spoilt(content, chance) if chance.random() < 0.3 else content
        used, entry = self._used(kind, f"data{ending}", chance)
        lay(folder)
        (folder / f"data{ending}").write_bytes(content)
        (folder / "recipe.yaml").write_text(json.dumps(used), encoding="utf-8")
        shown = f"{json.dumps(entry)}\n{content[:20_000].decode('utf-8', 'backslashreplace')}"
        return Case(shown, [["check", "recipe.yaml"]], folder)

    def _used(self, kind: str, name: str, chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
        """A recipe that reads the file, and the part of it that names the file."""
        entry: dict[str, Any] = {"source": name}
        if chance.random() < 0.2:
            entry["columns"] = {
                chance.choice(("prompt", "messages", "text", "label")): chance.choice(list(self.words.keys))
            }
        if chance.random() < 0.2:
            entry["format"] = chance.choice(
                ("messages", "text", "preference", "unpaired", "prompt", "alpaca", "sharegpt")
            )
        stage = STAGES[kind] if chance.random() < 0.7 else chance.choice(("sft", "dpo", "kto", "reward", "grpo"))
        where = chance.choice(("data", "data", "data", "data", "eval_data", "replay", "probe"))
        return recipe(stage, entry, where), {stage: where, **entry}

    def good(self, folder: Path) -> Iterator[Case]:
        lay(folder)
        chance = self.chance(-1)
        for kind, row in ROWS.items():
            for ending in dict.fromkeys(self.endings):
                flat = all(isinstance(one, str | int | float) for one in row.values())
                if (
                    (flat or "sv" not in ending)
                    and (kind == "text" or "txt" not in ending)
                    and (
                        STAGES[kind] != "kto" or ending != ".json"  # which may hold one row alone
                    )
                ):
                    content, ending = written([numbered(kind, 1), numbered(kind, 2)], ending, chance)
                    name = f"{kind}{ending}"
                    (folder / name).write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
                    path = f"{kind}{ending}.yaml"
                    (folder / path).write_text(
                        json.dumps(recipe(STAGES[kind], {"source": name}, "data")), encoding="utf-8"
                    )
                    yield Case(json.dumps(row), [["check", path]], folder)


def numbered(kind: str, number: int) -> Any:
    """The tree of a row whose prompt is its own."""
    return mutations.planted(json.loads(json.dumps(ROWS[kind]).replace("2 + 2", f"{number} + 2")))


def recipe(stage: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe of one stage, which reads a file of rows as its data, as others of its, or as a probe."""
    rows = "pairs.jsonl" if stage in ("dpo", "reward", "kto") else "rows.jsonl"
    keys: dict[str, Any] = {"data": rows, "training": {"max_steps": 2}}
    if stage == "grpo":
        keys["reward"] = [{"source": "./own.py:short"}]
    made: dict[str, Any] = {"name": "data", "model": {"base": "lab"}, "parameterization": {"method": "lora"}}
    made |= {"forgetting": {"probes": "none"}, "stages": {stage: keys}}
    if where == "probe":
        probe = {"data": entry, "metric": "exact"}
        made["forgetting"] = {"probes": {"own": probe}}
    elif where == "replay":
        made["replay"] = {"data": entry, "ratio": 0.5}
    else:
        keys[where] = entry
    return made


def written(rows: list[Any], ending: str, chance: random.Random) -> tuple[bytes, str]:
    """The bytes of a file of rows; JSON lines where the ending cannot have them."""
    if ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        sink = pyarrow.BufferOutputStream()
        try:
            parquet.write_table(pyarrow.Table.from_pylist([mutations.plain(row) for row in rows]), sink)
            return sink.getvalue().to_pybytes(), ending
        except (pyarrow.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
            ending = ".jsonl"
    if ending.startswith((".csv", ".tsv")):
        if not all(isinstance(row, Pairs) for row in rows):
            return b"a,b\n1\n", ending
        cut = "," if ending.startswith(".csv") else "\t"
        names = list(dict.fromkeys(str(key) for row in rows for key, _ in row))
        cells = [names] + [
            [_cell({str(key): value for key, value in row}.get(name, "")) for name in names] for row in rows
        ]
        return "\n".join(cut.join(line) for line in cells).encode("utf-8", "surrogatepass"), ending
    texts = [mutations.text(row) for row in rows]
    if ending == ".json":
        whole = ("[" + ",\n".join(texts) + "]", '{"version": 1, "rows": [' + ",".join(texts) + "]}", texts[0])
        return chance.choice(whole).encode(), ending
    if chance.random() < 0.2:  # letters as they are, half of one too
        texts = [re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text) for text in texts]
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass"), ending


def _cell(value: Any) -> str:
    said = value if isinstance(value, str) else mutations.text(value)
    return '"' + said.replace('"', '""') + '"' if re.search('[,"\t\n\r]', said) else said


def _collect(tree: Any, keys: dict[str, list[Any]]) -> None:
    """Every key of a tree with the values it has."""
    for one in tree if isinstance(tree, list) else ():
        if isinstance(tree, Pairs):
            keys.setdefault(one[0], []).append(one[1])
            _collect(one[1], keys)
        else:
            _collect(one, keys)
