"""The choice of a method, a rank, a rate and a batch, each with its reason. No torch, and nothing is read.

The usual rules are those of LoRA's and QLoRA's papers (arXiv 2106.09685, 2305.14314) and of handbooks: QLoRA on a card
below 24 GB, LoRA up to 48 GB, all weights where quality is all that counts. They are checked against what this model
takes with these data, which decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from align.guidance.situation import GB, Situation
from align.stage import program

_HERE: Final = Path()
BATCH: Final = 16  # rows of an update
MOST_AT_ONCE: Final = 16
MANY_ROWS: Final = 100_000  # from which on full training pays, where the data are far from pretraining
LARGE: Final = 13.5  # billions of parameters: more than "13B", whose models have 13.0

# Bytes in GB that handbooks give for a model of so many billions of parameters, by method; each a range.
USUAL: Final[dict[float, dict[str, str]]] = {
    7: {"full": "60 GB in pure bfloat16, 2 of 80 GB", "lora": "12 to 16 GB", "qlora": "6 GB"},
    13: {"full": "4 of 80 GB", "lora": "24 to 28 GB", "qlora": "10 GB"},
    33: {"qlora": "20 GB"},
    70: {"full": "8 of 80 GB", "lora": "80 to 160 GB", "qlora": "40 to 48 GB"},
}
_CLASS: Final = 0.2  # so far from it is a model still of a class


@dataclass(frozen=True)
class Choice:
    """What is advised.

    Attributes:
        settings: of the parameterization, as a recipe has them.
        training: arguments of the stage.
        launch: of several devices; empty for one.
        reasons: one sentence for each decision, the method first.
    """

    method: str
    settings: dict[str, Any]
    training: dict[str, Any]
    launch: dict[str, Any]
    reasons: tuple[str, ...]


def choose(now: Situation) -> Choice:
    """The advice; the goal is not `provider`, where there is nothing to choose."""
    method, why = _method(now)
    settings, of_rank = _settings(now, method)
    training, of_training = _training(now, method)
    launch: dict[str, Any] = {}
    if now.tasks > 1 and now.goal in ("quality", "prototype"):
        why.append(f"{now.tasks} tasks on one base come before the goal {now.goal}")
    if now.far and method != "full":
        why.append(f"data far from pretraining ask for all weights from {MANY_ROWS:,} rows on; here are {now.rows:,}")
    if method == "full" and now.devices > 1 and now.fits("full") and not _alone(now):
        launch = {"engine": "fsdp", "processes": now.devices}
    elif now.devices > 1:
        launch = {"processes": now.devices}
    return Choice(method, settings, training, launch, (*why, *of_rank, *of_training))


def least(stage: str) -> int:
    """Rows that a batch has at least: KTO estimates the KL from the other answers of one."""
    return 2 if stage == "kto" else 1


def usual(now: Situation) -> tuple[str, str]:
    """What the handbooks say of the situation: the method, and the rule in words."""
    if now.tasks > 1:
        each = "one for each, switched per request"
        return "lora", f"for {now.tasks} tasks on one base LoRA or bottleneck adapters are usual: {each}"
    if now.goal == "prototype":
        return "prefix_tuning", "for a rapid prototype prefix tuning is usual"
    if now.goal == "quality":
        return "full", "where cost is no object training all weights is usual"
    if now.rows > MANY_ROWS and now.far:
        return "full", f"for more than {MANY_ROWS:,} rows far from pretraining training all weights is usual"
    if now.goal == "domain":
        return "lora", "for a domain LoRA of rank 32 to 64 on all linear layers is usual"
    if now.billions > LARGE and now.devices == 1:
        return "qlora", "for more than 13 billion parameters on one card QLoRA is usual"
    if now.label is None:
        return "lora", "where the memory is not known LoRA is usual"
    if now.label < 24:
        return "qlora", f"for {now.label:g} GB, less than 24, QLoRA is usual"
    if now.label < 40 or now.billions > 8:
        return "lora", f"for {now.label:g} GB LoRA is usual"
    return "lora", f"for {now.label:g} GB LoRA is usual, or all weights of a model of 7 billion"


def _method(now: Situation) -> tuple[str, list[str]]:
    """The usual method if it fits; a heavier one of the same kind where the usual saves what need not be saved; a
    lighter one where it does not fit."""
    method, rule = usual(now)
    said = [rule]
    if method == "qlora" and now.fits("lora"):
        said.append(f"LoRA fits as well ({_takes(now, 'lora')}), and 4 bits would save what need not be saved")
        return "lora", said
    while now.fits(method) is False:
        lighter = {"full": "lora", "lora": "qlora", "prefix_tuning": "qlora", "adapter": "qlora"}.get(method)
        if lighter is None:
            said.append(f"but it does not fit: it {_takes(now, method)}; take a smaller model or a larger device")
            return method, said
        said.append(f"but it {_takes(now, method)} here, which does not fit: {_NAMES[lighter]} instead")
        method = lighter
    if now.fits(method):
        shared = f" on each of {now.devices}, shared by FSDP2" if method == "full" and not _alone(now) else ""
        said.append(f"with the longest row of the data it {_takes(now, method)}{shared}, which fits")
    return method, said


def _alone(now: Situation) -> bool:
    """Whether full training fits on one device."""
    found = now.needs.get("full")
    return found is None or now.memory is None or found.peak <= now.memory


def _takes(now: Situation, method: str) -> str:
    about = "" if now.needs[method].exact else "about "
    return f"takes {about}{now.of_a_device(method) / GB:.3g} GB"


_NAMES: Final = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA", "prefix_tuning": "prefix tuning"}


def _settings(now: Situation, method: str) -> tuple[dict[str, Any], list[str]]:
    """Rank and scale by how much there is to learn: 4 to 8 for simple tasks, 16 to 32 for medium, 64 and more."""
    if method not in ("lora", "qlora"):
        return {"method": method}, []
    if now.goal == "domain":
        rank = 64 if now.rows >= 20_000 else 32
        why = f"rank {rank}: a domain asks for 32 to 64"
    elif now.rows < 1_000:
        rank, why = 8, f"rank 8: {now.rows:,} rows teach something simple (4 to 8)"
    elif now.rows < 20_000:
        rank, why = 16, f"rank 16: {now.rows:,} rows teach something of medium size (16 to 32)"
    else:
        rank, why = 64, f"rank 64: {now.rows:,} rows may teach something complex (64 to 128; at most 256)"
    settings: dict[str, Any] = {"method": method, "lora": {"r": rank, "alpha": 2 * rank, "target_modules": "auto"}}
    return settings, [f"{why}; alpha twice the rank, on all linear layers"]


def _training(now: Situation, method: str) -> tuple[dict[str, Any], list[str]]:
    """Rate and batch."""
    defaults = program.load(now.stage, _HERE).stage.defaults
    family = "full" if method == "full" else "adapter"
    rate = {**defaults.get("all", {}), **defaults.get(family, {})}["learning_rate"]
    region = {"full": "1e-5 to 5e-5", "adapter": "1e-4 to 3e-4"}[family]
    why = f"learning rate {rate:g}: the default of {now.stage}"
    if method == "prefix_tuning":
        rate, why = 1e-2, "learning rate 0.01: what is learnt in front of the words takes far larger steps than weights"
    elif now.stage == "sft":
        why += f", in the region of {region}"
    few = least(now.stage)
    most = max(few, BATCH // now.devices)
    at_once = max(n for n in (1, 2, 4, 8, MOST_AT_ONCE) if few <= n <= most and (n == few or now.fits(method, n)))
    accumulated = max(1, BATCH // (at_once * now.devices))
    training = {
        "learning_rate": rate,
        "num_train_epochs": 3 if now.rows < 10_000 else 1,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": accumulated,
    }
    of_batch = f"{at_once} {'row' if at_once == 1 else 'rows'} at a time"
    if now.fits(method, at_once) and 2 * at_once <= most:
        of_batch += f", the most that fits ({now.of_a_device(method, at_once) / GB:.3g} GB)"
    of_batch += f", {at_once * accumulated * now.devices} rows an update"
    return training, [why, of_batch]


def compared(now: Situation) -> Iterator[tuple[str, str, str, str]]:
    """Of each method: its name, what it takes here, whether that fits, and what handbooks give for such a model."""
    size = next((size for size in USUAL if abs(now.billions / size - 1) <= _CLASS), None)
    for method, found in now.needs.items():
        fits = {True: "fits", False: "does not fit", None: ""}[now.fits(method)]
        given = USUAL[size].get(method, "") if size else ""
        about = "" if found.exact else "~"
        yield method, f"{about}{found.peak / GB:.3g} GB", fits, f"{given} for {size:g}B" if given else ""
