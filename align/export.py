"""A finished policy as a folder of its own: merged into base weights, or its adapters alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from align import chain, launch, results, rundir
from align.errors import AlignError
from align.rundir import RunDir
from align.stage import Outcome, Policy, Ticket

FORMS = ("merged", "adapter")
DTYPES = ("auto", "bfloat16", "float16", "float32")
PROMPTS = 32  # on which the merged model is compared with the adapted one


@dataclass(frozen=True)
class Exported:
    """What was written; `agreement` is the share of next tokens in which the merged model is the adapted one."""

    folder: Path
    bytes: int
    agreement: float | None


def export(run: Path, stage: str | None, out: Path, form: str, dtype: str = "auto") -> Exported:
    """Write a stage's policy into a new folder that transformers (and PEFT, for adapters) load without align.

    Args:
        dtype: of merged weights; auto: the recipe's, or where that is auto too, that of the files of the weights.

    Raises:
        AlignError: the folder is there already, the policy cannot be had in this form, or the merge loses it.
    """
    ticket, outcome = results.find(run, stage)
    policy = outcome.policy
    assert policy is not None
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise AlignError(f"'{out}' is there already", "give a new folder, or remove it")
    agreement = None
    with rundir.whole_folder(out) as folder:
        if form == "adapter":
            _adapters(run, outcome, folder)
        else:
            _check_mergeable(policy, outcome.stage)
            agreement = _merged(RunDir(run), ticket, policy, folder, dtype)
        _card(RunDir(run).stage(outcome.stage).model / "README.md", folder, form, agreement)
    return Exported(out, sum(file.stat().st_size for file in out.rglob("*") if file.is_file()), agreement)


def _check_mergeable(policy: Policy, stage: str) -> None:
    layers = chain.layers(policy.adapters)
    count = chain.mergeable(layers)
    if count < len(layers):
        what = f"the {layers[count].keys.method} of stage '{layers[count].stage}' cannot be merged into weights"
        raise AlignError(what, f"export the adapters of '{stage}' alone: --form adapter")


def _adapters(run: Path, outcome: Outcome, out: Path) -> None:
    """Copy adapters: one into the folder itself; several, or those on weights that the run trained, into folders named
    for their stages, in order, with the weights as `0-base`."""
    policy = outcome.policy
    assert policy is not None
    if not policy.adapters:
        raise AlignError(f"stage '{outcome.stage}' trained whole weights and has no adapter", "--form merged")
    if policy.weights is not None:
        shutil.copytree(run / policy.weights, out / "0-base")
    for number, adapter in enumerate(policy.adapters, 1):
        one = len(policy.adapters) == 1 and policy.weights is None
        shutil.copytree(run / adapter.path, out if one else out / f"{number}-{adapter.name}", dirs_exist_ok=True)


def _merged(run: RunDir, ticket: Ticket, policy: Policy, out: Path, dtype: str) -> float | None:
    """Merge and save; returns the agreement, None where there was nothing to merge."""
    launch.quiet()
    import torch

    from align import adapters
    from align import model as models
    from align.handover import prompts
    from align.work import read_rows

    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    folder = str(run.root / policy.weights) if policy.weights else policy.base.path
    held = models.dtype_of(ticket.model.get("dtype", "auto"), trains_base=policy.weights is not None)
    base = models.load_weights(folder, ticket.model, held, policy.quantization)
    asked = ticket.model.get("dtype", "auto") if dtype == "auto" else dtype
    target = models.precision_of(Path(folder)) if asked == "auto" else getattr(torch, asked)
    agreement = None
    if policy.adapters:
        rows = prompts(read_rows(run, ticket.train)[:PROMPTS], tokenizer)
        try:
            base, report = adapters.merge(base, policy.adapters, run.root, rows, target)
        except AlignError as error:
            raise AlignError(error.what, "--dtype float32, or --form adapter", exit=error.exit) from error
        agreement = report.agreement
    models.cast(base, target).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return agreement


def _card(card: Path, out: Path, form: str, agreement: float | None) -> None:
    """The model card of the stage, with what was done to it here."""
    text = card.read_text(encoding="utf-8")
    if form == "merged":
        text = text.replace("library_name: peft", "library_name: transformers")
        if agreement is not None:
            text += "- merged into the weights of the base; its next token is the adapted model's in "
            text += f"{agreement:.1%} of positions\n"
    rundir.write_text(out / "README.md", text)
