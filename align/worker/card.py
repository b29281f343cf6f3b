"""The model card of a stage's result: it names the original base, the recipe, the data and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.parameterization import chain
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Policy, Ticket
from align.run_folder.stage_dir import StageDir


def write(folder: Path, run: RunDir, ticket: Ticket, outcome: Outcome, notes: Sequence[str] = ()) -> None:
    """Write README.md over the one that a library left there.

    Args:
        folder: with the measurements of the policy beside it.
        notes: what else was done to the policy.
    """
    policy = outcome.policy or outcome.reward
    whole = policy is not None and policy.weights == run.relative(folder)  # rather than an adapter
    lines = _head(ticket, "policy" if outcome.reward is None else "reward model", whole)
    lines += _trained(ticket, outcome)
    lines += _adapters(policy, whole) if policy else []
    lines += [f"- {note}" for note in notes]
    lines += _figures(run, StageDir(folder.parent))
    lines += [f"- {package} {version}" for package, version in outcome.versions.items()]
    files.write_text(folder / "README.md", "\n".join(lines) + "\n")


def _head(ticket: Ticket, kind: str, whole: bool) -> list[str]:
    """What the Hub reads, the title, and what the folder holds."""
    base = ticket.policy.base
    name = base.name if not Path(base.name).is_absolute() else Path(base.name).name
    return [
        "---",
        "library_name: " + ("transformers" if whole else "peft"),
        *([f"base_model: {name}"] if base.revision else []),
        "tags: [align, " + ticket.program.removesuffix(".py").rpartition("/")[2] + "]",
        "---",
        "",
        f"# {ticket.run_name}",
        "",
        f"The {kind} after the stage `{ticket.stage}` of an `align` run. Base model: **{name}**"
        + (f" at revision `{base.revision}`." if base.revision else f" (content hash `{base.identity[:12]}`)."),
        "",
    ]


def _trained(ticket: Ticket, outcome: Outcome) -> list[str]:
    """What was trained, on what, how long, and how well it went."""
    method, parameters = ticket.parameterization["method"], outcome.parameters
    share = parameters["trainable"] / parameters["total"]
    lines = [
        f"- parameterization: {method}, {parameters['trainable']:,} of {parameters['total']:,} weights ({share:.2%})",
        f"- data: {outcome.data['rows']:,} rows (sha256 `{ticket.train.sha256[:12]}`), "
        f"{outcome.data['replay_rows']:,} replayed",
        f"- steps: {outcome.steps} of {outcome.global_batch_size} rows; seed {ticket.seed}",
    ]
    loss = outcome.metrics.get("train_loss")
    if isinstance(loss, float):
        lines.append(f"- mean training loss: {loss:.4f}")
    accuracy = outcome.metrics.get("pair_accuracy")
    if accuracy is not None:
        lines.append(f"- held-out pairs ranked correctly: {accuracy:.1%}")
    return lines


def _adapters(policy: Policy, whole: bool) -> list[str]:
    """What else belongs to a policy than this folder, and what its adapters need."""
    lines = []
    names = " -> ".join(adapter.name for adapter in policy.adapters)
    if whole and policy.adapters:
        lines.append(
            f"- **not complete by itself**: these weights were trained under adapters that stay on them: {names}"
        )
    elif len(policy.adapters) > 1:
        lines.append(f"- this adapter acts on top of earlier ones, in this order: {names}")
    made = chain.layers(policy.adapters)
    for layer in {layer.keys.method: layer for layer in made if layer.traits.imports}.values():
        lines.append(f"- PEFT can load `{layer.keys.method}` after `import {layer.traits.imports}`")
    return lines


def _figures(run: RunDir, here: StageDir) -> list[str]:
    """What a policy scored on held-out items, beside the base's scores."""
    after = files.read_json(here.measurements / "summary.json")
    before = files.read_json(run.base_measurements / "summary.json")
    if after is None or before is None:
        return []
    rows = ["", "| held-out items | base | this model |", "|---|---|---|"]
    for name, found in after["scores"]["report"].items():
        earlier = before["scores"]["report"].get(name, {}).get("score")
        rows.append(f"| {name} | {'-' if earlier is None else f'{earlier:.3f}'} | {found['score']:.3f} |")
    return [*rows, ""]
