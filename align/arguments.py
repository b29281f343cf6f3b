"""The names and types of TRL's training arguments, read from its source without importing it.

`training:` in a recipe takes the trainer's own argument names. They are checked before anything heavy is loaded,
so they are parsed (`ast`) from the installed packages: the truth about this version, and no list to keep by hand.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from align.errors import AlignError, Exit
from align.shelf import nearest

_FILES = {
    "trl": ("trainer/base_config.py", "trainer/{stem}_config.py"),
    "transformers": ("training_args.py",),
}
# The engine sets these itself; each names what a user writes instead.
OWNED = {
    "output_dir": "the run folder is named by `--run-dir`",
    "seed": "use the recipe's `seed`",
    "data_seed": "use the recipe's `seed`",
    "full_determinism": "a run is repeatable as it is",
    "resume_from_checkpoint": "run the same command again and it resumes",
    "restore_callback_states_from_checkpoint": "run the same command again and it resumes",
    "ignore_data_skip": "run the same command again and it resumes",
    "save_only_model": "a checkpoint without its optimizer cannot be resumed; leave it out",
    "load_best_model_at_end": "a stage hands on its last policy; leave it out",
    "metric_for_best_model": "a stage hands on its last policy; leave it out",
    "greater_is_better": "a stage hands on its last policy; leave it out",
    "hub_token": "set HF_TOKEN in the environment",
    "trust_remote_code": "use `model.trust_remote_code`",
    "model_init_kwargs": "use the keys under `model`",
    "deepspeed": "use `launch`",
    "fsdp": "use `launch`",
    "fsdp_config": "use `launch`",
    "accelerator_config": "use `launch`",
    "parallelism_config": "use `launch`",
    "ddp_backend": "use `launch`",
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    "report_to": "use the recipe's `trackers`",
    "run_name": "the tracker shows the recipe's `name` and the stage",
    "project": "set WANDB_PROJECT or TRACKIO_PROJECT in the environment",
    "trackio_space_id": "set TRACKIO_SPACE_ID in the environment",
    "eos_token": "use `model.chat_template`",
    "pad_token": "use `model.chat_template`",
    "chat_template_path": "use `model.chat_template`",
    "dataset_text_field": "use `data.columns`",
    "dataset_kwargs": "use `data`",
    "remove_unused_columns": "rows are prepared by the engine; leave it out",
    "shuffle_dataset": "use `train_sampling_strategy`",
    "assistant_only_loss": "use `completion_only_loss`, which covers every answer of a conversation",
    "precompute_ref_log_probs": "the reference is always computed once, before the first step",
    "precompute_ref_batch_size": "the reference is always computed once, before the first step",
    "sync_ref_model": "the reference is the policy that came in; leave it out",
    "ref_model_mixup_alpha": "the reference is the policy that came in; leave it out",
    "ref_model_sync_steps": "the reference is the policy that came in; leave it out",
    "do_train": "leave it out",
    "do_eval": "use `eval_data`",
    "do_predict": "leave it out",
    "disable_tqdm": "leave it out",
    "log_level": "leave it out",
    "log_level_replica": "leave it out",
}
_PREFIXES = {"hub_": "pushing to the Hub is done by hand, after looking at the report", "push_to_hub": "pushing to the "
             "Hub is done by hand, after looking at the report"}


@dataclass(frozen=True)
class Argument:
    """One training argument: its annotation as written in the source, and the words of its help."""

    name: str
    annotation: str
    help: str


@lru_cache
def known(config: str) -> dict[str, Argument]:
    """Every argument of a TRL config class (`SFTConfig`), with those it inherits from transformers.

    Raises:
        AlignError: trl or transformers is not installed, or holds no such class.
    """
    stem = config.removesuffix("Config").lower()
    classes: dict[str, ast.ClassDef] = {}
    for package, files in _FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise AlignError(f"the package '{package}' is not installed", "pip install align-suite", exit=Exit.MACHINE)
        for name in files:
            path = Path(spec.submodule_search_locations[0]) / name.format(stem=stem)
            if path.is_file():
                body = ast.parse(path.read_text(encoding="utf-8")).body
                classes.update({node.name: node for node in body if isinstance(node, ast.ClassDef)})
    if config not in classes:
        raise AlignError(f"the installed trl has no '{config}'", "install trl 1.16", exit=Exit.MACHINE)
    return _collect(config, classes)


def _collect(name: str, classes: Mapping[str, ast.ClassDef]) -> dict[str, Argument]:
    found: dict[str, Argument] = {}
    node = classes[name]
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found.update(_collect(base.id, classes))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
            argument = Argument(item.target.id, ast.unparse(item.annotation), _help(item.value))
            found[argument.name] = argument
    return found


def _help(value: ast.expr | None) -> str:
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, text in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    try:
                        return str(ast.literal_eval(text))
                    except ValueError:
                        return ""
    return ""


def check(config: str, training: Mapping[str, Any], recipe_keys: frozenset[str]) -> list[tuple[str, str, str]]:
    """Faults of a `training:` mapping as (name, what, remedy), none when all is well.

    `recipe_keys` are the stage's own recipe keys: an argument of that name belongs one level up.
    """
    arguments = known(config)
    faults = []
    for name, value in training.items():
        if name in recipe_keys:
            faults.append((name, f"'{name}' is a key of the stage, not of `training`", f"write it beside `training:` as "
                           f"`{name}: {value}`"))
        elif name in OWNED or name.startswith(tuple(_PREFIXES)):
            remedy = OWNED.get(name) or next(text for prefix, text in _PREFIXES.items() if name.startswith(prefix))
            faults.append((name, f"the training argument '{name}' belongs to the engine", remedy))
        elif name not in arguments:
            close = nearest(name, [n for n in arguments if n not in OWNED])
            remedy = f"did you mean '{close}'?" if close else f"see the arguments of trl.{config}"
            faults.append((name, f"trl.{config} has no argument '{name}'", remedy))
        elif not _fits(value, arguments[name].annotation):
            faults.append((name, f"the training argument '{name}' takes {_words(arguments[name].annotation)}, "
                           f"not {value!r}", "write such a value"))
    return faults


def _fits(value: Any, annotation: str) -> bool:
    """Whether a YAML value can be what the annotation says; annotations beyond the plain ones are left to TRL."""
    parts = {part.strip().strip("'\"") for part in annotation.replace("Optional[", "").replace("]", "").split("|")}
    parts = {p.split("[")[0] for p in parts}
    plain = {"int", "float", "bool", "str", "dict", "list", "None"}
    if not parts <= plain:
        return True
    if value is None:
        return "None" in parts or "Optional" in annotation
    if isinstance(value, bool):
        return "bool" in parts
    if isinstance(value, int):
        return bool(parts & {"int", "float"})
    if isinstance(value, float):
        return "float" in parts
    return type(value).__name__ in parts


def _words(annotation: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "dict": "a mapping",
             "list": "a list", "None": "null"}
    parts = [part.strip().split("[")[0] for part in annotation.split("|")]
    return " or ".join(words.get(part, part) for part in parts)
