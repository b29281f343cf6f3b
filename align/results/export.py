"""A finished policy or reward model as a folder of its own: merged into base weights, or its adapters alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import AlignError
from align.merging.verdict import Merge
from align.parameterization import chain
from align.results import find
from align.run_folder import files as run_files
from align.run_folder import handed_on
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Policy, Ticket
from align.runner import launch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMS = ("merged", "adapter")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Exported:
    """What was written, and what merging cost; None where nothing was merged."""

    folder: Path
    bytes: int
    merge: Merge | None


def export(run: Path, stage: str | None, out: Path, form: str, dtype: str = "auto") -> Exported:
    """Write a stage's result into a new folder that transformers (and PEFT, for adapters) load without align.

    Args:
        dtype: of merged weights; auto: the recipe's, or where that is auto too, that of the files of the weights.

    Raises:
        AlignError: the folder is there already, the result cannot be had in this form, or the merge breaks it.
    """
    ticket, outcome = find.find(run, stage, rewards=True)
    model = find.model(outcome)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise AlignError(f"'{out}' already exists", "give a new folder, or remove it")
    merge = None
    with run_files.whole_folder(out) as folder:
        if form == "adapter":
            _adapters(run, outcome.stage, model, folder)
        else:
            _check_mergeable(model, outcome.stage)
            merge = _merged(RunDir(run), ticket, outcome, folder, dtype)
        _card(handed_on.folder(RunDir(run).stage(outcome.stage)).model / "README.md", folder, form, merge)
    return Exported(out, sum(file.stat().st_size for file in out.rglob("*") if file.is_file()), merge)


def _check_mergeable(model: Policy, stage: str) -> None:
    layers = chain.layers(model.adapters)
    count = chain.mergeable(layers)
    if count < len(layers):
        what = f"the {layers[count].keys.method} of stage '{layers[count].stage}' cannot be merged into weights"
        raise AlignError(what, f"export only the adapters of '{stage}': --form adapter")


def _adapters(run: Path, stage: str, model: Policy, out: Path) -> None:
    """Copy adapters: one into the folder itself; several, or those on weights that the run trained, into folders named
    for their stages, in order, with the weights as `0-base`."""
    if not model.adapters:
        raise AlignError(f"stage '{stage}' trained full weights and has no adapter", "--form merged")
    if model.weights is not None:
        shutil.copytree(run / model.weights, out / "0-base")
    for number, adapter in enumerate(model.adapters, 1):
        one = len(model.adapters) == 1 and model.weights is None
        shutil.copytree(run / adapter.path, out if one else out / f"{number}-{adapter.name}", dirs_exist_ok=True)


def _merged(run: RunDir, ticket: Ticket, outcome: Outcome, out: Path, dtype: str) -> Merge | None:
    """Merge and save; returns what that cost, None where there was nothing to merge."""
    launch.quiet()
    import torch

    from align.merging import into_base
    from align.policy import load as models
    from align.policy import stack
    from align.worker.handover import prompts
    from align.worker.rows import read_rows

    model = find.model(outcome)
    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    whole = stack.load_base(model, ticket.model, run.root, ticket.gives)
    asked = ticket.model.get("dtype", "auto") if dtype == "auto" else dtype
    files = Path(run.root / model.weights if model.weights else model.base.path)
    target = models.precision_of(files) if asked == "auto" else getattr(torch, asked)
    merge = None
    if model.adapters:
        rows = prompts(read_rows(run, ticket.train)[: into_base.ROWS], tokenizer)
        try:
            whole, merge = into_base.merge(whole, model.adapters, run.root, rows, target)
        except AlignError as error:
            remedy = "--form adapter" if target == torch.float32 else "--dtype float32, or --form adapter"
            raise AlignError(error.what, remedy, exit=error.exit) from error
    _save(into_base.cast(whole, target), tokenizer, ticket, out)
    return merge


def _save(whole: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ticket: Ticket, out: Path) -> None:
    """Write what transformers loads; a reward model is told by its padding token where a row ends."""
    if ticket.gives == "reward":
        whole.config.get_text_config().pad_token_id = whole.config.pad_token_id = tokenizer.pad_token_id
    whole.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _card(card: Path, out: Path, form: str, merge: Merge | None) -> None:
    """The model card of the stage, with what was done to it here."""
    text = card.read_text(encoding="utf-8")
    if form == "merged":
        text = text.replace("library_name: peft", "library_name: transformers")
        if merge is not None:
            text += f"- merged into the weights of the base: {merge.figures}\n"
            text += f"- **{merge.warning}**\n" if merge.warning else ""
    run_files.write_text(out / "README.md", text)
