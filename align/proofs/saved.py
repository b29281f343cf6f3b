"""What was saved is read again and compared with what was trained: names, shapes, types, bytes.

It catches an adapter file of 40 bytes, which is a header without tensors, as PEFT writes it of weights that ZeRO-3 has
partitioned (peft issue 2892, trl issue 4416), tensors of no elements, a file that was cut off, and any other weights
than those in memory. Only the header and the bytes of safetensors are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers.core_model_loading import revert_weight_conversion

from align.errors import AlignError, Exit
from align.policy import adalora, stack
from align.policy.stack import TRAINED
from align.proofs.weights import Digest, digest
from align.run_folder import files
from align.run_folder.proofs import Saved

Stored = Mapping[str, Digest]
_ADDED = (f".modules_to_save.{TRAINED}.", f".{TRAINED}.", ".base_layer.")  # by PEFT, to the names of what it wraps
_PROMPT = "prompt_embeddings"


def prove(folder: Path, model: Any, trained: Mapping[str, Digest]) -> Saved:
    """Compare a model folder with the trained weights. Of the first process.

    Args:
        model: that was saved.
        trained: hashes of its weights that were trained, by their names in it.

    Raises:
        AlignError: something is missing or is not as it was trained.
    """
    stored, made = dict(_read(folder)), _made(model)
    empty = [name for name, one in stored.items() if 0 in one.shape and (made is None or made.get(name) != one)]
    if empty:
        raise _wrong(f"'{empty[0]}' was saved without a number in it", folder)
    _hold(folder, stored, trained if made is None else made, None if made is not None else model)
    sizes = [file.stat().st_size for file in _files(folder)]
    content = {name: [one.shape, one.dtype, one.sha256] for name, one in stored.items()}
    return Saved(
        trained=len(trained),
        tensors=len(stored),
        numbers=sum(torch.Size(one.shape).numel() for one in stored.values()),
        bytes=sum(sizes),
        sha256=files.digest(content),
    )


def _hold(folder: Path, stored: Stored, trained: Mapping[str, Digest], model: Any) -> None:
    """That every trained tensor is in the files: under its name, or, where a library writes it under another, by its
    content; experts that are one tensor in memory and many in the file, by their parts; what is written in another form
    otherwise, in that form."""
    contents = set(stored.values())
    missing = []
    for name, one in trained.items():
        there = next((stored[known] for known in _names(name) if known in stored), None)
        if there is not None and there != one:
            raise _wrong(f"'{name}' is {_words(one)} in memory and {_words(there)} in the file", folder)
        if there is None and one not in contents and not (model is not None and _in_parts(model, name, contents)):
            missing.append(name)
    if missing and not (model is not None and _as_written(model, missing, contents)):
        held = f"the files hold {len(stored):,} tensors"
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise _wrong(f"'{missing[0]}'{more} of {len(trained):,} trained tensors are not there; {held}", folder)


def _made(model: Any) -> dict[str, Digest] | None:
    """What a method saves that makes something of its trained weights: a prompt, which an encoder may make; of AdaLoRA
    the ranks that were not pruned, which may be none of a matrix. None where the trained weights themselves are saved.
    """
    if not isinstance(model, PeftModel):
        return None
    if model.peft_config[TRAINED].is_prompt_learning:
        return {_PROMPT: digest(model.get_prompt_embedding_to_save(adapter_name=TRAINED))}
    if adalora.is_allocated(model):
        kept = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
        return {name: digest(tensor) for name, tensor in kept.items()}
    return None


def _names(name: str) -> Iterator[str]:
    """What a tensor may be called in a file: as in the model, without the adapter's name, without all that PEFT adds,
    without its wrapper. Two adapters of one module, as on experts, stand under names that differ in `base_layer` alone.
    """
    yield name
    yield name.replace(f".{TRAINED}.", ".").removesuffix(f".{TRAINED}")
    plain = name
    for added in _ADDED:
        plain = plain.replace(added, ".")
    plain = plain.removesuffix(f".{TRAINED}")
    yield from (plain, plain.removeprefix("base_model.model."))


def _in_parts(model: Any, name: str, contents: set[Digest]) -> bool:
    """Whether an expert tensor, (experts, ...), is in the files expert by expert, or by the halves of each, as gate and
    up are: transformers puts them together when it loads a mixture."""
    tensor = model.get_parameter(name)
    if tensor.ndim != 3:
        return False
    for expert in tensor:
        halves = (digest(half) for half in expert.chunk(2)) if expert.size(0) > 1 else iter([digest(expert)])
        if digest(expert) not in contents and not all(half in contents for half in halves):
            return False
    return True


def _as_written(model: Any, names: Sequence[str], contents: set[Digest]) -> bool:
    """Whether what transformers makes of these tensors is in the files: of some models it writes several as one, one as
    several, or one in another order, as their first authors did, and undoes that when it loads them."""
    base = stack.base_weights(model)
    made = revert_weight_conversion(model, dict(base))
    plain = base.keys() - {known for name in names for known in _names(name)}
    new = [tensor for name, tensor in made.items() if name not in plain]
    return bool(new) and all(digest(tensor) in contents for tensor in new)


def _read(folder: Path) -> Iterator[tuple[str, Digest]]:
    """Every tensor of the safetensors files in a folder, one at a time."""
    found = _files(folder)
    if not found:
        raise _wrong("there is no file of weights", folder)
    for file in found:
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                    yield name, digest(stored.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise _wrong(f"{file.name} cannot be read again ({error})", folder) from None
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(named - {file.name for file in found})
        if absent:
            raise _wrong(f"{index.name} names {absent[0]}, which is not there", folder)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _words(one: Digest) -> str:
    return f"{one.dtype} {list(one.shape)} with hash {one.sha256[:8]}"


def _wrong(what: str, folder: Path) -> AlignError:
    return AlignError(
        f"what was saved is not what was trained: {what}",
        f"see that the disk of {folder} is sound and not full, and run the same command again: it saves once more from "
        "the last checkpoint; if it comes again, the engine of this launch does not gather its weights before saving",
        exit=Exit.STAGE_FAILED,
    )
