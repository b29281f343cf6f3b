"""`align data show`: a row as the model sees it, through the stage's own trainer and its collator.

The stage builds its trainer around a very small stand-in for the model, with the model's own tokenizer, and is stopped
where it would begin to train.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from align.data import demonstrations
from align.data.formats import Example
from align.errors import AlignError
from align.preflight.check import Prepared, prepare
from align.recipe import training_arguments
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.launch import Launch
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity
from align.runner import launch, tickets
from align.stage.keys import StageKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
_ALONE: Final = {
    "report_to": "none",
    "packing": False,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "bf16": False,
    "fp16": False,
    "eval_strategy": "no",
    "max_steps": 1,
    "train_sampling_strategy": "sequential",
}


@dataclass(frozen=True)
class View:
    """What the model reads of a row, or of one side of it.

    Attributes:
        name: of the side; empty where there is one.
        ids, marked: its tokens without padding, and whether each is learnt; of a reward model, read.
    """

    name: str
    ids: list[int]
    marked: list[bool]


class _Built(Exception):
    """The stage built its trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer


def show(loaded: Loaded, stage: str, number: int) -> Iterator[Text]:
    """The lines that show a row.

    Args:
        stage: its id.
        number: of the row among those that the stage trains on, from 1.

    Raises:
        AlignError: there is no such stage or row, or anything that `align check` finds.
    """
    plan = next((plan for plan in loaded.stages if plan.id == stage), None)
    if plan is None:
        raise AlignError(
            f"there is no stage '{stage}'", f"choose one of: {', '.join(plan.id for plan in loaded.stages)}"
        )
    prepared = prepare(loaded, weights=False)
    rows = prepared.rows[stage].trained
    if not 1 <= number <= len(rows):
        raise AlignError(f"there is no row {number}: stage '{stage}' has {len(rows):,}", "count from 1")
    example = rows[number - 1]
    launch.quiet()
    from align.policy import load as models

    base = prepared.base.path
    assert base is not None
    tokenizer = models.load_tokenizer(str(base), prepared.chat_template, loaded.recipe.model.model_dump())
    asked = example.kind == "prompt" or plan.program.stage.demonstrated
    views = _prompt(example, tokenizer) if asked else _views(loaded, prepared, plan, example, tokenizer)
    yield Text(f"{stage}, row {number:,} of {len(rows):,} ({example.place})", style="bold")
    what = "where the score is read" if plan.program.stage.gives == "reward" else "what is trained on"
    yield Text(f"{OPEN}{CLOSE} marks {what}", style="dim")
    for view in views:
        name = f"{view.name}: " if view.name else ""
        marked = "" if asked else f", {sum(view.marked):,} marked"
        yield Text(f"\n{name}{len(view.ids):,} tokens{marked}", style="bold")
        yield _written(view, tokenizer)


def _written(view: View, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The tokens as text, special ones shown, with what is marked in brackets."""
    text, start = Text(), 0
    special = set(tokenizer.all_special_ids)
    while start < len(view.ids):
        marked = view.marked[start]
        end = next((at for at in range(start, len(view.ids)) if view.marked[at] != marked), len(view.ids))
        text.append(OPEN if marked else "", "bold green")
        for ids, is_special in _runs(view.ids[start:end], special):
            style = "cyan" if is_special else "green" if marked else ""
            text.append(str(tokenizer.decode(ids, skip_special_tokens=False)), style)
        text.append(CLOSE if marked else "", "bold green")
        start = end
    return text


def _runs(ids: Sequence[int], special: set[int]) -> Iterator[tuple[list[int], bool]]:
    run: list[int] = []
    for token in ids:
        if run and (token in special) != (run[-1] in special):
            yield run, run[-1] in special
            run = []
        run.append(token)
    if run:
        yield run, run[-1] in special


def _prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[View]:
    """A prompt of a stage that samples the answers, up to where they begin."""
    from align.data import encode
    from align.data.tokenizer import TextTokenizer

    prompt = example.value["prompt"] if example.kind == "prompt" else demonstrations.split(example.value)[0]
    (ids,) = encode.prompt_ids([prompt], TextTokenizer.of(tokenizer))
    return [View("prompt", ids, [False] * len(ids))]


def _views(
    loaded: Loaded, prepared: Prepared, plan: StagePlan, example: Example, tokenizer: PreTrainedTokenizerBase
) -> list[View]:
    """The row as the stage's collator gives it to the model."""
    from align.stage.job import Job

    class Shown(Job):
        """A job that goes as far as its trainer."""

        def fit(self, trainer: Any) -> dict[str, float]:
            raise _Built(trainer)

    others = [one for one in prepared.rows[plan.id].train if one.value.get("prompt") != example.value.get("prompt")]
    examples = [example, *others[:1]]  # KTO wants answers to other prompts beside it
    few = replace(prepared.rows[plan.id], train=examples, evaluation=[], replay=())
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        identity = BaseModelIdentity(name=prepared.base.name, path=str(prepared.base.path), identity="")
        known = training_arguments.known(str(plan.program.stage.arguments))
        training = plan.training | {name: value for name, value in _ALONE.items() if name in known}
        alone = replace(plan, training=training, launch=Launch())
        ticket = tickets.ticket_of(loaded, replace(prepared, rows={plan.id: few}), alone, run, identity)
        values = [one.value for one in examples]
        job = Shown(
            ticket=ticket,
            keys=_without_the_model(plan.keys),
            run=run,
            dir=run.stage(plan.id),
            model=_stand_in(tokenizer, scores=plan.program.stage.gives == "reward"),
            tokenizer=tokenizer,
            rows=values,
            groups=[0] * len(values),
            evaluation=[],
            interrupted=lambda: False,
        )
        job.dir.root.mkdir(parents=True)
        try:
            plan.program.stage.train(job)
        except _Built as built:
            return _collated(built.trainer, len(values))
    raise AlignError(f"the stage program '{plan.program.name}' trains without a trainer", "it cannot be shown")


def _without_the_model(keys: StageKeys) -> StageKeys:
    """The keys of a stage without what its starting policy decides, which is not there."""
    decided = {"mask_above_perplexity": None, "mask_at_random": False}
    return keys.model_copy(update={name: value for name, value in decided.items() if name in type(keys).model_fields})


def _stand_in(tokenizer: PreTrainedTokenizerBase, *, scores: bool) -> PreTrainedModel:
    """A model with next to no arithmetic in it over the same vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=2**20,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForSequenceClassification(config) if scores else LlamaForCausalLM(config)


def _collated(trainer: Any, rows: int) -> list[View]:
    """The views of the first of `rows` rows in a batch of the trainer's."""
    table = getattr(trainer.train_dataset, "rows", trainer.train_dataset)  # without those that fill a batch up
    chosen = range(0, len(table), rows)  # a table may have all first answers before all second ones
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(table))])
    ids, attention = batch["input_ids"], batch["attention_mask"].bool()
    if "labels" in batch:
        marks = batch["labels"] != -100
    elif "completion_mask" in batch:
        marks = batch["completion_mask"].bool()
    else:  # a reward model's score is read at the last token
        last = attention.long() * (ids != trainer.processing_class.pad_token_id).long()
        places = (last * last.cumsum(1)).argmax(1)
        marks = attention.new_zeros(ids.shape)
        marks[range(len(ids)), places] = True
    sides = len(ids) // len(table)
    names = ("chosen", "rejected") if sides == 2 else ("",)
    found = []
    for number in chosen:
        for side, name in enumerate(names):
            at = side * len(table) + number
            label = {True: "desirable", False: "undesirable"}.get(table[number].get("label"), "")
            kept = attention[at]
            found.append(View(name or label, ids[at][kept].tolist(), marks[at][kept].tolist()))
    return found
