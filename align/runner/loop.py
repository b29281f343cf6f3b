"""The torch-free parent: for each stage skip, resume or run; decide; next."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from align import report
from align.errors import AlignError, Exit
from align.forgetting import measurements
from align.preflight.check import Prepared, check_disk, prepare, write_skipped
from align.recipe import resolved
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import aside, attempts, files, handed_on, reading
from align.run_folder.comparison import ComparisonResult
from align.run_folder.launch import ALONE, Place
from align.run_folder.paths import REPLACED, RunDir
from align.run_folder.records import FORMAT, Ticket
from align.run_folder.run_record import Pinned, RunRecord, StageEntry
from align.runner import branches, machines, notify, tickets
from align.runner.acting import Acting
from align.runner.child import Child
from align.runner.executing import Executor, before, take_inputs
from align.runner.live_page import LivePage
from align.runner.machines import Machines
from align.runner.options import Abandoned, Options
from align.runner.progress import Watcher
from align.runner.tabulate import tabulate
from align.version import VERSION


@dataclass
class Run:
    """A run under way."""

    loaded: Loaded
    options: Options
    dir: RunDir
    watcher: Watcher
    place: Place = ALONE  # of this machine, the first of those that there are
    record: RunRecord = field(init=False)
    notifier: notify.Notifier = field(init=False)
    page: LivePage = field(init=False)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    changed: bool = False  # whether the report has to be written again
    redo: bool = False  # whether --from, --only or --fresh is to be obeyed, or was before and the run goes on with it

    def execute(self) -> Exit:
        """Run what is not done yet, and tell whom the recipe wants told. Returns DONE or GATE.

        Raises:
            AlignError: a fault of the input, a failed stage, a folder in use.
            KeyboardInterrupt: after the child has saved its state.
        """
        recipe, say = self.loaded.recipe, partial(self.watcher.say, word="note")
        with notify.told(recipe.notify, self.loaded.root, self.dir, recipe.name, say) as self.notifier:
            self.notifier.exit = self._run()
            return self.notifier.exit

    def _run(self) -> Exit:
        self.options.check([plan.id for plan in self.loaded.stages])
        machines.check((plan.launch for plan in self.loaded.stages), self.place)
        hub = self.loaded.recipe.model
        old = _recorded(self.dir)
        pinned = old.hub if old else None
        known = pinned.commit if pinned and pinned.base == (hub.base, hub.revision) else None
        with ExitStack() as held:
            if self.place.address:  # the others hear of it from the start
                held.enter_context(self.dir.locked())
            others = held.enter_context(self._others())
            prepared = self._prepared(known)
            if not self.place.address:
                held.enter_context(self.dir.locked())
            self._open(prepared)
            self._check_base(prepared)
            self._supersede()
            others.code = self._stages(others)
            self._set(redo=None)
            self._save()
            return others.code

    def _prepared(self, commit: str | None) -> Prepared:
        """The recipe, checked against its files; what was found is told."""
        prepared = prepare(self.loaded, commit=None if self.options.fresh else commit)
        check_disk(self.loaded, prepared.base, self.dir.root)
        for note in prepared.notes:
            self.watcher.say(note, "note")
        for id, texts in prepared.warnings.items():
            for text in texts:
                self.watcher.warn(id, text)
        return prepared

    def _others(self) -> Machines:
        return Machines(self.dir, self.place, resolved.digest(self.loaded), self.watcher.say)

    def _open(self, prepared: Prepared) -> None:
        old = _recorded(self.dir)
        name, hub = self.loaded.recipe.name, self.loaded.recipe.model
        if old is not None and old.name != name:
            raise AlignError(
                f"the run folder '{self.dir.root}' belongs to the recipe '{old.name}', not '{name}'",
                "give another --run-dir, or name the recipe as before",
            )
        files.sweep(self.dir.root)
        asked = self.options.redo()
        self.redo = bool(asked) and (old is None or old.redo != asked)  # begun before: go on with it
        if self.options.fresh and self.redo:
            for part in REPLACED:
                self.dir.supersede(self.dir.root / part)
            for plan in self.loaded.stages:
                aside.leave(self.dir, plan.id)
            old = None
        self.record = old or RunRecord(format=FORMAT, name=name, created=_now(), stages={})
        self._set(
            align=VERSION,
            pipeline=self.loaded.recipe.pipeline,
            order=tuple(plan.id for plan in self.loaded.stages),
            probes=probes if isinstance(probes := self.loaded.recipe.forgetting.probes, str) else "own",
            redo=asked,
        )
        if prepared.base.revision:  # a run stays with one commit of a model that goes on changing
            self._set(hub=Pinned(base=(hub.base, hub.revision), commit=prepared.base.revision))
        self.tickets = tickets.build(self.loaded, prepared, self.dir)
        if (trial := self.options.trial) is not None:
            plan = next(plan for plan in self.loaded.stages if plan.id == trial.stage)
            tickets.tried(self.tickets[plan.id], trial.every, plan, self.loaded.recipe.forgetting)
            tickets.seal(plan, self.loaded, self.tickets, self.dir)
        resolved.write(self.dir.recipe, self.loaded)
        write_skipped(self.dir, prepared.skipped)

    def _check_base(self, prepared: Prepared) -> None:
        """The base row of the matrix belongs to one base, loaded in one way and asked one set of questions: the first
        stage's way, and with --only that of its stage, if that is the one that measures it."""
        only = [plan for plan in self.loaded.stages if plan.id == self.options.only]
        ways = [self._way_of_base(prepared, plan) for plan in (self.loaded.stages[0], *only)]
        kept = measurements.is_whole(self.dir.base_measurements)
        if self.record.base is not None and self.record.base not in ways:
            self.dir.supersede(self.dir.base_measurements)
            kept = False
        self._set(base=self.record.base if kept and self.record.base else ways[-1])

    def _way_of_base(self, prepared: Prepared, plan: StagePlan) -> str:
        """Hash of the base as a stage loads it, and of what it is asked."""
        first, model = next(iter(self.tickets.values())), self.loaded.recipe.model
        precision = ["trained" if plan.trains_base else "frozen"] if model.dtype == "auto" else [model.dtype]
        quantization = plan.method.quantization(plan.method_keys)
        asked = [first.probes_sha256, prepared.chat_template, first.replays]
        return files.digest([first.policy.base.identity, precision, model.attn_implementation, quantization, asked])

    def _supersede(self) -> None:
        """Move away what a changed recipe, or the command line, replaces; descendants too."""
        only, again = self.options.only, set[str]()
        changed = {plan.id for plan in self.loaded.stages if self._has_changed(plan)}
        for plan in self.loaded.stages:
            asked = self.redo and plan.id in (self.options.from_stage, only)
            if only is not None and plan.id != only:
                continue
            if only is not None:
                take_inputs(self.loaded, self.dir, plan, self.tickets[plan.id])  # refuse before anything is moved
                self._refuse_changed_ancestors(plan, changed)
            if asked or again & set(plan.inputs):
                again.add(plan.id)
                aside.leave(self.dir, plan.id)
            if plan.id in changed | again and self.dir.stage(plan.id).root.exists():
                self.dir.supersede(self.dir.stage(plan.id).root)
                why = "its recipe changed" if plan.id in changed else "it is to run again"
                self.watcher.say(f"{plan.id}: {why}; the old one is kept in superseded/")
        gone = [id for id in self.record.stages if id not in self.tickets and only is None]
        for id in gone:
            self.dir.supersede(self.dir.stage(id).root)
        self._set(stages={id: entry for id, entry in self.record.stages.items() if id not in gone})

    def _has_changed(self, plan: StagePlan) -> bool:
        """Whether a stage is another than was recorded. What comes in from a stage that is yet to be decided on cannot
        be told here; it is when the turn of the stage comes."""
        entry, ticket = self.record.stages.get(plan.id), self.tickets[plan.id]
        known = entry.fingerprint if entry and entry.fingerprint else ticket.fingerprint
        above = [self.dir.stage(id) for id in before(self.loaded, plan)]
        if any(not here.outcome.is_file() or handed_on.undecided(here) for here in above):
            return False
        return ticket.fingerprint not in (known, attempts.fingerprint(self.dir.stage(plan.id)))

    def _refuse_changed_ancestors(self, plan: StagePlan, changed: set[str]) -> None:
        for id in plan.inputs:  # whose fingerprints change with those of their own inputs
            if id in changed:
                what = f"--only {plan.id}: the recipe of '{id}', which it starts from, has changed too"
                raise AlignError(what, f"run without --only, or with --from {id}")

    def _stages(self, others: Machines) -> Exit:
        self.page = LivePage(self.dir, self._tabulate, self.watcher.say)
        child = Child(self.dir, self.watcher, self.page.tick, others)
        executor = Executor(self.loaded, self.dir, self.tickets, self.watcher, child, self.page, self._note)
        acting = Acting(executor, self.notifier)
        todo, tried = self._todo(), self.options.trial.stage if self.options.trial else None
        try:
            for plan in todo:
                self._note(plan, status="pending")
            for plan in todo:
                if plan.id == tried:
                    executor.open(plan)
                    executor.stand(plan, 1)
                    self._note(plan, status="done")
                    break
                action = acting.settle(plan)
                if self.options.only is None:
                    executor.follow(plan, stopped=action == "stop")
                if action == "stop":
                    self._note(plan, status="stopped")
                    return Exit.GATE
                self._note(plan, status="done")
            if tried is None:
                self._compare(child)
            child.finish()
        except (KeyboardInterrupt, Abandoned) as ended:
            if isinstance(ended, KeyboardInterrupt):
                child.interrupt()
            for id, entry in self.record.stages.items():
                if entry.status == "running":
                    self._set_stage(id, entry.but(status="interrupted"))
            self._save()
            raise
        finally:
            child.end()
            self.changed |= executor.changed
            try:
                self._summarize()
            except AlignError as error:  # must not hide why the run ended
                report.break_off(self.dir.root)  # what it shows is not the end, and it must not wait for one
                self.watcher.say(f"the report was not written: {error}")
        return Exit.DONE

    def _todo(self) -> list[StagePlan]:
        """The stages that this execution is about; of a stage that is tried itself and what it comes from."""
        trial = self.options.trial
        if trial is None:
            return [plan for plan in self.loaded.stages if self.options.only in (None, plan.id)]
        wanted = {trial.stage, *before(self.loaded, next(p for p in self.loaded.stages if p.id == trial.stage))}
        return [plan for plan in self.loaded.stages if plan.id in wanted]

    def _compare(self, child: Child) -> None:
        """Compare the branches of a run, once for each state of them."""
        request = branches.comparison(self.loaded, self.dir, self.tickets)
        if request is None:
            if self.options.only is None:
                self.dir.comparison.unlink(missing_ok=True)
            return
        done = reading.whole(self.dir.comparison, ComparisonResult)
        if done is not None and done.key == request.key:
            return
        self.changed = True
        self.watcher.say(f"comparing {', '.join(id for id in request.policies if id != request.parent)}")
        self.page.write(measured=True)
        if not child.compare(request):
            self.watcher.say(f"the branches were not compared; see {self.dir.child_log} and the last stage's log")

    def _summarize(self) -> None:
        """forgetting.json and the report, when anything is new."""
        if not self.dir.is_there():
            return
        self._save()
        measured = (self.dir.base_measurements / "summary.json").is_file()
        lost = measured and "mean" not in files.read_object(self.dir.forgetting)
        if not (self.changed or lost) and (self.dir.root / "report.html").is_file():
            return
        self._tabulate()
        report.write(self.dir.root)

    def _tabulate(self) -> None:
        tabulate(self.dir, self.record.order, self.tickets, self.loaded)

    def _note(self, plan: StagePlan, **changed: Any) -> None:
        """Write into run.json what is known of a stage, and what has changed."""
        old = self.record.stages.get(plan.id)
        if changed.get("status") == "pending" and self.dir.stage(plan.id).outcome.is_file():
            changed["status"] = old.status if old else "done"
        entry = StageEntry(
            stage=plan.program.name,
            about=plan.program.stage.description,
            inputs={"policy": plan.policy} | ({"reward": list(plan.rewards)} if plan.rewards else {}),
            fingerprint=self.tickets[plan.id].fingerprint,
        )
        known = {name: getattr(entry, name) for name in entry.model_fields_set}
        self._set_stage(plan.id, (old or entry).but(**(known | changed)))
        self._save()

    def _set(self, **changed: Any) -> None:
        self.record = self.record.but(**changed)

    def _set_stage(self, id: str, entry: StageEntry) -> None:
        self._set(stages={**self.record.stages, id: entry})

    def _save(self) -> None:
        written = self.record.written()
        if not self.dir.is_there():  # deleted, as the error that ends the run says
            return
        if files.read_json(self.dir.record) != written:
            files.write_json(self.dir.record, written)
            self.changed = True


def _recorded(run: RunDir) -> RunRecord | None:
    """run.json as it was left; None where there is none."""
    return reading.sound(run.record, RunRecord, reading.OTHER)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
