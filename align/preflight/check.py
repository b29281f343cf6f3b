"""Everything that can be known before a model is loaded: base, every data row, probes, packages, disk. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from align.data import mixing
from align.data.faults import raise_all
from align.data.formats import GIVEN, Example
from align.errors import AlignError
from align.forgetting import probes
from align.policy.base import Base, quantization
from align.preflight import (
    arithmetic,
    leaks,
    machine,
    module_names,
    own_probes,
    practice,
    probe_sizes,
    replayed,
    rows_that_fit,
    saved_quantization,
    written,
)
from align.preflight.leaks import Taught
from align.preflight.machine import check_disk
from align.preflight.model_checks import ModelChecks
from align.preflight.rewards import Finder
from align.preflight.rows_that_fit import StageRows
from align.recipe import contradictions, run_length
from align.recipe.document import Loc
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Reward, Rows
from align.stage.rewarded import RewardedKeys
from align.stage.rewrite_keys import scoring

__all__ = ["Prepared", "StageRows", "check_disk", "prepare", "write_rows", "write_skipped"]

LEAKS_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """What checking a recipe found."""

    base: Base
    rows: dict[str, StageRows]
    rewards: dict[str, list[Reward]]  # what scores the answers, by stage
    chat_template: str | None  # the recipe's own, as text
    probes: str  # hash of what is measured
    notes: list[str]
    warnings: dict[str, list[str]] = field(default_factory=dict)  # by stage: what is heard again when it has run
    checkers: written.Checkers = field(default_factory=dict)  # of what policies write themselves
    skipped: list[AlignError] = field(default_factory=list)  # faults of rows that `on_bad_row` left out


def prepare(
    loaded: Loaded, *, offline: bool = False, weights: bool = True, commit: str | None = None, here: bool = True
) -> Prepared:
    """Check all that can be checked before a model is loaded.

    Args:
        offline: do not look at the Hub: its names are taken on trust, and the notes say so.
        weights: fetch the weights of a model of the Hub too, not only its configuration and tokenizer.
        commit: of a model of the Hub, where the run was begun with one.
        here: whether it would run on this machine, and what this one is slow at is worth a note.

    Raises:
        AlignError, Faults: all faults of the recipe's model, data and probes at once.
    """
    machine.check_packages(loaded)
    checking = _Checking(loaded=loaded, offline=offline, weights=weights, commit=commit, notes=list(loaded.warnings))
    base, own = checking.model(), checking.chat_template()
    rows: dict[str, StageRows | None] = {}
    for plan in loaded.stages:
        rows[plan.id] = checking.rows(plan, rows)
    whole = {id: found for id, found in rows.items() if found is not None}
    readable = base if base is not None and base.path is not None and checking.template_is_known else None
    if readable is not None:
        checking.against_base(readable, own, whole)
    for plan in loaded.stages:
        checking.against_keys(plan, whole.get(plan.id))
    rewards = {plan.id: checking.rewards(plan) for plan in loaded.stages}
    checkers = {key: one for plan in loaded.stages for key, one in checking.checkers(plan).items()}
    for id, found in whole.items():
        checking.columns(id, rewards[id], found.train)
    measured = checking.probes()
    if readable is not None:
        checking.tokens(readable, own, whole, [probes.identity(one.probe) for one in checking.own])
    checking.raise_any()
    for plan in loaded.stages:
        checking.notes += [f"stage {plan.id}: {text}" for text in plan.keys.notes(whole[plan.id].train)]
        if base is not None:
            checking.notes += [f"stage {plan.id}: {text}" for text in practice.notes(plan, whole[plan.id], base)]
        checking.batch(plan, whole[plan.id])
        checking.length(plan, whole[plan.id])
        checking.leaks(plan, whole[plan.id])
    raise_all(checking.leaked, LEAKS_SHOWN, "items of the gate that are trained on")
    assert base is not None
    if here:
        saved = quantization(base.config)
        checking.notes += arithmetic.notes(loaded.stages, loaded.recipe.model.dtype, saved)
    skipped = list({str(fault): fault for fault in checking.skipped}.values())  # of a table that two stages read
    return Prepared(base, whole, rewards, own, measured, checking.notes, checking.warnings, checkers, skipped)


@dataclass(kw_only=True)
class _Checking(ModelChecks):
    """One check of a recipe: what was found wrong, what is worth a note, and the tables that were read."""

    own: list[own_probes.OwnProbe] = field(default_factory=list)
    leaked: list[AlignError] = field(default_factory=list)

    def raise_any(self) -> None:
        """Raise every fault once, also where two stages share the data that it stands in."""
        self.faults.found = list({str(fault): fault for fault in self.faults.found}.values())
        self.faults.raise_any()

    def against_base(self, base: Base, own: str | None, rows: dict[str, StageRows]) -> None:
        """Whether the base can take the rows, and be trained as the recipe says."""
        self.against_model(base, own, rows)
        self.faults.found.extend(saved_quantization.faults(self.loaded, base))
        saved_quantization.adopt(self.loaded, base)
        self.faults.found.extend(module_names.faults(self.loaded, base))
        self.faults.found.extend(contradictions.of_base(self.loaded.document, self.loaded.stages, base))

    def rewards(self, plan: StagePlan) -> list[Reward]:
        """What scores the answers of a stage."""
        sources, key = scoring(plan.keys)
        finder = Finder(
            {other.id: other.program.stage.gives == "reward" for other in self.loaded.stages},
            self.loaded.root,
            self.offline,
        )
        found = []
        for number, source in enumerate(sources):
            at: Loc = ("stages", plan.id, *key)
            try:
                found.append(finder.find(source))
            except AlignError as error:
                listed = self.loaded.document.has((*at, number))
                self.add(error, (*at, number) if listed else at)
        return found

    def checkers(self, plan: StagePlan) -> written.Checkers:
        """The user's functions that say what is kept of what the policy writes."""
        found, faults = written.checkers(plan, self.loaded.root)
        for error, at in faults:
            self.add(error, at)
        return found

    def columns(self, stage: str, rewards: list[Reward], rows: list[Example]) -> None:
        """Whether the rows have what reward functions ask for."""
        there = {name for row in rows for name in row.value.get("columns", {})}
        for reward in rewards:
            missing = next((name for name in reward.columns if name not in there), None)
            if missing is None or not rows:
                continue
            plan = next(plan for plan in self.loaded.stages if plan.id == stage)
            columns = isinstance(plan.keys, RewardedKeys)  # a rewriting hands none on
            why = "is not a column of the data" if columns else "`rewrite` does not give it"
            what = f"the reward function '{reward.name}' asks for '{missing}', which {why}"
            remedy = f"it can ask for {', '.join((*GIVEN, *sorted(there)))}; or give it a default"
            self.add(AlignError(what, remedy), ("stages", stage, *scoring(plan.keys)[1]))

    def against_keys(self, plan: StagePlan, rows: StageRows | None) -> None:
        """What the stage's own keys say against its rows."""
        for key, what, remedy in plan.keys.refusals(rows.train) if rows else []:
            self.add(AlignError(what, remedy), ("stages", plan.id, key))

    def batch(self, plan: StagePlan, rows: StageRows) -> None:
        """Note a batch that is far larger than the data."""
        mixed = mixing.replay_rows(len(rows.train), plan.replay.ratio) if plan.replay and plan.mixes else 0
        idle = replayed.idle(rows.replay, mixed) if mixed else []
        self.notes.extend(f"stage {plan.id}: none of its {mixed:,} replayed rows is from {name}" for name in idle)
        count = len(rows.train) + mixed
        per_device, accumulation = plan.global_batch
        batch = per_device * accumulation * plan.launch.processes
        if 0 < 2 * count <= batch:
            self.notes.append(
                f"stage {plan.id}: a batch of {batch} contains each of {count} rows more than once: "
                "lower per_device_train_batch_size"
            )

    def length(self, plan: StagePlan, rows: StageRows) -> None:
        """Note what comes later than the end of the run."""
        if self.offline and not rows.train:
            return
        count = rows_that_fit.of_an_epoch(plan, rows)
        found = run_length.notes(plan, count, len(rows.evaluation), plan.launch.processes)
        self.notes.extend(f"stage {plan.id}: {text}" for text in found)

    def leaks(self, plan: StagePlan, rows: StageRows) -> None:
        """Note held-out rows and probe items that the stage trains on; items of the gate are refused."""
        if rows.evaluation:
            shared = leaks.held_out(rows.evaluation, rows.train)
            if shared:
                text = f"{shared:,} of {len(rows.evaluation):,} rows of eval_data are also training rows"
                self.notes.append(f"stage {plan.id}: {text}, so its loss is too optimistic")
        trained, replay = leaks.taught(rows.train), leaks.taught(rows.replayed)
        for probe in self.own:
            found = leaks.probed(probe.items, probe.metric, trained)
            self.leaked += leaks.refusals(probe.name, plan.id, found.get("gate", []))
            if of_report := found.get("report"):
                text = leaks.warning(probe.name, of_report, len(probe.items["report"]))
                self.notes.append(f"stage {plan.id}: {text}")
            for half, again in leaks.probed(probe.items, probe.metric, replay).items():
                self.leaked += leaks.refusals(probe.name, plan.id, again, half=half, row="replayed row")
        self.leaked += replayed.of_battery(plan.id, rows, self.loaded.recipe.forgetting)
        self._protected(plan, leaks.taught(rows.fisher))

    def _protected(self, plan: StagePlan, rows: Taught) -> None:
        """The same of rows that EWC keeps the weights for: their items would be kept better than others of the kind."""
        for probe in self.own:
            found = leaks.probed(probe.items, probe.metric, rows)
            self.leaked += leaks.refusals(probe.name, plan.id, found.get("gate", []), row="row of `ewc.data`")
            if of_report := found.get("report"):
                text = leaks.warning(probe.name, of_report, len(probe.items["report"]), "rows of `ewc.data`")
                self.notes.append(f"stage {plan.id}: {text}")

    def probes(self) -> str:
        """Hash of what is measured; the user's own probes are read, the shipped ones take a while and are right."""
        keys = self.loaded.recipe.forgetting
        if keys.probes == "none":
            return files.digest(keys.probes)
        if not isinstance(keys.probes, dict):
            return probes.digest(keys)
        self.own, faults = own_probes.read(keys, self.loaded.root, offline=self.offline)
        for name, error in faults:
            self.add(error, ("forgetting", "probes", name))
        self.notes += probe_sizes.notes(self.own, keys)
        return own_probes.digest(self.own, keys)


def write_rows(run: RunDir, examples: list[Example]) -> Rows:
    """Write checked rows into the run folder, under the hash of their content; equal tables are one file."""
    lines = [json.dumps(example.value, ensure_ascii=False, default=str) for example in examples]
    sha256 = files.digest(lines)
    path = run.data / f"{sha256[:16]}.jsonl"
    content = "".join(line + "\n" for line in lines)
    files.write_if_other(path, content)
    kinds = sorted({example.kind for example in examples})
    return Rows(path=run.relative(path), sha256=sha256, count=len(examples), kinds=kinds)


def write_skipped(run: RunDir, skipped: list[AlignError]) -> None:
    """List the rows that were left out for their faults in RUN/data/skipped.jsonl; where there are none, no file."""
    path = run.data / "skipped.jsonl"
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = [{"place": str(one.place), "error": one.what, "remedy": one.remedy} for one in skipped]
    files.write_if_other(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
