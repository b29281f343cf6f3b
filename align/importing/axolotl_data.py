"""The data sets of an Axolotl file as the sources of a recipe."""

from __future__ import annotations

from typing import Any, Final

from align.importing import shared
from align.importing.draft import Draft

_FORMATS: Final = {
    "alpaca": "alpaca",
    "completion": "text",
    "input_output": "auto",
    "sharegpt": "auto",
    "chat_template": "auto",
}
_READ: Final = frozenset(
    {"path", "data_files", "split", "name", "revision", "type", "ds_type"}
    | {"field_messages", "field_chosen", "field_rejected", "field", "field_tools"}
)


def translate(draft: Draft) -> None:
    """The rows that are trained on, and those that are held out."""
    key = "datasets" if draft.get("datasets") else "pretraining_dataset"
    given = draft.get(key, [])
    sources = _sources(draft, given, key)
    if sources:
        draft.put(".data", shared.short(sources), key)
    else:
        draft.lost["datasets"] = f"name the data: `stages.{draft.stage}.data`"
    held, share = draft.get("test_datasets", []), draft.get("val_set_size", 0)
    if held:
        draft.put(".eval_data", shared.short(_sources(draft, held, "test_datasets")), "test_datasets")
    elif isinstance(share, str):
        draft.lose("give a share, as 0.05, or a number of rows", "val_set_size")
    elif share:
        draft.put(".eval_data", share if share < 1 else int(share), "val_set_size")
    elif draft.stage == "reward":
        draft.put(".eval_data", 0, "val_set_size")
    draft.leave("no rows are held out", "val_set_size", "test_datasets")
    if draft.get("train_on_inputs") and draft.stage == "sft":
        draft.put(".completion_only_loss", False, "train_on_inputs")
    draft.leave("only answers are trained on, as by default", "train_on_inputs")


def _sources(draft: Draft, given: Any, key: str) -> list[dict[str, Any]]:
    """The sources of a list of data sets, or of one; a source for each of several files."""
    found = []
    for one in given if isinstance(given, list) else [given]:
        files = one.get("data_files") if isinstance(one, dict) else None
        listed = files if isinstance(files, list) else [files]
        found += [_source(draft, {**one, "data_files": file} if file else one, key) for file in listed]
    return found


def _source(draft: Draft, given: Any, key: str) -> dict[str, Any]:
    """A data set as a source of a recipe."""
    if not isinstance(given, dict):
        return {"source": str(given)}
    for name, value in given.items():
        mapped = name == "message_property_mappings" and value == {"role": "role", "content": "content"}
        usual = name == "roles" or (name == "chat_template" and value == "tokenizer_default")
        if name not in _READ and value not in (None, False) and not mapped and not usual:
            draft.lost[f"{key}: {name}"] = "a source of a recipe has nothing of the kind"
    source: dict[str, Any] = {"source": str(given.get("path", ""))}
    files = given.get("data_files")
    if files:
        if source["source"] in ("json", "csv", "parquet", "text"):
            source["source"] = str(files)
        else:
            draft.lost[f"{key}: data_files"] = f"give a dataset whose splits tell its files apart, not {files}"
    split = str(given.get("split", "train"))
    name, _, part = split.partition("[")
    if name != "train":
        source["split"] = name
    limit = part.removesuffix("]").removeprefix(":")
    if limit.isdigit():
        source["limit"] = int(limit)
    elif part:
        draft.lost[f"{key}: split"] = f"`limit` takes rows from the start, not '{split}'"
    if given.get("name"):
        source["subset"] = given["name"]
    if given.get("revision"):
        source["revision"] = given["revision"]
    kind = given.get("type")
    if isinstance(kind, dict):
        names = {
            "field_instruction": "instruction",
            "field_input": "input",
            "field_output": "output",
            "field_system": "system",
        }
        columns = {ours: kind[theirs] for theirs, ours in names.items() if kind.get(theirs) not in (None, ours)}
        for name in ("format", "no_input_format", "system_prompt", "system_format"):
            if kind.get(name):
                draft.lost[f"{key}: type.{name}"] = "the chat template writes prompts, not a format string"
    else:
        names = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected", "field": "text"}
        names |= {"field_tools": "tools"}
        columns = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) not in (None, ours)}
        format = _FORMATS.get(str(kind).partition(":")[0].partition(".")[0])
        if format is None and kind is not None and draft.stage not in ("dpo", "kto", "reward", "grpo"):
            draft.lost[f"{key}: type"] = f"align tells formats by their fields; look at '{kind}': align data show"
        elif format not in ("auto", None) and draft.stage == "sft":
            source["format"] = format
        if str(kind).startswith("alpaca"):
            why = "rows become conversations in the model's chat template, without the words '### Instruction:'"
            draft.lost[f"{key}: type {kind}"] = why
    if columns.get("messages") in ("conversations", "conversation"):
        del columns["messages"]  # read by that name too
    if columns:
        source["columns"] = columns
    return source
