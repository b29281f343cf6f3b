"""The model card of a stage's result: it names the original base, the recipe, the data and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.parameterization import chain
from align.run_folder import files
from align.run_folder.paths import RunDir, StageDir
from align.run_folder.records import Outcome, Ticket


def write(folder: Path, run: RunDir, ticket: Ticket, outcome: Outcome, notes: Sequence[str] = ()) -> None:
    """Write README.md over the one that a library left there.

    Args:
        folder: with the measurements of the policy beside it.
        notes: what else was done to the policy.
    """
    base = ticket.policy.base
    name = base.name if not Path(base.name).is_absolute() else Path(base.name).name
    policy = outcome.policy or outcome.reward
    whole = policy is not None and policy.weights == run.relative(folder)  # rather than an adapter
    kind = "policy" if outcome.reward is None else "reward model"
    lines = ["---", "library_name: " + ("transformers" if whole else "peft")]
    if base.revision:
        lines.append(f"base_model: {name}")
    lines += [
        "tags: [align, " + ticket.program.removesuffix(".py").rpartition("/")[2] + "]",
        "---",
        "",
        f"# {ticket.run_name}",
        "",
        f"The {kind} after the stage `{ticket.stage}` of an `align` run. Base model: **{name}**"
        + (f" at revision `{base.revision}`." if base.revision else f" (content hash `{base.identity[:12]}`)."),
        "",
    ]
    method = ticket.parameterization["method"]
    parameters = outcome.parameters
    share = parameters["trainable"] / parameters["total"]
    lines += [
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
    names = " -> ".join(adapter.name for adapter in policy.adapters) if policy else ""
    if policy and whole and policy.adapters:
        lines.append(
            f"- **not complete by itself**: these weights were trained under adapters that stay on them: {names}"
        )
    elif policy and len(policy.adapters) > 1:
        lines.append(f"- this adapter acts on top of earlier ones, in this order: {names}")
    made = chain.layers(policy.adapters) if policy else []
    for layer in {layer.keys.method: layer for layer in made if layer.traits.imports}.values():
        lines.append(f"- PEFT can load `{layer.keys.method}` after `import {layer.traits.imports}`")
    lines += [f"- {note}" for note in notes]
    lines += _figures(run, StageDir(folder.parent))
    lines += [f"- {package} {version}" for package, version in outcome.versions.items()]
    files.write_text(folder / "README.md", "\n".join(lines) + "\n")


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
