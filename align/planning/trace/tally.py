"""Counts the bytes that are alive while tensors come and go, by what they are and by what happens at the moment."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.planning.records import Moments, Part

BLOCK = 512  # bytes; what CUDA's caching allocator rounds a tensor up to
_SMALL = 2**16  # numbers; tokens, positions and masks of as many are kept with their content
_ITEM = torch.ops.aten._local_scalar_dense.default
_CHOSEN = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
_ADD, _ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


def _is_own(one: Any, other: Any) -> bool:
    """Whether two gradients are added up in a backward pass: autograd adds the second to the first in place, unless the
    tensors have no content."""
    if torch._C._current_graph_task_id() == -1 or not isinstance(other, torch.Tensor):
        return False
    whole = one.numel() * one.element_size() == one.untyped_storage().nbytes()
    return whole and one.shape == other.shape and one.dtype == other.dtype and not one.requires_grad


def _copied(given: list[torch.Tensor]) -> int:
    """Bytes of the copies that a pointwise operation makes of operands in another precision than its result's."""
    counted = [one for one in given if one.dtype != torch.bool and one.dim()]
    if len({one.dtype for one in counted}) < 2:
        return 0
    common = reduce(torch.promote_types, (one.dtype for one in counted))
    return sum(one.numel() * common.itemsize for one in counted if one.dtype != common)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result with its content: what tokens and masks say is small, and decides on how many tokens a loss is."""
    with unset_fake_temporarily():
        return func(*args, **(kwargs or {}))


def _places(index: torch.Tensor) -> Any:
    """Where a mask chooses, which only its content can tell; without any, everywhere."""
    if index.dtype != torch.bool:
        return index
    with unset_fake_temporarily():
        known = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
        return known.nonzero(as_tuple=True)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Entered after a FakeTensorMode, it sees each storage that is made and forgotten.

    Numbers that a program reads off a tensor are 1, or False: there is no content to read.

    Args:
        block: bytes that each storage is rounded up to; 1 counts what is asked for.
        casts: whether operands of several precisions are first copied into one, as on a CPU; a GPU casts each number.

    Attributes:
        moments: of each phase the most that was alive at once, in bytes by part.
    """

    def __init__(self, block: int = 1, *, casts: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.block, self.casts, self.phase, self.vocabulary = block, casts, "building", 0
        self.moments: Moments = {}
        self.alive: dict[Part, int] = {}
        self.total = 0
        self._most: dict[str, int] = {}
        self._known: dict[int, tuple[weakref.ref[Any], Part, int]] = {}
        self._made: Part | None = None
        self._gradients = [0, 0]  # that are whole in this backward pass, and of how many

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if given and not any(isinstance(one, FakeTensor) for one in given):
            return self._seen(_computed(func, args, kwargs))
        if func is _ITEM:
            kind = args[0].dtype
            return False if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func in _CHOSEN:
            args = (args[0], [index if index is None else _places(index) for index in args[1]], *args[2:])
            args[1][:] = [each for index in args[1] for each in (index if isinstance(index, tuple) else (index,))]
        if func is _ADD and not kwargs and _is_own(*args):
            func = _ADD_IN_PLACE
        out = func(*args, **(kwargs or {}))
        if not given and isinstance(out, torch.Tensor) and not out.is_floating_point() and out.numel() <= _SMALL:
            return self._seen(_computed(func, args, kwargs))
        self._seen(out)
        if self.casts and len(given) > 1 and torch.Tag.pointwise in func.tags:
            copies = _copied(given)
            self.total += copies
            self.alive["activations"] = self.alive.get("activations", 0) + copies
            self.note()
            self._add("activations", -copies)
        return out

    def name(self, tensors: Iterable[torch.Tensor], part: Part) -> None:
        """Say what tensors are that were seen already."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._known:
                held, before, size = self._known[key]
                self._known[key] = (held, part, size)
                self._add(before, -size)
                self._add(part, size)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Within, the phase is another."""
        before, self.phase = self.phase, phase
        self.note()
        yield
        self.phase = before

    @contextmanager
    def all_is(self, part: Part) -> Iterator[None]:
        """Within, whatever is made is of that part."""
        self._made = part
        yield
        self._made = None

    def forget_moments(self) -> None:
        """Begin anew: what comes next is what counts."""
        self.moments, self._most = {}, {}

    def watch_gradients(self, trained: list[torch.nn.Parameter]) -> None:
        """Name gradients as they become whole, and tell the early half of a backward pass from the late one."""
        self._gradients = [0, len(trained)]

        def whole(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.name([parameter.grad], "gradients")
            self._gradients[0] += 1

        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(whole)  # type: ignore[no-untyped-call]  # as above

    def _seen(self, out: Any) -> Any:
        for found in tree_leaves(out):
            if isinstance(found, torch.Tensor):
                self._see(found)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // self.block) * self.block

        def gone(_: Any) -> None:
            _, part, held = self._known.pop(key)
            self._add(part, -held)

        part = self._part(tensor)
        self._known[key] = (weakref.ref(storage, gone), part, size)
        self._add(part, size)
        self.note()

    def _part(self, tensor: torch.Tensor) -> Part:
        if self._made is not None:
            return self._made
        if self.phase in ("building", "loading"):
            return "weights" if self.phase == "building" else "other models"
        wide = tensor.dim() > 1 and tensor.size(-1) == self.vocabulary and tensor.is_floating_point()
        return "logits" if wide else "activations"

    def _add(self, part: Part, size: int) -> None:
        self.alive[part] = self.alive.get(part, 0) + size
        self.total += size

    def _now(self) -> str:
        """The phase, finer: in a backward pass what is kept shrinks while gradients grow, before and after the logits
        are gone."""
        if self.phase != "training":
            return self.phase
        if torch._C._current_graph_task_id() == -1:
            self._gradients[0] = 0
            return "forward"
        half = "early" if 2 * self._gradients[0] < self._gradients[1] else "late"
        return f"backward, {half}" + (", logits" if self.alive.get("logits") else "")

    def note(self) -> None:
        """What is alive now, where more was not before in this phase."""
        now = self._now()
        if self.total > self._most.get(now, -1):
            self._most[now] = self.total
            self.moments[now] = dict(self.alive)
