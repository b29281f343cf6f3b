"""A recipe with every default and inherited value written out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align import user_paths
from align.policy.base import LAB
from align.recipe.plan import Loaded
from align.run_folder import files


def resolved(loaded: Loaded) -> dict[str, Any]:
    """The recipe with every default and inherited value written out; `load` of it gives the same run."""
    data = loaded.recipe.model_dump(mode="json", exclude={"stages", "parameterization", "replay"})
    stages = {}
    for plan in loaded.stages:
        entry = plan.keys.model_dump(mode="json", exclude={"replay", "parameterization"})
        stages[plan.id] = entry | {
            "stage": plan.program.name,
            "policy": plan.policy,
            "parameterization": plan.method_keys.model_dump(mode="json"),
            "training": plan.training,
            "launch": plan.launch.model_dump(mode="json") if plan.keys.launch is not None else None,
        }
        if plan.program.stage.replays:
            stages[plan.id]["replay"] = plan.replay.model_dump(mode="json") if plan.replay else None
    data["pipeline"] = None
    data["notify"] = loaded.recipe.notify.withheld(loaded.root) if loaded.recipe.notify else None
    whole: dict[str, Any] = _standing(data | {"stages": stages}, loaded.root)
    for plan in loaded.stages:  # a stage stays a stage, whatever folder has its name
        for given, written in zip(_listed(stages[plan.id]), _listed(whole["stages"][plan.id]), strict=True):
            written["source"] = given["source"] if given["source"] in plan.rewards else written["source"]
    return whole


def digest(loaded: Loaded) -> str:
    """Of the whole of it: equal where the recipe and all that was set on the command line are."""
    return files.digest(resolved(loaded))


def write(path: Path, loaded: Loaded) -> None:
    """Write the resolved recipe, unless the file holds it already."""
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 100
    # in the recipe's order; ruamel's types know only the default, None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(resolved(loaded), out)
    text = "# written by align: the recipe with every default and inherited value\n" + out.getvalue()
    files.write_if_other(path, text)


def _listed(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rewards of a stage's entry as written out, or of its rewriting."""
    accept = (entry.get("rewrite") or {}).get("accept")
    found = entry.get("reward") or (accept.get("reward") if isinstance(accept, dict) else None) or []
    return found if isinstance(found, list) else [found]


def _standing(value: Any, root: Path, key: str = "") -> Any:
    """The same with the paths that the recipe gives relative to itself written out, so that the file can be moved."""
    if isinstance(value, dict):
        return {name: _standing(inner, root, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_standing(inner, root, key) for inner in value]
    if key in ("source", "data", "base", "chat_template", "stage", "check", "accept") and isinstance(value, str):
        if value == LAB or (key == "stage" and not value.endswith(".py")):
            return value
        file, colon, function = value.partition(".py:")  # ./rewards.py:polite
        file = f"{file}.py" if colon else value
        found = user_paths.find(file, root)
        standing = str(found.resolve()) if found else file
        return f"{standing}:{function}" if colon else standing
    return value
