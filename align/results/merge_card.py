"""The model card of a merge: it names the original base, the adapters and their weights. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from align.adapters.lora_files import WEIGHTS, SavedLora
from align.merging.verdict import Merge
from align.policy import base
from align.run_folder import files

_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})")


def origin(adapter: SavedLora) -> tuple[str, str | None]:
    """The original base of an adapter and its revision: as its run knows it, or as its settings say."""
    policy = adapter.policy()
    if policy is not None:
        return policy.base.name, policy.base.revision
    name, revision = adapter.base
    cached = _SNAPSHOT.search(name)  # of the Hub's cache
    return (f"{cached[1]}/{cached[2]}", cached[3]) if cached else (name, revision)


def text(sources: Sequence[tuple[SavedLora, float]], rank: int, error: float, cost: Merge | None) -> str:
    """The card as Markdown.

    Args:
        sources: the adapters and their weights.
        cost: of writing it into whole weights; None for an adapter.
    """
    first = sources[0][0]
    name, revision = origin(first)
    hub = revision is not None or base.is_on_hub(name, Path.cwd())
    policy = first.policy()
    lines = ["---", "library_name: " + ("peft" if cost is None else "transformers")]
    lines += [f"base_model: {name}"] if hub else []
    shown = Path(name).name if Path(name).is_absolute() else name
    trained = f", with the weights that the run trained in `{policy.weights}`" if policy and policy.weights else ""
    lines += [
        *("tags: [align, merge]", "---", "", "# A merge of adapters", ""),
        f"A weighted sum of LoRA adapters, which `align merge` made. Base model: **{shown}**"
        + (f" at revision `{revision}`" if revision else "")
        + f"{trained}.",
        "",
        *(f"- {weight:g} of `{_shown(adapter)}` ({_identity(adapter)})" for adapter, weight in sources),
        f"- rank {rank}" + (f", which leaves out {error:.1%} of the sum (Frobenius norm)" if error else ""),
    ]
    if cost is not None:
        lines.append(f"- merged into the weights of the base in float32: {cost.figures}")
        lines += [f"- **{cost.warning}**"] if cost.warning else []
    return "\n".join(lines) + "\n"


def _shown(adapter: SavedLora) -> str:
    """A stage by the names of its run and itself, another folder by its own."""
    folder = adapter.folder.resolve()
    place = adapter.stage()
    return f"{place.parents[1].name}: {place.name}" if adapter.policy() else folder.name


def _identity(adapter: SavedLora) -> str:
    return f"sha256 `{files.file_sha256(adapter.folder / WEIGHTS)[:12]}`"
