"""The rows of each stage of a recipe, as its sources have them: read, checked, held out, replayed. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from align.data import checks, demonstrations, mixing
from align.data.checks import Table
from align.data.files import READERS, ending
from align.data.formats import LEARNT, Example, Kind
from align.data.hub import is_id
from align.data.sources import LAB, DataSource
from align.errors import AlignError, FaultList, Faults
from align.preflight import written
from align.preflight.rows_that_fit import Replayed, StageRows
from align.recipe import replays
from align.recipe.document import Loc
from align.recipe.plan import Loaded, StagePlan
from align.stage.replay_keys import ReplaySource
from align.stage.rewarded import RewardedKeys

PROMPTS: frozenset[Kind] = frozenset({"prompt"})  # what a policy is asked that writes rows itself


@dataclass(kw_only=True)
class StageTables:
    """Reads the tables that a recipe names, each once, and keeps what is wrong with them or worth a note."""

    loaded: Loaded
    offline: bool
    notes: list[str]
    faults: FaultList = field(default_factory=FaultList)
    tables: dict[str, Table] = field(default_factory=dict)
    skipped: list[AlignError] = field(default_factory=list)  # of rows that `on_bad_row` left out

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
                self.add(error, (*at, "data"))
                return None
        held, evaluation, rows = plan.keys.eval_data, list[Example](), train.examples if train else []
        if isinstance(held, int | float):
            try:
                rows, evaluation = self._hold_out(plan, rows, held) if rows else ([], [])
            except AlignError as error:
                self.add(error, (*at, "eval_data"))
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
                self.add(AlignError(what, "write `data:` with a file"), at)
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
            self.add(error, place)
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
                    sources,
                    root=root,
                    accepts=accepts,
                    stage=stage,
                    columns=columns,
                    whose=_whose(at, stage),
                    seed=self.loaded.recipe.seed,
                )
            except AlignError as error:
                self.add(error, at, sources)
                return None
            self.skipped += self.tables[name].skipped
            self.notes.extend(f"stage {plan.id}: {text}" for text in self.tables[name].warnings)
        return self.tables[name]

    def add(self, error: AlignError, at: Loc, sources: list[DataSource] | None = None) -> None:
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
