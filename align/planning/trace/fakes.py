"""What is put in place of that which reads files, or content that is not there, while a stage is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoConfig, Trainer, TrainerCallback
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer import dpo_trainer, kto_trainer

from align.parameterization import method as methods
from align.planning.trace import base
from align.planning.trace.tally import Tally
from align.policy import load as models
from align.policy import score_head, stack
from align.rl import critic, scoring
from align.run_folder.records import Adapter, Gives
from align.spectrum import choose, scan
from align.stage.job import Job
from align.trainers.kept_reference import KeptReference

GOLDEN = 0.618  # of which the multiples lie evenly between 0 and 1


@contextmanager
def in_place(tally: Tally, base_folder: Path, depth: int | None) -> Iterator[None]:
    """Within, models come from configs, adapters from their settings, and a stage trains without a word to anyone."""
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (models, "load_weights", _loading(tally, base_folder, depth)),
        (stack, "put", _put),
        (stack, "resume", _resume),
        (score_head, "of_adapter", _head(base_folder)),
        (scan, "scan_tensors", _ranked),
        (KeptReference, "refer_steps", _refer),
        (KeptReference, "refer_held_out", lambda self, rows, columns: rows),
        (dpo_trainer, "hash_module", lambda module: ""),
        (kto_trainer, "hash_module", lambda module: ""),
        (RLOOTrainer, "_generate_single_turn", _sampling(tally)),
        (GRPOTrainer, "_generate_single_turn", lambda *given: (_sampling(tally)(*given), None)),
        (critic, "save", lambda model, folder: None),
        (scoring.Function, "__init__", lambda self, reward: setattr(self, "name", reward.name)),
        (scoring.Function, "__call__", lambda self, asked: [0.0] * len(asked.completions)),
        (nn.Module, "_apply", _converted),
        (Trainer, "_move_model_to_device", lambda self, model, device: model),
        (Job, "fit", _fit(tally)),
    ]
    with ExitStack() as held:
        for owner, name, other in replaced:
            held.enter_context(mock.patch.object(owner, name, other))
        yield


def _loading(tally: Tally, base_folder: Path, depth: int | None) -> Callable[..., Any]:
    def load_weights(
        folder: str,
        keys: dict[str, Any],
        dtype: torch.dtype,
        quantization: dict[str, Any] | None,
        gives: Gives = "policy",
    ) -> Any:
        phase = "building" if tally.phase == "building" else "loading"
        with tally.during(phase):
            own = Path(folder) == base_folder or not Path(folder).is_dir()  # of a stage that has not run
            there, layers = (base_folder, depth) if own else (Path(folder), None)
            return base.make(there, keys, dtype, quantization, gives, layers)

    return load_weights


def _put(model: Any, adapters: Sequence[Adapter], run: Path, *, last: str | None = None) -> Any:
    called = stack.names(adapters)
    if last is not None and called:
        called[-1] = last
    for name, adapter in zip(called, adapters, strict=True):
        model = _made(model, adapter, name)
    if adapters:
        stack.activate(model, called)
        model.requires_grad_(False)
    return model


def _resume(model: Any, adapter: Adapter, run: Path) -> Any:
    return _made(model, adapter, stack.TRAINED)


def _made(model: Any, adapter: Adapter, name: str) -> Any:
    method = methods.load(adapter.method)
    return method.apply(model, method.Keys.model_validate(adapter.settings), name)


def _head(base_folder: Path) -> Callable[..., Any]:
    """Of a reward model that a stage will have trained as an adapter."""

    def of_adapter(folder: Path, device: torch.device) -> Any:
        config = AutoConfig.from_pretrained(base_folder)
        width = config.get_text_config(decoder=True).hidden_size
        return score_head.Score(width, 1, bias=False).requires_grad_(False)

    return of_adapter


def _ranked(tensors: Any, estimator: str = "mp") -> list[choose.Record]:
    """Ratios that have Spectrum choose layers evenly over the depth of the model."""
    found = [matrix for name, tensor in tensors for matrix in choose.weight_matrices(name, tuple(tensor.shape))]
    return choose.in_largest_stack(
        [
            choose.Record(one.name, one.type, one.layer, one.shape, 1 + (GOLDEN * (one.layer + 1)) % 1, 1.0, False)
            for one in found
        ]
    )


def _refer(self: Any, rows: Any, columns: Sequence[str]) -> None:
    self.reference_columns = columns
    rows.columns.update({column: [0.0] * len(rows.places) for column in columns})


def _converted(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """torch would swap the tensors, which it cannot with those that have no content."""
    for child in self.children() if recurse else ():
        child._apply(fn)  # type: ignore[no-untyped-call]  # torch gives it no types
    for name, held in list(self._parameters.items()):
        if held is not None:
            with torch.no_grad():
                new = fn(held)
            if new.dtype != held.dtype:
                self._parameters[name] = nn.Parameter(new, held.requires_grad)
    for name, buffer in list(self._buffers.items()):
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _sampling(tally: Tally) -> Callable[..., list[list[int]]]:
    def sampled(trainer: Any, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        with tally.during("sampling"):
            return _sampled(tally, trainer, prompt_ids)

    return sampled


def _sampled(tally: Tally, trainer: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
    """Answers of the greatest length, and what sampling them takes: a pass over the prompts, and then the keys and
    values of all tokens."""
    most, count = trainer.args.max_completion_length, len(prompt_ids)
    trainer.model.eval()  # in training, checkpointed layers keep no keys and values
    with torch.no_grad():
        asked = torch.ones(count, max(map(len, prompt_ids)), dtype=torch.long)
        out = trainer.model(input_ids=asked, use_cache=True, logits_to_keep=1)
        pairs = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        shapes = [(*one.shape[:2], one.shape[2] + most, *one.shape[3:]) for pair in pairs for one in pair]
        with tally.all_is("key-value cache"):
            held = [pairs[0][0].new_empty(shape) for shape in shapes]
    trainer.model.train()
    del out, pairs, held
    return [[trainer.processing_class.eos_token_id] * most for _ in prompt_ids]


class _Steps(TrainerCallback):
    """Names what the optimizer keeps; the first step, which makes that, is not what counts."""

    def __init__(self, tally: Tally, trainer: Any) -> None:
        self.tally, self.trainer = tally, trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.tally.phase = "updating"
        self.tally.note()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.tally.phase = "training"
        state = self.trainer.optimizer.state
        kept = [one for each in state.values() for one in each.values() if isinstance(one, torch.Tensor)]
        self.tally.name(kept, "optimizer")

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 1:
            self.tally.forget_moments()
            if hasattr(self.trainer, "_buffered_inputs"):
                self.trainer._buffered_inputs = None  # a rollout beside what the optimizer keeps


def _with_content(collate: Callable[..., Any], rows: Any) -> Any:
    """A batch with its tokens and masks, which say how many tokens a loss is about."""
    with unset_fake_temporarily():
        return collate(rows)


def _fit(tally: Tally) -> Callable[..., dict[str, float]]:
    def fit(self: Job, trainer: Any) -> dict[str, float]:
        trainer.add_callback(_Steps(tally, trainer))
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: _with_content(collate, rows)
        tally.name([*self.model.parameters(), *self.model.buffers()], "weights")
        tally.watch_gradients([one for one in trainer.model.parameters() if one.requires_grad])
        self._penalise(trainer)
        with tally.during("training"):
            trainer.train()
        return {}

    return fit
