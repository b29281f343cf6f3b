"""Everything that can be known before a model is loaded: base, every data row, probes, packages, disk. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from align.data import checks, demonstrations, ends, mixing, template
from align.data.checks import Lengths, Table
from align.data.faults import raise_all
from align.data.files import READERS, ending
from align.data.formats import GIVEN, LEARNT, Example, Kind
from align.data.hub import is_id
from align.data.sources import LAB, DataSource
from align.errors import AlignError, FaultList, Faults
from align.forgetting import probes
from align.policy import base as bases
from align.policy.base import Base
from align.preflight import (
    leaks,
    machine,
    module_names,
    own_probes,
    probe_sizes,
    replayed,
    rows_that_fit,
    saved_quantization,
    tokenizer_facts,
    written,
)
from align.preflight.leaks import Taught
from align.preflight.machine import check_disk
from align.preflight.rewards import Finder
from align.preflight.rows_that_fit import Replayed, StageRows
from align.recipe import contradictions, replays, run_length
from align.recipe.document import Loc
from align.recipe.keys import ModelKeys
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Reward, Rows
from align.stage.replay_keys import ReplaySource
from align.stage.rewarded import RewardedKeys
from align.stage.rewrite_keys import scoring

__all__ = ["Prepared", "StageRows", "check_disk", "prepare", "write_rows"]

PROMPTS: frozenset[Kind] = frozenset({"prompt"})  # what a policy is asked that writes rows itself
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


def prepare(loaded: Loaded, *, offline: bool = False, weights: bool = True, commit: str | None = None) -> Prepared:
    """Check all that can be checked before a model is loaded.

    Args:
        offline: do not look at the Hub: its names are taken on trust, and the notes say so.
        weights: fetch the weights of a model of the Hub too, not only its configuration and tokenizer.
        commit: of a model of the Hub, where the run was begun with one.

    Raises:
        AlignError, Faults: all faults of the recipe's model, data and probes at once.
    """
    machine.check_packages(loaded)
    checking = _Checking(loaded, offline, weights, commit, notes=list(loaded.warnings))
    base, own = checking.model(), checking.chat_template()
    rows: dict[str, StageRows | None] = {}
    for plan in loaded.stages:
        rows[plan.id] = checking.rows(plan, rows)
    whole = {id: found for id, found in rows.items() if found is not None}
    if base is not None and base.path is not None and checking.template_is_known:
        checking.against_model(base, own, whole)
        checking.faults.found.extend(saved_quantization.faults(loaded, base))
        saved_quantization.adopt(loaded, base)
        checking.faults.found.extend(module_names.faults(loaded, base))
        checking.faults.found.extend(contradictions.of_base(loaded.document, loaded.stages, base))
    for plan in loaded.stages:
        checking.against_keys(plan, whole.get(plan.id))
    rewards = {plan.id: checking.rewards(plan) for plan in loaded.stages}
    checkers = {key: one for plan in loaded.stages for key, one in checking.checkers(plan).items()}
    for id, found in whole.items():
        checking.columns(id, rewards[id], found.train)
    measured = checking.probes()
    if base is not None and base.path is not None and checking.template_is_known:
        checking.tokens(base, own, whole)
    checking.raise_any()
    for plan in loaded.stages:
        checking.notes += [f"stage {plan.id}: {text}" for text in plan.keys.notes(whole[plan.id].train)]
        checking.batch(plan, whole[plan.id])
        checking.length(plan, whole[plan.id])
        checking.leaks(plan, whole[plan.id])
    raise_all(checking.leaked, LEAKS_SHOWN, "items of the gate that are trained on")
    assert base is not None
    return Prepared(base, whole, rewards, own, measured, checking.notes, checking.warnings, checkers)


@dataclass
class _Checking:
    """One check of a recipe: what was found wrong, what is worth a note, and the tables that were read."""

    loaded: Loaded
    offline: bool
    weights: bool
    commit: str | None
    notes: list[str]
    faults: FaultList = field(default_factory=FaultList)
    tables: dict[str, Table] = field(default_factory=dict)
    own: list[own_probes.OwnProbe] = field(default_factory=list)
    leaked: list[AlignError] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    template_is_known: bool = True

    def raise_any(self) -> None:
        """Raise every fault once, also where two stages share the data that it stands in."""
        self.faults.found = list({str(fault): fault for fault in self.faults.found}.values())
        self.faults.raise_any()

    def model(self) -> Base | None:
        """The base model; None where it is none."""
        keys = self.loaded.recipe.model
        if keys.revision is not None and not bases.is_on_hub(keys.base, self.loaded.root):
            what = f"'model.revision' is for Hub models, and '{keys.base}' is not one"
            self.faults.found.append(self.loaded.document.fault(("model", "revision"), what, "remove it"))
        try:
            revision = self.commit or keys.revision
            looked_up = {"offline": self.offline, "weights": self.weights, "code": keys.trust_remote_code}
            base = bases.resolve(keys.base, revision, root=self.loaded.root, **looked_up)
        except AlignError as error:
            self._add(error, ("model", "base"))
            return None
        if base.path is None:
            self.notes.append(f"the model '{keys.base}' was not looked up")
        if keys.trust_remote_code:
            self.notes.append(f"Python code that comes with the model '{keys.base}' will be run (trust_remote_code)")
        return base

    def chat_template(self) -> str | None:
        """The text of the recipe's own chat template, if it names one."""
        name = self.loaded.recipe.model.chat_template
        try:
            return template.resolve(name, self.loaded.root) if name else None
        except AlignError as error:
            self.template_is_known = False
            self._add(error, ("model", "chat_template"))
            return None

    def rows(self, plan: StagePlan, before: Mapping[str, StageRows | None]) -> StageRows | None:
        """The rows of a stage; None where something is wrong with them.

        Args:
            before: those of the stages before it.
        """
        at: Loc = ("stages", plan.id)
        train = self._table(plan, plan.keys.data, (*at, "data"))
        if train and plan.program.stage.demonstrated:
            try:
                demonstrations.check(train.examples)
            except AlignError as error:
                self._add(error, (*at, "data"))
                return None
        held, evaluation, rows = plan.keys.eval_data, list[Example](), train.examples if train else []
        if isinstance(held, int | float):
            try:
                rows, evaluation = self._hold_out(plan, rows, held) if rows else ([], [])
            except AlignError as error:
                self._add(error, (*at, "eval_data"))
                return None
        elif held is not None:
            table = self._table(plan, held, (*at, "eval_data"))
            evaluation = table.examples if table else []
        sources = [self._replayed(plan, place, source, before) for place, source in replays.places(plan)]
        if not train:
            return None
        rows, asked = self._asked(plan, rows)
        return StageRows(rows, evaluation, tuple(source for source in sources if source), self._fisher(plan), asked)

    def _replayed(
        self, plan: StagePlan, at: Loc, source: ReplaySource, before: Mapping[str, StageRows | None]
    ) -> Replayed | None:
        """The rows of one source of a stage's replay; None where something is wrong with them."""
        if source.stage is not None:
            there = before.get(source.stage)
            own = [example for example in there.train if example.kind in LEARNT] if there else []
            if there and there.train and not own:  # of a table that was not looked up there are no rows
                what = f"stage '{source.stage}' has no answers or texts that stage '{plan.id}' could replay"
                self._add(AlignError(what, "write `data:` with a file"), at)
            if any(other.id == source.stage and getattr(other.keys, "rewrite", None) for other in self.loaded.stages):
                text = f"it replays the rows of '{source.stage}' with the answers of the data, not with rewritten ones"
                self.notes.append(f"stage {plan.id}: {text}")
            return Replayed(source.label, source.weight, own, source.stage)
        if source.self is not None:
            return Replayed(source.label, source.weight, [], written=True)
        assert source.data is not None
        table = self._table(plan, source.data, (*at, "data"), LEARNT)
        return Replayed(source.label, source.weight, table.examples) if table else None

    def _asked(self, plan: StagePlan, rows: list[Example]) -> tuple[list[Example], Table | None]:
        """The rows that are trained on, and the prompts of those that the policy writes."""
        wanted = written.writes(plan)
        if wanted is None or wanted.prompts is None:
            return rows, None
        place: Loc = (*written.place(plan), "self", "prompts")
        if wanted.prompts != "task":
            return rows, self._table(plan, wanted.prompts, place, PROMPTS)
        if not rows:  # not looked up
            return rows, None
        try:
            return written.apart(rows, wanted, self.loaded.recipe.seed)
        except AlignError as error:
            self._add(error, place)
            return rows, None

    def _fisher(self, plan: StagePlan) -> list[Example]:
        """The rows that the Fisher information of a stage's EWC is measured on, drawn by the seed; none without one."""
        ewc = plan.keys.ewc
        if ewc is None or not ewc.weight:
            return []
        table = self._table(plan, ewc.data, ("stages", plan.id, "ewc", "data"), LEARNT)
        rows = table.examples if table else []
        if 0 < len(rows) < ewc.rows:
            self.notes.append(
                f"stage {plan.id}: `ewc.data` has {len(rows):,} rows, fewer than `ewc.rows`, {ewc.rows:,}"
            )
        return mixing.draw(rows, min(ewc.rows, len(rows)), self.loaded.recipe.seed)

    def _hold_out(
        self, plan: StagePlan, rows: list[Example], share: float | int
    ) -> tuple[list[Example], list[Example]]:
        """Training and held-out rows. What the stage holds out by default never refuses a recipe that did not ask."""
        default = share == type(plan.keys).model_fields["eval_data"].default
        train, held = mixing.hold_out(rows, share, self.loaded.recipe.seed, lenient=default)
        if share and not held:
            only = (
                "the only row is trained on"
                if len(rows) == 1
                else f"all {len(rows):,} rows have the same prompt and are trained on"
            )
            self.notes.append(f"stage {plan.id}: {only}, so none is held out for evaluation")
        return train, held

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
                self._add(error, (*at, number) if listed else at)
        return found

    def checkers(self, plan: StagePlan) -> written.Checkers:
        """The user's functions that say what is kept of what the policy writes."""
        found, faults = written.checkers(plan, self.loaded.root)
        for error, at in faults:
            self._add(error, at)
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
            self._add(AlignError(what, remedy), ("stages", stage, *scoring(plan.keys)[1]))

    def _table(
        self, plan: StagePlan, value: DataSource | list[DataSource], at: Loc, kinds: frozenset[Kind] | None = None
    ) -> Table | None:
        """Read and check a table; one that two stages share is read once. `kinds`: by default those of the stage."""
        sources, accepts = value if isinstance(value, list) else [value], kinds or plan.program.stage.rows
        remote = [source.source for source in sources if _on_hub(source, self.loaded.root)]
        if self.offline and remote:
            self.notes.append(f"stage {plan.id}: the data '{remote[0]}' were not looked up")
            return Table(examples=[], sha256="", name=remote[0])
        columns = isinstance(plan.keys, RewardedKeys) and plan.keys.calls and kinds is None
        name = json.dumps([[source.model_dump() for source in sources], sorted(accepts), columns])
        if name not in self.tables:
            try:
                root, stage = self.loaded.root, plan.id
                self.tables[name] = checks.load(
                    sources, root=root, accepts=accepts, stage=stage, columns=columns, whose=_whose(at, stage)
                )
            except AlignError as error:
                self._add(error, at, sources)
                return None
            self.notes.extend(f"stage {plan.id}: {text}" for text in self.tables[name].warnings)
        return self.tables[name]

    def against_model(self, base: Base, own: str | None, rows: dict[str, StageRows]) -> None:
        """Whether the model can take the rows: a chat template where one is needed, answers within max_length."""
        folder, model = base.path, self.loaded.recipe.model
        assert folder is not None
        try:
            talking = [id for id, found in rows.items() if any(_is_chat(example) for example in found.all)]
            bare = talking if own is None and template.find(folder) is None else []
            if bare:
                named = " and ".join(f"'{id}'" for id in bare)
                train = "trains" if len(bare) == 1 else "train"
                what = f"the base '{self.loaded.recipe.model.base}' has no chat template, and {named} {train} on chats"
                remedy = "write `chat_template: plain` under `model:`, or name a .jinja file there"
                raise AlignError(what, remedy)
            lengths = _lengths(self.loaded.recipe.model, folder, own)
        except AlignError as error:
            self._add(error, ("model", "base"))
            return
        if lengths is not None:
            for key, fault in ends.check(lengths.tokenizer, model.base, bases.replaced_tokens(model.model_dump())):
                self._add(fault, ("model", key))
            self.notes += ends.notes(lengths.tokenizer, folder) if talking else []
        for plan in self.loaded.stages:
            if plan.id in rows:
                rows[plan.id] = self._fitting(plan, replayed.trained_on(rows[plan.id], rows), lengths)
                if lengths is not None and base.context:
                    answer = rows_that_fit.answer_length(plan)
                    seen = rows[plan.id].train if answer else rows[plan.id].all
                    with self.faults.collect():
                        checks.within_context(seen, lengths, rows_that_fit.max_length(plan), base.context, answer)
                    if answer:
                        self.faults.found.extend(rows_that_fit.whole(rows[plan.id], lengths, base.context))
                wanted = written.writes(plan)
                if lengths is not None and wanted is not None:
                    try:
                        written.against_model(rows[plan.id].asked, wanted, lengths, base.context)
                    except AlignError as error:
                        self._add(error, (*written.place(plan), "self"))

    def tokens(self, base: Base, own: str | None, rows: dict[str, StageRows]) -> None:
        """Whether the model has a row for every token that it is given."""
        written = [example.value for found in rows.values() for example in found.all]
        asked = [probes.identity(one.probe) for one in self.own]
        assert base.path is not None
        try:
            note = tokenizer_facts.check_ids(base, [own or template.find(base.path), asked, *written])
        except AlignError as error:
            self._add(error, ("model", "base"))
            return
        self.notes.extend([note] if note else [])

    def _fitting(self, plan: StagePlan, rows: StageRows, lengths: Lengths | None) -> StageRows:
        """The rows that the chat template and max_length leave something to learn of."""
        found = rows_that_fit.fitting(plan, rows, lengths)
        self.faults.found.extend(found.faults)
        self.notes.extend(f"stage {plan.id}: {text}" for text in found.notes)
        if found.warnings:
            self.warnings.setdefault(plan.id, []).extend(found.warnings)
        return found.rows

    def against_keys(self, plan: StagePlan, rows: StageRows | None) -> None:
        """What the stage's own keys say against its rows."""
        for key, what, remedy in plan.keys.refusals(rows.train) if rows else []:
            self._add(AlignError(what, remedy), ("stages", plan.id, key))

    def batch(self, plan: StagePlan, rows: StageRows) -> None:
        """Note a batch that is far larger than the data."""
        mixed = mixing.replay_rows(len(rows.train), plan.replay.ratio) if plan.replay and plan.mixes else 0
        idle = replayed.idle(rows.replay, mixed) if mixed else []
        self.notes.extend(f"stage {plan.id}: none of its {mixed:,} replayed rows is from {name}" for name in idle)
        count = len(rows.train) + mixed
        per_device, accumulation = plan.global_batch
        batch = per_device * accumulation * self.loaded.recipe.launch.processes
        if 0 < 2 * count <= batch:
            self.notes.append(
                f"stage {plan.id}: a batch of {batch} contains each of {count} rows more than once: "
                "lower per_device_train_batch_size"
            )

    def length(self, plan: StagePlan, rows: StageRows) -> None:
        """Note what comes later than the end of the run."""
        if self.offline and not rows.train:
            return
        answers = 2 if "unpaired" in plan.program.stage.rows else 1  # of a pair, each on its own
        count = sum(answers if example.kind == "preference" else 1 for example in rows.train)
        if plan.replay and plan.mixes and "prompt" not in plan.program.stage.rows:
            count += mixing.replay_rows(count, plan.replay.ratio)
        found = run_length.notes(plan, count, len(rows.evaluation), self.loaded.recipe.launch.processes)
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
            self._add(error, ("forgetting", "probes", name))
        self.notes += [text for one in self.own for text in probe_sizes.notes(one, keys)]
        return own_probes.digest(self.own, keys)

    def _add(self, error: AlignError, at: Loc, sources: list[DataSource] | None = None) -> None:
        """Take a fault at its own place, where it has one, else at the key of the recipe that led to it."""
        for one in error.faults if isinstance(error, Faults) else [error]:
            placed = one
            if one.place is None:
                placed = self.loaded.document.fault((*at, *_named_in(one.what, sources or [])), one.what, one.remedy)
                placed.exit = one.exit
            self.faults.found.append(placed)


def _named_in(what: str, sources: list[DataSource]) -> Loc:
    """The one of several sources that a fault speaks of."""
    if len(sources) < 2:
        return ("source",)
    return next(((number, "source") for number, source in enumerate(sources) if source.source in what), ())


def _on_hub(source: DataSource, root: Path) -> bool:
    """Whether a source can only mean the Hub: it has the form of an id, and nothing is called so here."""
    name = source.source
    if name.startswith(LAB) or not is_id(name) or ending(name) in READERS:
        return False
    return not any((base / name).exists() for base in (Path(), root))


def _whose(at: Loc, stage: str) -> str:
    """What a table is for, in messages; empty where it is the stage's own data."""
    names = [str(part) for part in at if not isinstance(part, int)]
    key = next((name for name in ("replay", "ewc") if name in names), "")
    if "prompts" in names:
        return f"`self.prompts` of stage '{stage}'"
    return {"replay": f"the replay of stage '{stage}'", "ewc": f"`ewc` of stage '{stage}'"}.get(key, "")


def _is_chat(example: Example) -> bool:
    return example.kind == "chat" or isinstance(example.value.get("prompt"), list)


def _lengths(model: ModelKeys, folder: Path, own: str | None) -> Lengths | None:
    try:
        return Lengths.of(folder, own, bases.replaced_tokens(model.model_dump()))
    except AlignError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"the tokenizer.json of the model '{model.base}' cannot be read: {reason}"
        raise AlignError(what, "save the tokenizer again, or copy the model again") from None


def write_rows(run: RunDir, examples: list[Example]) -> Rows:
    """Write checked rows into the run folder, under the hash of their content; equal tables are one file."""
    lines = [json.dumps(example.value, ensure_ascii=False, default=str) for example in examples]
    sha256 = files.digest(lines)
    path = run.data / f"{sha256[:16]}.jsonl"
    content = "".join(line + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        files.write_text(path, content)
    kinds = sorted({example.kind for example in examples})
    return Rows(path=run.relative(path), sha256=sha256, count=len(examples), kinds=kinds)
