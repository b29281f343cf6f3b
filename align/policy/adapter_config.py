"""adapter_config.json with the same bytes for the same settings."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig
from pydantic import JsonValue

from align.run_folder import files


def put_in_order(folder: Path, config: PeftConfig, **changed: JsonValue) -> None:
    """Write the file that PEFT has saved again, with the names that it holds in sets in order: those of a set come
    differently in every process.

    Args:
        folder: holds adapter_config.json.
        config: what was saved.
        changed: settings that the file is to have instead.
    """
    path = folder / "adapter_config.json"
    written = files.read_json(path) | changed
    sets = [name for name, value in vars(config).items() if isinstance(value, set)]
    ordered = {name: sorted(value) if name in sets else value for name, value in written.items()}
    files.write_json(path, dict(sorted(ordered.items())))
