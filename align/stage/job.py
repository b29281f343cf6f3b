"""What a stage's `train(job)` works with: the model, the rows, and the way to run a trainer so that it resumes."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from align.data.replay import Source
from align.engines import choose
from align.errors import AlignError, Exit
from align.parameterization.chain import Layer
from align.run_folder import files, heartbeats, messages
from align.run_folder.messages import Told
from align.run_folder.paths import RunDir
from align.run_folder.records import Fisher, Ticket
from align.run_folder.stage_dir import StageDir
from align.stage.callbacks import Alive, Interrupted, Ready, Seal, Stop, Watch, figures
from align.stage.finite import Finite, Learning, assert_finite
from align.stage.keys import StageKeys
from align.stage.room import Room

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from align.penalties.quadratic import Penalty
    from align.stage.inside import Measuring
    from align.stage.proving import Proving

Record = dict[str, Any]
ENCODING_SECONDS = 2.0  # between two lines on how far the encoding of rows is
_TENSORBOARD = os.environ.get("TENSORBOARD_LOGGING_DIR")  # as the user set it, before any stage sets its own


@dataclass
class Job:
    """One stage at work in the child process.

    Attributes:
        keys: the stage's recipe keys, typed.
        run, dir: the folders of the run and of the stage.
        model: the policy that came in, with this stage's weights trainable; trained in place.
        inside: how the policy is measured while it is trained, where it is.
        rows, evaluation: canonical rows (align.data.formats), replayed ones included and counted in `groups`.
        groups: 0 for a row of the task, for a replayed one the number of its source from 1.
        penalties: what keeps the weights near where they started.
        distributed_type: how accelerate has trained it, once it has.
        weights: of all that keeps the policy near, by name, for the record.
        fisher: what `ewc` weighs by.
        proving: what proves before the first update that the launch trains what it should.
        replay: what a stage with `replays="term"` is to replay beside its rows, by source.
    """

    ticket: Ticket
    keys: StageKeys
    run: RunDir
    dir: StageDir
    model: Any
    tokenizer: PreTrainedTokenizerBase
    rows: list[Record]
    groups: list[int]
    evaluation: list[Record]
    interrupted: Callable[[], bool]
    warnings: list[str] = field(default_factory=list)
    steps: int = 0
    global_batch: int = 0
    distributed_type: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    inside: Measuring | None = None
    penalties: list[Penalty] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    fisher: Fisher | None = None
    replay: Sequence[Source] = ()
    proving: Proving | None = None

    def arguments(self, config: type[TrainingArguments], **fixed: Any) -> Any:
        """A TRL config from the recipe's `training`, with what the engine owns filled in.

        Args:
            fixed: arguments that come from recipe keys outside `training`.

        Raises:
            AlignError: TRL refuses a value.
        """
        ticket, cuda = self.ticket, torch.cuda.is_available()
        boards = Path(_TENSORBOARD) / ticket.run_name if _TENSORBOARD else self.dir.root / "tensorboard"
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(boards)  # transformers takes it from nowhere else
        given = dict(ticket.training)
        if not given.get("fp16"):
            given.setdefault("bf16", self._bf16())
        layer = Layer.of(ticket.parameterization, ticket.stage)
        given.setdefault("gradient_checkpointing", cuda and layer.traits.recomputes)
        given.setdefault("ddp_find_unused_parameters", False)
        given.setdefault("eval_strategy", "steps" if self.evaluation else "no")
        if given["eval_strategy"] == "steps":
            given.setdefault("eval_steps", 0.2)
        if given["eval_strategy"] != "no" and not given.get("eval_delay"):
            given.setdefault("eval_on_start", True)
        if self.ticket.resume_from:  # it did begin
            given["eval_on_start"] = False
        owned = {
            "output_dir": str(self.dir.checkpoints),
            "seed": ticket.seed,
            "report_to": ticket.trackers or "none",
            "run_name": ticket.run_name,
            "disable_tqdm": True,
            "use_cpu": not cuda,
            "dataloader_pin_memory": cuda,
            **choose.of(ticket.launch).arguments(ticket.launch),
        }
        try:
            made = config(**{**given, **owned, **fixed})
        except (ValueError, TypeError, ImportError) as error:
            raise AlignError(
                f"TRL refuses the training arguments of stage '{ticket.stage}': {_first_line(error)}",
                f"fix `stages.{ticket.stage}.training`",
            ) from error
        unset_hf_deepspeed_config()  # of ZeRO-3 it would have models loaded in parts
        made._n_gpu = min(made.n_gpu, 1)  # else one process puts DataParallel over all GPUs and multiplies the batch
        return made

    def _bf16(self) -> bool:
        """Whether to compute in bfloat16: where it is faster here; a stage begun on another machine stays with its
        own, or it would end with other weights."""
        from accelerate import PartialState

        from align.policy.load import native_bf16

        begun = files.read_object(self.dir.precision).get("bf16") if self.ticket.resume_from else None
        if isinstance(begun, bool):
            return begun
        chosen = native_bf16()
        if PartialState().is_main_process:
            files.write_json(self.dir.precision, {"bf16": chosen})
        return chosen

    def dataset(self, columns: dict[str, list[Any]]) -> Dataset:
        """A Dataset of token columns, held in memory."""
        from datasets import Dataset

        return Dataset.from_dict(columns)

    def table(self, name: str, batches: Iterator[dict[str, list[Any]]], rows: int) -> Dataset:
        """A Dataset of token columns on disk, of which memory holds no more than a batch.

        Args:
            name: of its file in the folder of the stage.
            batches: columns by name, as the functions of align.data.tokens yield them; used by the first process alone.
            rows: about how many there will be, for the progress that is shown.
        """
        from accelerate import PartialState
        from datasets import Dataset

        from align.data import table

        path, told = self.dir.tokens / f"{name}.arrow", _Encoding(self.at, rows)
        state = PartialState()
        if state.is_main_process:
            table.write(path, batches, told)
        state.wait_for_everyone()
        return Dataset.from_file(str(path))

    def fit(self, trainer: Trainer) -> dict[str, float]:
        """Train to the end, from the last whole checkpoint if there is one.

        Returns:
            the trainer's final metrics.

        Raises:
            Interrupted: the run was asked to stop.
            AlignError: the trainer of a stage of the user's own takes no penalties.
        """
        from align.policy import adalora
        from align.stage import inside

        stop = Stop(self.interrupted)
        checkpoint = self.dir.root / self.ticket.resume_from if self.ticket.resume_from else None
        if adalora.is_allocated(self.model):
            trainer.add_callback(adalora.Allocate(self.model, checkpoint))
        watch = Watch(self.dir.metrics, resumed=checkpoint is not None)
        proving = [self.proving.callback(trainer)] if self.proving else []
        watching = [inside.Watching(self.inside, self.model, watch, checkpoint)] if self.inside else []
        engine = choose.of(self.ticket.launch)
        engine.prepare(trainer)
        proof = Ready(lambda: engine.prove(trainer, self.ticket.launch))
        samples = hasattr(trainer, "restored")  # the loss of such a trainer is no measure of how well it does
        guards = [Finite(self, trainer), *([] if samples else [Learning(self)])]
        for callback in (*guards, *proving, watch, *watching, Seal(), stop, Room(trainer), Alive(), proof):
            trainer.add_callback(callback)
        self._penalise(trainer)
        args = trainer.args
        self.global_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._warm_up_if_it_can(trainer)
        if self.interrupted():  # nothing is to be saved yet
            raise Interrupted
        if checkpoint is None or not self._trained_whole(trainer, checkpoint):
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except pickle.UnpicklingError as error:
                if checkpoint is None or trainer.state.global_step > _step_of(checkpoint):
                    raise
                raise _no_tensors(checkpoint) from error  # torch reads tensors and numbers alone
            finally:
                _close(self.ticket.trackers)
        self.steps = trainer.state.global_step
        if stop.stopped:
            raise Interrupted
        # off with what was put around the model for training, so that it is measured and saved as itself
        engine.whole(trainer)
        self.distributed_type = str(trainer.accelerator.distributed_type.value)
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        if self.inside is not None:
            self._keep_within_limits(self.inside, trainer.state.max_steps)
        assert_finite(self.model, self.ticket.stage)
        return figures(trainer.state)

    def _penalise(self, trainer: Trainer) -> None:
        """Hand the penalties on weights to the trainer, if its loss has a place for them."""
        if not self.penalties:
            return
        penalise = getattr(trainer, "penalise", None)
        if penalise is None:
            named = " and ".join(f"`{penalty.name}`" for penalty in self.penalties)
            what = f"the trainer of stage '{self.ticket.stage}' takes no {named}"
            remedy = "let its class inherit from align.trainers.base.BaseTrainer, before TRL's"
            raise AlignError(what, remedy, exit=Exit.STAGE_FAILED)
        penalise(self.penalties)

    def _keep_within_limits(self, measuring: Measuring, planned: int) -> None:
        """Where a broken limit has ended the stage, hand on the last weights that broke none."""
        from align.forgetting import inside as curve
        from align.stage import inside

        if curve.ended(self.dir, measuring.settings, self.steps) is not None:
            inside.restore(self.model, self.dir.kept)
            self.warn(curve.sentence(self.dir, measuring.insight(self.steps), planned))

    def at(self, doing: str, done: int | None = None, of: int | None = None) -> None:
        """Tell what the stage is at while it does not train, and how much of it is done. Of the first process."""
        heartbeats.beat()
        messages.tell(self.dir.progress, Told(time=time.time(), at=doing, done=done, of=of))

    def say(self, text: str) -> None:
        """A line that stays on the terminal. Of the first process."""
        messages.tell(self.dir.progress, Told(time=time.time(), said=text))

    def warn(self, text: str) -> None:
        """Something that must be heard before the next stage begins: told at once, and kept in the outcome."""
        from accelerate import PartialState

        self.warnings.append(text)
        if PartialState().is_main_process:
            messages.tell(self.dir.progress, Told(time=time.time(), warning=text))

    def alarm(self, step: int, text: str) -> None:
        """Something goes wrong in training: told at once, and kept in the outcome's warnings. Of the first process."""
        self.warnings.append(text)
        entry = {"step": step, "time": time.time(), "alarm": text}
        with self.dir.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _warm_up_if_it_can(self, trainer: Trainer) -> None:
        """The first step of a warm-up has a learning rate of 0: of one step in all nothing would be learnt."""
        args, rows = trainer.args, len(trainer.train_dataset)
        steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * -(-rows // self.global_batch)
        if steps <= 1 and args.warmup_steps > 0:
            args.warmup_steps = 0
            self.warnings.append("there is only one step, so there was no warm-up: its learning rate would have been 0")

    def _trained_whole(self, trainer: Trainer, checkpoint: Path) -> bool:
        """Take a checkpoint of the last step as it is: transformers would train one step more from it."""
        from align.forgetting import inside

        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        over = self.inside and inside.ended(self.dir, self.inside.settings, state.global_step)
        if state.global_step < state.max_steps and not over:
            return False
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        restored = getattr(trainer, "restored", None)  # what a trainer that samples answers keeps beside the weights
        if restored is not None:
            restored(checkpoint)
        return True


class _Encoding:
    """Tells how far the encoding of rows is, where it takes a while."""

    def __init__(self, tell: Callable[[str], None], rows: int) -> None:
        self.tell, self.rows, self.time = tell, rows, time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.time >= ENCODING_SECONDS:
            self.time = now
            self.tell(f"encoding rows, {done:,} of {self.rows:,}")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _no_tensors(checkpoint: Path) -> AlignError:
    """Of a checkpoint that could run code when it is read, and that nothing was run of."""
    what = f"a file of the checkpoint '{checkpoint}' holds pickled objects other than tensors and numbers"
    remedy = "they could run code and were not loaded; remove that checkpoint: the stage goes on from the one before"
    return AlignError(what, remedy, exit=Exit.STAGE_FAILED)


def _close(trackers: list[str]) -> None:
    """End the tracker's run: the next stage is in the same process and begins its own."""
    if "wandb" in trackers:
        importlib.import_module("wandb").finish()
    if "mlflow" in trackers:
        importlib.import_module("mlflow").end_run()
    if "trackio" in trackers:
        importlib.import_module("trackio").finish()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
