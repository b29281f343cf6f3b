"""Where the shipped stages, pipelines and recipes stand: beside `align/` in a checkout, inside it in a wheel.

They are data to the engine: nobody imports `stages` by name, because a user's folder may have that name too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Shelf = Literal["stages", "pipelines", "recipes"]
_PACKAGE = Path(__file__).resolve().parent


def folder(shelf: Shelf) -> Path:
    """The folder of a shelf."""
    inside = _PACKAGE / shelf
    return inside if inside.is_dir() else _PACKAGE.parent / shelf


def names(shelf: Shelf) -> list[str]:
    """Names a user may write: `sft`, `sft_dpo`, `dpo_qlora`, `gpu/dpo_qlora_qwen3_0.6b`."""
    root = folder(shelf)
    if shelf == "stages":
        files = [p for p in root.glob("*.py") if not p.stem.startswith("_")]
        folders = [p.parent for p in root.glob("*/__init__.py")]
        return sorted([p.stem for p in files] + [p.name for p in folders])
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def find(shelf: Shelf, name: str) -> Path | None:
    """The file of a shipped stage, pipeline or recipe; None when there is none of that name."""
    if name not in names(shelf):
        return None
    root = folder(shelf)
    if shelf == "stages":
        package = root / name / "__init__.py"
        return package if package.is_file() else root / f"{name}.py"
    return root / f"{name}.yaml"
