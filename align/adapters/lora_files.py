"""A LoRA adapter as files: its settings, the shapes of its tensors, and whether it fits a base. No torch for that."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import user_paths
from align.adapters import settings as adapter_settings
from align.errors import AlignError
from align.policy import base
from align.run_folder import files, handed_on
from align.run_folder.records import Policy
from align.run_folder.stage_dir import StageDir

if TYPE_CHECKING:
    import torch

Shape = list[int]
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_COPY_AGAIN = "copy or download the adapter again"
# settings under which a layer of PEFT's LoRA computes something else than s B A
_VARIANTS = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
_WHOLE = ("modules_to_save", "trainable_token_indices", "layer_replication")


@dataclass(frozen=True)
class SavedLora:
    """A plain LoRA adapter in a folder.

    Attributes:
        name: the folder, as the user named it.
        settings: its adapter_config.json.
        shapes: of A (r, in) and B (out, r), by module.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, dict[str, Shape]]

    @property
    def base(self) -> tuple[str, str | None]:
        """The base that it was made for and its revision, as transformers finds it."""
        return self.settings["base_model_name_or_path"], self.settings.get("revision")

    @property
    def transposed(self) -> bool:
        """Whether the base's matrices are (in, out), as GPT-2's are."""
        return bool(self.settings.get("fan_in_fan_out"))

    def policy(self) -> Policy | None:
        """The policy of the run that wrote it; None for an adapter from elsewhere."""
        stage = StageDir(self.folder.resolve().parent)
        record = files.read_json(stage.outcome) if stage.model == self.folder.resolve() else None
        return Policy.model_validate(record["policy"]) if record and record.get("policy") else None

    def stage(self) -> Path:
        """The folder of the stage that made it, whether its model or a share of that."""
        place = self.folder.resolve().parent
        return place.parent if StageDir(place.parent).decided.root == place else place

    def beneath(self) -> list[Path]:
        """The folders of the adapters that lay under it in its run, and which it was trained on top of."""
        policy = self.policy()
        if policy is None:
            return []
        run = self.folder.resolve().parents[len(Path(policy.adapters[-1].path).parts) - 1]
        return [(run / adapter.path).resolve() for adapter in policy.adapters[:-1]]

    def misfits(self, weights: Mapping[str, Shape]) -> Iterator[str]:
        """What does not fit a base, tensor by tensor.

        Args:
            weights: the shapes of the base's tensors by name. A module that transformers calls otherwise once it is
                loaded is passed over, as long as others of the adapter are there.
        """
        patterns = {_pattern(name) for name in weights}
        found = {module: _weight_of(module, weights) for module in self.shapes}
        for module, shapes in self.shapes.items():
            there = found[module]
            if there is None:
                if not any(found.values()) or _pattern(f"{module}.weight") in patterns:
                    yield f"it has no {module}.weight"
                continue
            sides = [there[::-1], there] if self.transposed else [there[::-1]]  # a linear layer too may have the flag
            own = [shapes["A"][1], shapes["B"][0]]
            if own not in sides:
                wrong = "A" if own[0] not in [side[0] for side in sides] else "B"
                yield f"{module}.lora_{wrong}.weight is {_size(shapes[wrong])}, the weight there {_size(there)}"

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """s B (out, r) and A (r, in) of each module in float32, with s = alpha / r, or alpha / sqrt(r) (rsLoRA)."""
        from peft.utils.other import get_pattern_key
        from safetensors.torch import load_file

        tensors, alphas = load_file(self.folder / WEIGHTS), self.settings.get("alpha_pattern") or {}
        found = {}
        for module in self.shapes:
            b, a = (tensors[f"base_model.model.{module}.lora_{matrix}.weight"].float() for matrix in "BA")
            alpha = alphas.get(get_pattern_key(alphas.keys(), module), self.settings["lora_alpha"])
            rank = a.shape[0]
            found[module] = (alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank) * b, a)
        return found


def read(name: str) -> SavedLora:
    """Read an adapter's settings and the heads of its weights.

    Raises:
        AlignError: there is none, it is broken, or it is no plain LoRA.
    """
    folder = user_paths.expanded(name)
    if not user_paths.there(folder / SETTINGS, Path.is_file):
        raise _no_adapter(name, folder)
    settings = files.read_json(folder / SETTINGS)
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise AlignError(f"the {SETTINGS} of '{name}' is broken", _COPY_AGAIN)
    kind = settings["peft_type"].lower()
    entries = _entries(name, folder) if kind == "lora" else {}
    reason = _reason("adapter" if kind == "bottleneck" else kind, settings, entries)
    if reason:
        raise AlignError(f"'{name}' cannot be combined: {reason}", "give plain LoRA adapters")
    shapes: dict[str, dict[str, Shape]] = {}
    for key, shape in entries.items():
        if match := _NAME.fullmatch(key):
            shapes.setdefault(match[1], {})[match[2]] = shape
    if not shapes or any(len(pair) < 2 or pair["A"][0] != pair["B"][1] for pair in shapes.values()):
        raise AlignError(f"the weights of '{name}' are not pairs of lora_A and lora_B", _COPY_AGAIN)
    if not settings.get("base_model_name_or_path"):
        what = f"the adapter '{name}' does not say which base it was made for"
        raise AlignError(what, f"write its base into {SETTINGS}, as base_model_name_or_path")
    return SavedLora(name, folder, settings, shapes)


def _no_adapter(name: str, folder: Path) -> AlignError:
    if not folder.is_dir():
        return AlignError(f"there is no folder '{name}'", "give a folder with an adapter_config.json")
    stages = sorted({path.parent.parent for path in (folder / "stages").glob(f"*/model/{SETTINGS}")})
    if stages:
        first = handed_on.folder(StageDir(stages[0])).model
        return AlignError(f"'{name}' is a run, not an adapter", f"give one of its stages: {first}")
    what = "has full weights and no adapter" if (folder / "config.json").is_file() else "has no adapter"
    return AlignError(f"'{name}' {what}", "give a folder with an adapter_config.json")


def _entries(name: str, folder: Path) -> dict[str, Shape]:
    """The shapes of all tensors of an adapter, by their names in its file."""
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS).is_file():
        pickled = ", only pickled weights, which can run code when loaded" if list(folder.glob("*.bin")) else ""
        remedy = "load it with PEFT and save it again" if pickled else _COPY_AGAIN
        raise AlignError(f"the adapter '{name}' has no {WEIGHTS}{pickled}", remedy)
    try:
        with safe_open(folder / WEIGHTS, "np"):  # raises where the file is cut short
            pass
        return {key: entry["shape"] for key, entry in base.heads(folder) if key != "__metadata__"}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError):
        raise AlignError(f"the {WEIGHTS} of '{name}' is truncated, or not a safetensors file", _COPY_AGAIN) from None


def _reason(method: str, settings: Mapping[str, Any], entries: Mapping[str, Shape]) -> str | None:
    """Why an adapter is not s B A on linear layers of the base as it is, as a half-sentence; None where it is."""
    lora = [key for key in entries if ".lora_" in key]
    reason = adapter_settings.no_factors(
        method,
        variant=any(settings.get(key) for key in _VARIANTS) or any("magnitude_vector" in key for key in lora),
        whole=any(settings.get(key) for key in _WHOLE) or len(lora) < len(entries),
        experts=bool(settings.get("target_parameters")),
        embeddings=any("lora_embedding_" in key for key in lora),
        bias=bool(settings.get("lora_bias")) or any(key.endswith(".bias") for key in lora),
    )
    if reason or method != "lora":
        return reason
    try:
        adapter_settings.refuse_changes_of_base(settings)
    except AlignError as error:
        return error.what
    return "its A and B are not matrices" if any(len(shape) != 2 for shape in entries.values()) else None


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _weight_of(module: str, weights: Mapping[str, Shape]) -> Shape | None:
    """The shape of a module's weight in the files, which may leave the outermost name out or have one more."""
    for name in (f"{module}.weight", f"{module.partition('.')[2]}.weight"):
        if name in weights:
            return weights[name]
    return next((shape for name, shape in weights.items() if name.endswith(f".{module}.weight")), None)


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))
