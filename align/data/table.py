"""Token columns on disk: written batch by batch, read through a memory map, so that memory does not grow with rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

Columns = dict[str, list[Any]]

_KINDS: Final = {"label": pa.bool_(), "margin": pa.float64()}


def write(path: Path, batches: Iterator[Columns], told: Callable[[int], None] = lambda rows: None) -> None:
    """Write a table in Arrow's stream format, whole or not at all.

    Args:
        told: is called with the number of rows that are written so far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    writer, rows = None, 0
    with temporary.open("wb") as sink:
        for batch in batches:
            schema = pa.schema([(name, _kind(name)) for name in batch])
            writer = writer or pa.ipc.new_stream(sink, schema)
            writer.write_batch(pa.RecordBatch.from_pydict(batch, schema=schema))
            rows += len(next(iter(batch.values())))
            told(rows)
        if writer is not None:
            writer.close()
    temporary.replace(path)


def _kind(name: str) -> pa.DataType:
    """Columns of tokens by TRL's names are lists of ids or of 0 and 1; others are numbers."""
    if name.endswith(("_ids", "_mask", "labels")):
        return pa.list_(pa.int32())
    return _KINDS.get(name, pa.int64())
