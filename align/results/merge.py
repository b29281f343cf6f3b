"""Several LoRA adapters of one base become one: an adapter of its own, or whole weights."""

from __future__ import annotations

import fnmatch
import math
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import user_paths
from align.adapters import lora_files, settings
from align.adapters.lora_files import SavedLora
from align.errors import AlignError, FaultList
from align.forgetting import probes
from align.merging.verdict import Merge
from align.policy import base as bases
from align.policy.base import Base
from align.results import merge_card
from align.results.export import FORMS
from align.run_folder import files
from align.runner import launch

if TYPE_CHECKING:
    from align.adapters.lora_sum import Combination

_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt"),
    *("*.model", "*.tiktoken"),
)


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        rank: the largest rank of a module in the combination.
        error: ||kept - exact||_F / ||exact||_F of its update over all modules together; 0 without `rank`.
        merge: what writing it into whole weights cost; None for an adapter.
        base: the base that all were made for, by the name that a run or its adapter has for it.
    """

    folder: Path
    rank: int
    error: float
    merge: Merge | None
    base: str


@dataclass(frozen=True)
class Plan:
    """Adapters with their weights, checked, and the base that they were made for."""

    adapters: list[SavedLora]
    weights: list[float]
    base: Base
    rank: int | None


def merge(out: Path, given: Sequence[str], *, rank: int | None, form: str) -> Merged:
    """Write W + sum_i w_i s_i B_i A_i, or its update alone, into a new folder, whole or not at all.

    Args:
        given: folders of adapters, each with its weight as in `runs/a/stages/sft/model=0.7`; without weights, the mean.
        rank: truncate the update to this rank; None keeps it exact, of the sum of the adapters' ranks.
        form: `adapter` for PEFT, in float32; or `merged`, whole weights in the precision of the base's own files.

    Raises:
        AlignError, Faults: the folder is there already, an adapter is not there, broken or no plain LoRA, the adapters
            are not for one base, or whole weights lose the update.
    """
    _check_out(out)
    if form not in FORMS:
        raise AlignError(f"a merge cannot have the form '{form}'", f"choose one of: {', '.join(FORMS)}")
    plan = _plan(given, rank)
    if form == "merged" and plan.base.config.get("quantization_config"):
        what = f"the base '{plan.base.name}' is saved quantised, so full weights would be too"
        raise AlignError(what, "write only the combination: --form adapter")
    launch.quiet()
    near = next(parent for parent in out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=near, prefix=".merge-") as beside:
        adapter, whole = Path(beside) / "adapter", Path(beside) / "merged"
        made = _write_adapter(plan, adapter)
        cost = _write_whole(plan, adapter, whole) if form == "merged" else None
        written = whole if form == "merged" else adapter
        _copy_tokenizer(plan, written, form)
        sources = list(zip(plan.adapters, plan.weights, strict=True))
        files.write_text(written / "README.md", merge_card.text(sources, made.rank, made.error, cost))
        out.parent.mkdir(parents=True, exist_ok=True)
        written.replace(out.resolve())
    return Merged(out, made.rank, made.error, cost, merge_card.origin(plan.adapters[0])[0])


def _check_out(out: Path) -> None:
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise AlignError(f"'{out}' already exists", "give a new folder, or remove it")
    file = next((parent for parent in out.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise AlignError(f"'{out}' cannot be a folder: '{file}' is a file", "give another folder")


def _plan(given: Sequence[str], rank: int | None) -> Plan:
    """Check what the user gave, all of it, without torch."""
    names, weights = parse(given)
    settings.check_combination(weights, rank)
    faults, adapters = FaultList(), list[SavedLora]()
    for name in names:
        with faults.collect():
            adapters.append(lora_files.read(name))
    faults.raise_any()
    folders = [adapter.folder.resolve() for adapter in adapters]
    for number, adapter in enumerate(adapters):
        if folders[number] in folders[:number]:
            faults.add(f"the adapter '{adapter.name}' is named twice", "name each only once")
        for missing in [folder for folder in adapter.beneath() if folder not in folders]:
            what = f"'{adapter.name}' was trained on top of the adapter in '{missing}' and does not work without it"
            faults.add(
                what, "give that one too, each with its weight; with weight 1 for both you get the policy of the run"
            )
    faults.raise_any()
    name, revision = adapters[0].base
    base = bases.resolve(name, revision, root=Path.cwd())
    for adapter in adapters:
        with faults.collect():
            _check_base(adapter, adapters[0], base)
    faults.raise_any()
    return Plan(adapters, weights, base, rank)


def parse(given: Sequence[str]) -> tuple[list[str], list[float]]:
    """Folders and weights from `FOLDER` or `FOLDER=WEIGHT`; without weights, 1 / n for each.

    Raises:
        AlignError: none is given, only some have a weight, or one is no number.
    """
    if not given:
        raise AlignError("no adapter is given", "give folders with an adapter_config.json")
    names, weights = list[str](), dict[str, float]()
    for text in given:
        name, sign, value = text.rpartition("=")
        if not sign or user_paths.there(user_paths.expanded(text), Path.is_dir):
            names.append(text)
            continue
        names.append(name)
        with suppress(ValueError):
            weights[name] = float(value)
        if not math.isfinite(weights.get(name, math.nan)):
            raise AlignError(f"the weight of '{name}' cannot be '{value}'", "give a number, as in FOLDER=0.7")
    bare = [name for name in names if name not in weights]
    if weights and bare:
        raise AlignError(
            f"'{bare[0]}' has no weight, but others have one", "give every adapter a weight, or none of them"
        )
    return names, [weights.get(name, 1 / len(names)) for name in names]


def _check_base(adapter: SavedLora, first: SavedLora, base: Base) -> None:
    """Raises AlignError where an adapter was made for another base than the first, or does not fit it."""
    assert base.path is not None
    heads = {name: entry["shape"] for name, entry in bases.heads(base.path) if name != "__metadata__"}
    packed = bool(base.config.get("quantization_config"))  # its tensors have shapes of their own
    misfit = None if packed else next(adapter.misfits(heads), None)
    if not _same(adapter, first, base):
        one, two = (_shown(each) for each in (first, adapter))
        what = f"'{first.name}' was made for the base {one}, and '{adapter.name}' for {two}"
        fits = f", which does not fit: {misfit}" if misfit else ""
        raise AlignError(what + fits, "merge adapters of one base")
    if misfit:
        what = f"'{adapter.name}' was made for the base {_shown(adapter)}, but does not fit it: {misfit}"
        raise AlignError(what, "its base has changed: give the one that it was trained on")


def _same(adapter: SavedLora, first: SavedLora, base: Base) -> bool:
    """Whether two adapters were made for the same base: by name, by where its files are, or by what they hold."""
    if adapter.base == first.base:
        return True
    name, revision = adapter.base
    assert base.path is not None
    if not bases.is_on_hub(name, Path.cwd()):
        try:
            other = bases.resolve(name, revision, root=Path.cwd())
        except AlignError:
            return False
        return other.path == base.path.resolve() or other.identity() == _content(base).identity()
    commits = {None, "main", base.path.name}  # the Hub's cache keeps a model in models--OWNER--NAME/snapshots/COMMIT
    return f"models--{name.replace('/', '--')}" in base.path.parts and revision in commits


def _content(base: Base) -> Base:
    """The same files, known by their content alone."""
    return Base(base.name, base.path, None, base.config)


def _shown(adapter: SavedLora) -> str:
    name, revision = adapter.base
    return f"'{name}'" + (f" at revision '{revision}'" if revision else "")


def _write_adapter(plan: Plan, folder: Path) -> Combination:
    """The combination as PEFT loads it."""
    from safetensors.torch import save_file

    from align.adapters import lora_sum
    from align.policy import adapter_config

    terms = [(weight, adapter.factors()) for adapter, weight in zip(plan.adapters, plan.weights, strict=True)]
    found, made = lora_sum.combine(terms, plan.rank)
    name, revision = plan.adapters[0].base
    config = lora_sum.config_of(
        found, base_model_name_or_path=name, revision=revision, inference_mode=True,
        fan_in_fan_out=any(adapter.transposed for adapter in plan.adapters),
    )  # fmt: skip
    tensors = {
        f"base_model.model.{module}.lora_{matrix}.weight": tensor.float().contiguous()
        for module, pair in found.items()
        for matrix, tensor in zip("BA", pair, strict=True)
    }
    config.save_pretrained(str(folder))
    adapter_config.put_in_order(folder, config)
    save_file(tensors, folder / lora_files.WEIGHTS, metadata={"format": "pt"})
    return made


def _write_whole(plan: Plan, adapter: Path, folder: Path) -> Merge:
    """The base with the adapter in its weights, merged in float32; returns what that cost."""
    import torch

    from align.merging import into_base
    from align.policy import load as models
    from align.run_folder.records import Adapter

    assert plan.base.path is not None
    base = models.load_weights(str(plan.base.path), {}, torch.float32, None)
    modules = dict(base.named_modules())
    lost = next((name for each in plan.adapters for name in each.shapes if name not in modules), None)
    if lost is not None:
        what = f"the adapters change {lost}, which the base '{plan.base.name}' does not have"
        raise AlignError(what, "its base has changed: give the one that they were trained on")
    one = Adapter(name="merged", path=adapter.name, method="lora", settings={})
    try:
        prompts, target = _prompts(plan)[: into_base.ROWS], models.precision_of(plan.base.path)
        merged, report = into_base.merge(base, [one], adapter.parent, prompts, target)
    except AlignError as error:
        raise AlignError(error.what, "write only the combination: --form adapter", exit=error.exit) from error
    merged.save_pretrained(folder)
    return report


def _prompts(plan: Plan) -> list[list[int]]:
    """Token ids of running text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(plan, "merged"))
    texts = probes.running_text().texts["gate"]
    context = plan.base.context
    found = [tokenizer(text, truncation=bool(context), max_length=context)["input_ids"] for text in texts]
    return [ids for ids in found if ids]


def _tokenizer_folder(plan: Plan, form: str) -> Path:
    """The first adapter's folder; for whole weights the base's, where the adapter has no tokenizer."""
    assert plan.base.path is not None
    own = plan.adapters[0].folder
    return own if form == "adapter" or (own / "tokenizer_config.json").is_file() else plan.base.path


def _copy_tokenizer(plan: Plan, folder: Path, form: str) -> None:
    for file in sorted(_tokenizer_folder(plan, form).iterdir()):
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _TOKENIZER):
            shutil.copyfile(file, folder / file.name)
