"""What a run needs of the machine: packages, and room on the disk. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from align.engines import choose
from align.errors import AlignError, Exit, FaultList
from align.forgetting import action_keys
from align.policy.base import Base
from align.recipe.document import Loc, dotted
from align.recipe.plan import Loaded, StagePlan

DISTRIBUTION = "align-suite"
# Two checkpoints, each the weights and two Adam moments, and the result: in float32, twice the bytes of bfloat16.
_FULL_SHARE = 2 * (2 * 3 + 1)
_ADAPTER_SHARE = 0.5  # the same for an adapter of a few per cent
_FISHER_SHARE = 2  # a float32 for each weight that EWC weighs
_KEPT_SHARE = 1 / 7  # of these a model that an attempt or a share of an update adds: the result alone
# What transformers imports for a value of `optim`, by how the value begins: the module and its distribution.
_OPTIMIZERS = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
}
_ATTENTION = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
_OF_BITSANDBYTES = ("paged_", "lion_", "ademamix", "rmsprop_bnb", "adamw_8bit", "adamw_bnb_8bit")


def check_packages(loaded: Loaded) -> None:
    """Refuse a recipe for which a package is missing or of another version than the engine was made for.

    Raises:
        AlignError, Faults: with the line that installs it.
    """
    faults = FaultList()
    quantized = any(plan.layer.quantized for plan in loaded.stages)
    eight_bit = any(str(plan.training.get("optim")).startswith(_OF_BITSANDBYTES) for plan in loaded.stages)
    faults.found.extend(_unmet(skip=() if quantized or eight_bit else ("bitsandbytes",)))
    faults.found.extend(fault for plan in loaded.stages for fault in _of_training(loaded, plan))
    faults.found.extend(_engines(loaded))
    kernel = _ATTENTION.get(loaded.recipe.model.attn_implementation or "")
    if kernel and not _importable(kernel[0]) and not _importable("kernels"):  # which fetches them from the Hub
        faults.found.append(_absent(loaded, ("model", "attn_implementation"), kernel[1]))
    missing = [name for name in loaded.recipe.trackers if not _importable(name)]
    if missing:
        named = ", ".join(f"'{name}'" for name in missing)
        what = (
            f"the tracker {named} is not installed" if len(missing) == 1 else f"the trackers {named} are not installed"
        )
        fault = loaded.document.fault(("trackers",), what, f"pip install '{DISTRIBUTION}[{','.join(missing)}]'")
        fault.exit = Exit.MACHINE
        faults.found.append(fault)
    faults.raise_any()


def _engines(loaded: Loaded) -> Iterator[AlignError]:
    """What the engines lack that start the stages, once for each place that names one."""
    places = {("stages", plan.id, "launch") if plan.keys.launch else ("launch",): plan.launch for plan in loaded.stages}
    for at, launch in places.items():
        if (lacks := choose.of(launch).missing(launch)) is not None:
            fault = loaded.document.fault((*at, "engine"), *lacks)
            fault.exit = Exit.MACHINE
            yield fault


def _of_training(loaded: Loaded, plan: StagePlan) -> Iterator[AlignError]:
    """The packages that a stage's training arguments need and that are not there."""
    at = ("stages", plan.id, "training")
    optimizer = str(plan.training.get("optim", ""))
    for start, (module, distribution) in _OPTIMIZERS.items():
        if optimizer.startswith(start) and not _importable(module):
            yield _absent(loaded, (*at, "optim"), distribution)
    if plan.training.get("use_liger_kernel") and not _importable("liger_kernel"):
        yield _absent(loaded, (*at, "use_liger_kernel"), "liger-kernel")
    if plan.training.get("use_vllm") and not _importable("vllm"):
        yield _absent(loaded, (*at, "use_vllm"), "vllm")


def _absent(loaded: Loaded, at: Loc, distribution: str) -> AlignError:
    what = f"'{dotted(at)}' needs the package '{distribution}', which is not installed"
    fault = loaded.document.fault(at, what, f"pip install {distribution}")
    fault.exit = Exit.MACHINE
    return fault


def _importable(name: str) -> bool:
    """Whether a package is there; a mere folder of that name, such as the `wandb/` that wandb writes, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _unmet(skip: tuple[str, ...]) -> Iterator[AlignError]:
    """The requirements of this distribution that the machine does not meet."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that nobody installed
        return
    for requirement in map(Requirement, lines):
        if requirement.name in skip or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        versions = ",".join(sorted(map(str, requirement.specifier), reverse=True))  # the lower bound first
        install = f"pip install '{requirement.name}{versions}'"
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield AlignError(f"the package '{requirement.name}' is not installed", install, exit=Exit.MACHINE)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            what = f"{requirement.name} {installed} is installed, but align needs {versions}"
            yield AlignError(what, install, exit=Exit.MACHINE)


def disk_of(loaded: Loaded, plan: StagePlan, base: Base) -> int | None:
    """Bytes that a stage's checkpoints, its result and what is kept of its attempts take at most; None for a base whose
    weights are not here."""
    weights = sum(file.stat().st_size for file in base.path.glob("*.safetensors")) if base.path else 0
    keys = loaded.recipe.forgetting
    used = action_keys.used(keys.on_violation)
    more = (keys.retry.times if keys.retry and "retry" in used else 0) + ("interpolate" in used)
    share = _FULL_SHARE if plan.trains_base else _ADAPTER_SHARE
    weighed = _FISHER_SHARE if plan.keys.ewc and plan.keys.ewc.weight else 0
    return round(weights * (share * (1 + more * _KEPT_SHARE) + weighed)) if weights else None


def check_disk(loaded: Loaded, base: Base, run: Path) -> None:
    """Refuse a run whose checkpoints will not fit.

    Raises:
        AlignError: with the bytes that are needed and that there are.
    """
    if base.path is None:
        return
    needed = sum(disk_of(loaded, plan, base) or 0 for plan in loaded.stages)
    folder = next(p for p in (run.resolve(), *run.resolve().parents) if p.exists())
    held = sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) if run.is_dir() else 0
    free = shutil.disk_usage(folder).free + held  # what an earlier attempt wrote is not needed again
    if needed > free:
        what = f"the run needs about {needed / 1e9:.1f} GB of disk space, but '{folder}' has {free / 1e9:.1f} GB"
        raise AlignError(what, "free some space, or choose a --run-dir on another disk", exit=Exit.MACHINE)
