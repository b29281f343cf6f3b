"""Named adapters of any method on one base, from Python: add, load, switch, stack, disable, save, merge and combine.

    >>> model = Adapted(base)                                    # doctest: +SKIP
    >>> model.add("sft", "lora", lora={"r": 8})                  # trainable; train `model.model`
    >>> model.load("runs/mine/stages/dpo/model", "dpo")          # frozen
    >>> model.switch("sft", "dpo")                               # exactly these act, dpo over sft
    >>> model.combine("mixed", {"sft": 0.7, "dpo": 0.3}, rank=8)

Every adapter is put on the bare base by `align.policy.stack`, in a PeftModel of its own, and its layers are then
taken off.
What acts is what lies in the base: to switch is to put layers back, each around what is there already. So the base
without adapters is the base's own modules and no other, a switch rewrites no `requires_grad` (PEFT's `set_adapter` and
`disable_adapter` do), and an adapter is saved as if it were alone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from align import errors
from align.adapters import lora_sum, merged_weights
from align.adapters import settings as adapter_settings
from align.adapters.lora_sum import Combination
from align.adapters.merged_weights import Written
from align.adapters.placement import Member, Place, built, link, refuse_bypass, refuse_overlaps
from align.errors import AlignError
from align.policy import adapter_config, stack
from align.policy import load as models
from align.run_folder.records import Adapter


@dataclass(frozen=True)
class Counts:
    """Numbers of weights: of the base, of each adapter, and of all that acts and is trainable."""

    base: int
    adapters: dict[str, int]
    trainable: int


class Adapted:
    """A base with named adapters, of which those act, in order, that `switch` says.

    The base is frozen, and used by nobody else meanwhile. Move it to its device first, and load it quantised for qlora.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base.requires_grad_(False)
        self._members: dict[str, Member] = {}
        self._active: tuple[str, ...] = ()
        self._linked: list[Place] = []
        self._disabled = False
        self._written = Written()
        self._before_merge: tuple[str, ...] = ()
        models.pin_4bit_layout(base)

    # What there is -------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, in the order in which they came."""
        return tuple(self._members)

    @property
    def active(self) -> tuple[str, ...]:
        """Those that act, in order; none while disabled."""
        return () if self._disabled else self._active

    @property
    def model(self) -> Any:
        """What to call and to train: the PeftModel that acts last (of prompts, if there are), or the bare base."""
        chosen = [self._members[name] for name in self.active]
        prompts = [member for member in chosen if member.config.is_prompt_learning]
        return (prompts or chosen)[-1].host if chosen else self.base

    def __call__(self, **inputs: Any) -> Any:
        """The model's output with the active adapters; `inputs` as transformers takes them."""
        return self.model(**inputs)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """One adapter's parameters by the names that they have in the base when it is alone, frozen ones too."""
        self._known([name])
        called, found = _peft_name(name), self._members[name].parameters(self.base)
        return {".".join(name if part == called else part for part in key.split(".")): p for key, p in found.items()}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer is to be given: of the active adapters, by name, each as it has `requires_grad`."""
        return {key: p for name in self.active for key, p in self.parameters(name).items() if p.requires_grad}

    def counts(self) -> Counts:
        """Numbers of weights; those of a 4-bit base are counted, not its bytes."""
        each = {name: sum(p.numel() for p in self.parameters(name).values()) for name in self.names}
        linked = {id(p) for name in self.active for p in self.parameters(name).values()}
        total = models.counts(self.base)["total"]
        inside = sum(p.numel() for p in self.base.parameters() if id(p) in linked)
        return Counts(total - inside, each, sum(p.numel() for p in self.trainable_parameters().values()))

    # Adapters come, act and go ---------------------------------------------------------------------------------------

    def add(self, name: str, method: str, **keys: Any) -> None:
        """A new adapter over those that act; it alone is trainable.

        Args:
            method: lora, qlora (over a base that is quantised), spectrum with `lora`, adapter, or a method of PEFT.
            keys: as in a recipe: `lora={"r": 8}`, `adapter={"r": 64}`, `peft={...}`.

        Raises:
            AlignError, Faults: the name is taken, the method is unknown or trains the base, a key is wrong, or PEFT
                cannot put it on this model. Nothing has changed then.
        """
        self._free(name)
        own, settings = adapter_settings.checked(method, keys, self._bits)
        acting = self._active
        member = self._inject(name, lambda: own.apply(self.base, settings, _peft_name(name)))
        self._members[name] = member
        try:
            self.switch(*acting, name)
        except AlignError:
            del self._members[name]
            raise
        for other in self.names:
            if other != name:
                for parameter in self.parameters(other).values():
                    parameter.requires_grad_(False)

    def load(self, folder: str | Path, name: str, *, trainable: bool = False) -> None:
        """A saved adapter, of align or of PEFT itself; it does not act yet, see `switch`.

        Args:
            trainable: its weights are trainable, as they were when it was made; else they are frozen.

        Raises:
            AlignError: there is no adapter in the folder, the name is taken, or it does not fit this base.
        """
        self._free(name)
        if not (Path(folder) / "adapter_config.json").is_file():
            raise AlignError(f"there is no adapter in '{folder}'", "give a folder with an adapter_config.json")
        config = PeftConfig.from_pretrained(str(folder))
        adapter_settings.refuse_changes_of_base(vars(config))
        called = _peft_name(name)
        adapter = Adapter(name=name, path=str(Path(folder).resolve()), method="", settings={})
        try:
            member = self._inject(name, lambda: stack.put(self.base, [adapter], Path(), last=called))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise AlignError(
                f"the adapter in '{folder}' does not fit this base: {reason}", "load its own base"
            ) from error
        self._members[name] = member
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(False)
        if trainable and config.is_prompt_learning:
            for parameter in self.parameters(name).values():
                parameter.requires_grad_(True)
        elif trainable:
            with self._alone(name):
                member.host.set_requires_grad(called)

    def save(self, name: str, folder: str | Path) -> None:
        """Write one adapter, as PEFT loads it onto the bare base: whole or not at all.

        Raises:
            AlignError: there is no such adapter, the folder has something in it, or adapters are merged.
        """
        self._known([name])
        self._not_merged()
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise AlignError(f"the folder '{folder}' is not empty", "give another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(name), tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            host = self._members[name].host
            host.save_pretrained(beside, selected_adapters=[_peft_name(name)])
            adapter_config.put_in_order(Path(beside) / _peft_name(name), host.peft_config[_peft_name(name)])
            (Path(beside) / _peft_name(name)).replace(folder)

    def switch(self, *chosen: str) -> None:
        """Let exactly these act, each over those before it; none of them is the base alone. No flag changes.

        The result is that of `align.policy.stack.put` with the same adapters in this order. Learnt prompts stand before
        the input wherever they are named.

        Raises:
            AlignError: one is unknown, named twice, or cannot act with another; those before go on acting then.
        """
        self._not_merged()
        self._known(chosen)
        acting = self.active
        self._link(())
        try:
            members = self._chosen(chosen)
            refuse_overlaps(members)
            self._link(chosen)
            refuse_bypass(members)
        except AlignError:
            self._link(acting)
            raise
        self._active, self._disabled = chosen, False

    def disable(self) -> None:
        """Let none act: the base is its own modules again, bit for bit. No flag changes.

        Raises:
            AlignError: adapters are merged into its weights.
        """
        self._not_merged()
        self._disabled = True
        self._link(())

    def enable(self) -> None:
        """Let those act again that did before `disable`."""
        if self._disabled:
            self._disabled = False
            self._link(self._active)

    # Weights ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def merge(self, *chosen: str) -> None:
        """Write adapters into the base's weights, one over the other in this order; without names, all that act.

        Those that act and are not named stay as layers over them. In a base of 16 bits the sum is rounded to them.
        Every weight that is touched is kept as it was until `unmerge`: memory for one more copy of those matrices,
        for LoRA on all linear layers nearly that of the base.

        Raises:
            AlignError: an adapter cannot be part of weights, the base is quantised, or something is merged already.
        """
        self._not_merged()
        chosen = chosen or self.active
        if self._disabled or not chosen:
            raise AlignError("there is nothing to merge", "enable() or switch() to the adapters first")
        self._known(chosen)
        members = self._chosen(chosen)
        merged_weights.check(members, self._bits)
        self._before_merge = self._active
        self.switch(*chosen, *(name for name in self.active if name not in chosen))
        try:
            self._written.write(members)
        except AlignError:
            self.unmerge()
            raise

    @torch.no_grad()
    def unmerge(self) -> None:
        """The weights and the active adapters as they were before `merge`, bit for bit; nothing where none is merged.

        The weights come from the copy: subtracting an update again leaves rounding errors behind.
        """
        merged = bool(self.merged)
        self._written.restore()
        if merged:
            self.switch(*self._before_merge)

    @property
    def merged(self) -> tuple[str, ...]:
        """The adapters that are in the base's weights now."""
        return self._written.names

    @torch.no_grad()
    def combine(self, name: str, weights: Mapping[str, float], rank: int | None = None) -> Combination:
        """A new LoRA adapter whose update is sum_i w_i s_i B_i A_i, with s_i = alpha_i / r_i; frozen, not acting yet.

        With A_i (r_i, in) and B_i (out, r_i), stacking A_i and placing w_i s_i B_i side by side is that sum exactly, of
        rank sum_i r_i (`cat` of PEFT's add_weighted_adapter). Interpolation is {"a": 1 - t, "b": t}.

        Args:
            weights: of each adapter; any finite numbers, which need not add up to 1.
            rank: keep only so many singular values of each module's sum: the best approximation of that rank (Eckart
                and Young 1936), from the SVD of the small core of two QR decompositions.

        Raises:
            AlignError: an adapter is no plain LoRA, a weight is not finite, or the name is taken.
        """
        self._free(name)
        self._known(list(weights))
        adapter_settings.check_combination(list(weights.values()), rank)
        terms = [(weight, lora_sum.factors(source, self._members[source])) for source, weight in weights.items()]
        found, made = lora_sum.combine(terms, rank)
        config = lora_sum.config_of(found)
        self._members[name] = member = self._inject(name, lambda: stack.add(self.base, config, _peft_name(name)))
        lora_sum.fill(member, found)
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(False)
        return made

    # Inside ----------------------------------------------------------------------------------------------------------

    def _inject(self, name: str, build: Callable[[], Any]) -> Member:
        """Build an adapter on the bare base and take it off again; what acts and the mode stay as they were."""
        acting = self.active
        self._link(())
        try:
            return built(self.base, _peft_name(name), build)
        finally:
            self._link(acting)

    def _link(self, chosen: Sequence[str]) -> None:
        """Exactly these adapters' layers lie in the base, each around those before it."""
        link(self._linked, list(self._chosen(chosen).values()))

    def _chosen(self, names: Sequence[str]) -> dict[str, Member]:
        return {name: self._members[name] for name in names}

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        acting = self.active
        self._link([name])
        try:
            yield
        finally:
            self._link(acting)

    @property
    def _bits(self) -> int | None:
        return next((bits for bits in (4, 8) if getattr(self.base, f"is_loaded_in_{bits}bit", False)), None)

    def _free(self, name: str) -> None:
        self._not_merged()
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise AlignError(f"'{name}' cannot be an adapter's name", "use letters, digits, - and _")
        if name in self._members:
            raise AlignError(f"there is already an adapter '{name}'", "give it another name")

    def _known(self, chosen: Sequence[str]) -> None:
        for number, name in enumerate(chosen):
            if name not in self._members:
                remedy = errors.did_you_mean(name, self.names) if self.names else "add() or load() one"
                raise AlignError(f"there is no adapter '{name}'", remedy)
            if name in chosen[:number]:
                raise AlignError(f"the adapter '{name}' is named twice", "name each only once")

    def _not_merged(self) -> None:
        if self.merged:
            raise AlignError(f"'{self.merged[0]}' is merged into the base's weights", "call unmerge() first")


def _peft_name(name: str) -> str:
    """PEFT's name of an adapter, as `align.policy.stack` gives it: `train` or `lora` themselves PEFT cannot take."""
    return stack.names([Adapter(name=name, path="", method="", settings={})])[0]
