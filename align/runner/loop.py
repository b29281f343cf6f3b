"""The torch-free parent: for each stage skip, resume or run; decide; next."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from align import report
from align.errors import AlignError, Exit
from align.preflight.check import Prepared, check_disk, prepare
from align.recipe import resolved
from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import checkpoints, files, reading
from align.run_folder.comparison import ComparisonResult
from align.run_folder.paths import RunDir
from align.run_folder.records import FORMAT, Outcome, Ticket
from align.run_folder.run_record import Pinned, RunRecord, StageEntry
from align.runner import answers, branches, deciding, notify, tickets
from align.runner.child import Child
from align.runner.live_page import LivePage
from align.runner.options import Options
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
        hub = self.loaded.recipe.model
        old = _recorded(self.dir)
        pinned = old.hub if old else None
        known = pinned.commit if pinned and pinned.base == (hub.base, hub.revision) else None
        prepared = prepare(self.loaded, commit=None if self.options.fresh else known)
        check_disk(self.loaded, prepared.base, self.dir.root)
        for note in prepared.notes:
            self.watcher.say(note, "note")
        for id, texts in prepared.warnings.items():
            for text in texts:
                self.watcher.warn(id, text)
        with self.dir.locked():
            self._open(prepared)
            self._check_base(prepared)
            self._supersede()
            code = self._stages()
            self._set(redo=None)
            self._save()
            return code

    def _open(self, prepared: Prepared) -> None:
        old = _recorded(self.dir)
        name, hub = self.loaded.recipe.name, self.loaded.recipe.model
        if old is not None and old.name != name:
            raise AlignError(
                f"the run folder '{self.dir.root}' belongs to the recipe '{old.name}', not '{name}'",
                "give another --run-dir, or name the recipe as before",
            )
        asked = self.options.redo()
        self.redo = bool(asked) and (old is None or old.redo != asked)  # begun before: go on with it
        if self.options.fresh and self.redo:
            for part in ("recipe.yaml", "run.json", "base", "stages", "forgetting.json", "report.html", "report.md"):
                self.dir.supersede(self.dir.root / part)
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
        self.tickets = tickets.build(self.loaded, prepared, self.dir, self.loaded.recipe.launch.processes)
        resolved.write(self.dir.recipe, self.loaded)

    def _check_base(self, prepared: Prepared) -> None:
        """The base row of the matrix belongs to one base, loaded in one way and asked one set of questions."""
        first, model, plan = next(iter(self.tickets.values())), self.loaded.recipe.model, self.loaded.stages[0]
        precision = ["trained" if plan.trains_base else "frozen"] if model.dtype == "auto" else [model.dtype]
        quantization = plan.method.quantization(plan.method_keys)
        asked = [first.probes_sha256, prepared.chat_template, first.replays]
        known = files.digest([first.policy.base.identity, precision, model.attn_implementation, quantization, asked])
        if self.record.base not in (None, known):
            self.dir.supersede(self.dir.base_measurements)
        self._set(base=known)

    def _supersede(self) -> None:
        """Move away what a changed recipe, or the command line, replaces; descendants too."""
        only, again = self.options.only, set[str]()
        known = {id: entry.fingerprint for id, entry in self.record.stages.items()}
        changed = {id for id, ticket in self.tickets.items() if known.get(id, ticket.fingerprint) != ticket.fingerprint}
        for plan in self.loaded.stages:
            asked = self.redo and plan.id in (self.options.from_stage, only)
            if only is not None and plan.id != only:
                continue
            if only is not None:
                self._take_inputs(plan)  # refuse before anything is moved
                self._refuse_changed_ancestors(plan, changed)
            if plan.id in changed or asked or again & set(plan.inputs):
                again.add(plan.id)
                if self.dir.stage(plan.id).root.exists():
                    self.dir.supersede(self.dir.stage(plan.id).root)
                    why = "its recipe changed" if plan.id in changed else "it is to run again"
                    self.watcher.say(f"{plan.id}: {why}; the old one is kept in superseded/")
        gone = [id for id in self.record.stages if id not in self.tickets and only is None]
        for id in gone:
            self.dir.supersede(self.dir.stage(id).root)
        self._set(stages={id: entry for id, entry in self.record.stages.items() if id not in gone})

    def _refuse_changed_ancestors(self, plan: StagePlan, changed: set[str]) -> None:
        for id in plan.inputs:  # whose fingerprints change with those of their own inputs
            if id in changed:
                what = f"--only {plan.id}: the recipe of '{id}', which it starts from, has changed too"
                raise AlignError(what, f"run without --only, or with --from {id}")

    def _stages(self) -> Exit:
        self.page = LivePage(self.dir, self._tabulate, self.watcher.say)
        child = Child(self.dir, self.loaded.recipe.launch.processes, self.watcher, self.page.tick)
        todo = [p for p in self.loaded.stages if self.options.only in (None, p.id)]
        try:
            for plan in todo:
                self._note(plan, status="pending")
            for plan in todo:
                self._bring_up(plan, child)
                if self._decide(plan) == "stop":
                    self._note(plan, status="stopped")
                    return Exit.GATE
                self._note(plan, status="done")
            self._compare(child)
            child.finish()
        except KeyboardInterrupt:
            child.interrupt()
            for id, entry in self.record.stages.items():
                if entry.status == "running":
                    self._set_stage(id, entry.but(status="interrupted"))
            self._save()
            raise
        finally:
            child.end()
            try:
                self._summarize()
            except AlignError as error:  # must not hide why the run ended
                report.break_off(self.dir.root)  # what it shows is not the end, and it must not wait for one
                self.watcher.say(f"the report was not written: {error}")
        return Exit.DONE

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

    def _bring_up(self, plan: StagePlan, child: Child) -> None:
        """Skip a stage, measure it again, or run it. Cheapest test first."""
        here, ticket = self.dir.stage(plan.id), self.tickets[plan.id]
        opened = ticket.fingerprint
        tickets.seal(plan, self.tickets, self.dir)  # what goes on from its inputs has been decided now
        if ticket.fingerprint != opened and here.root.exists():  # its checkpoints too are of another policy
            self.watcher.say(f"{plan.id}: it starts from something else now; the old one is kept in superseded/")
            self.dir.supersede(here.root)
        outcome, file = reading.outcome(here), here.outcome
        if outcome is None or outcome.probes_sha256 != ticket.probes_sha256:
            kept = reading.outcome_in(here.remeasuring)
            outcome, file = (kept, here.remeasuring) if kept is not None else (outcome, file)
        if outcome is None:
            self._execute(plan, child)
            return
        begun = file == here.remeasuring  # what was done again then may lack its last files
        asking = begun and bool(files.read_json(here.ticket, {}).get("ask_only"))
        unasked = outcome.probes_sha256 != ticket.probes_sha256 or (begun and not asking)
        rewritten = {str(here.card.relative_to(here.root))} if begun else set()  # it shows what is measured again
        recorded = {name: known for name, known in outcome.artifacts.items() if name not in rewritten}
        name = files.damaged(recorded, here.root, since=file.stat().st_mtime)
        if name is not None or outcome.fingerprint != ticket.fingerprint:
            bad = f"has a damaged file, {name}" if name else "belongs to another recipe"
            self.watcher.say(f"{plan.id}: its result {bad}; it runs again, the old one is kept in superseded/")
            self.dir.supersede(here.root)
            self._execute(plan, child)
        elif unasked or self._base_is_missing() or self._row_is_missing(plan):
            self.watcher.say(f"{plan.id}: trained already; measured again")
            self.dir.supersede(here.measurements)
            here.decision.unlink(missing_ok=True)
            self._measure_again(plan, child, file)
        elif asking or self._answers_are_missing(plan):
            self.watcher.say(f"{plan.id}: trained already; only its answers are written again")
            self.dir.supersede(here.answers)
            ticket.ask_only = True
            self._measure_again(plan, child, file)
        else:
            here.remeasuring.unlink(missing_ok=True)
            self.watcher.say(f"{plan.id}: done already")

    def _measure_again(self, plan: StagePlan, child: Child, outcome: Path) -> None:
        """Execute a stage that is trained, without training; its outcome is kept aside until that is done."""
        here = self.dir.stage(plan.id)
        outcome.replace(here.remeasuring)
        here.outcome.unlink(missing_ok=True)
        self.tickets[plan.id].measure_only = True
        self._execute(plan, child)
        here.remeasuring.unlink()

    def _answers_are_missing(self, plan: StagePlan) -> bool:
        """Whether a policy, or the base, has not answered the prompts of the recipe as it is now."""
        if plan.program.stage.gives != "policy":
            return False
        prompts, here = self.tickets[plan.id].prompts, self.dir.stage(plan.id)
        return any(answers.missing(path, prompts) for path in (here.answers, self.dir.base_answers))

    def _row_is_missing(self, plan: StagePlan) -> bool:
        keys, here = self.loaded.recipe.forgetting, self.dir.stage(plan.id)
        if keys.probes == "none" or plan.program.stage.gives != "policy":
            return False
        untimed = self.tickets[plan.id].latency and not here.latency.is_file()
        unlimited = keys.max_kl is not None and not here.task_kl.is_file()  # as an older run leaves it
        return untimed or unlimited or not (here.measurements / "summary.json").is_file()

    def _base_is_missing(self) -> bool:
        asked = self.loaded.recipe.forgetting.probes != "none"
        return asked and not (self.dir.base_measurements / "summary.json").is_file()

    def _execute(self, plan: StagePlan, child: Child) -> None:
        here, ticket = self.dir.stage(plan.id), self.tickets[plan.id]
        self._take_inputs(plan)
        self.changed = True
        ticket.measure_base = self._base_is_missing()
        ticket.ask_base = not ticket.measure_base and answers.missing(self.dir.base_answers, ticket.prompts)
        if ticket.ask_base:
            self.dir.supersede(self.dir.base_answers)
        checkpoint = checkpoints.whole_checkpoint(here.checkpoints)
        ticket.resume_from = checkpoint.relative_to(here.root).as_posix() if checkpoint else None
        here.error.unlink(missing_ok=True)
        here.progress.unlink(missing_ok=True)
        files.write_json(here.ticket, ticket.model_dump(mode="json"))
        self._note(
            plan,
            status="running",
            fingerprint=ticket.fingerprint,
            started=_now(),
            resumed_from=checkpoint.name if checkpoint else None,
        )
        if not ticket.measure_only:
            resuming = f" (resuming from {checkpoint.name})" if checkpoint else ""
            self.watcher.say(f"{plan.id}: {plan.program.stage.description}{resuming}")
        self.watcher.begin(plan.id, here.metrics, here.progress)
        self.page.write(measured=True)
        try:
            child.execute(plan.id)
        except AlignError:
            self._note(plan, status="failed")
            raise
        outcome = reading.outcome(here)
        assert outcome is not None
        alarms = {f"{name.replace('_', ' ')} " for name in outcome.metrics.get("alarms", ())}
        for text in outcome.warnings:
            if not text.startswith(tuple(alarms)) and text not in ticket.warnings:  # which were told before
                self.watcher.warn(plan.id, text)
        for text in answers.told(self.dir.base_answers, here.answers, plan.id):
            self.watcher.say(text)
        self._note(plan, ended=_now(), seconds=round(outcome.seconds + outcome.measure_seconds, 1))
        shutil.rmtree(here.checkpoints, ignore_errors=True)  # the result is whole

    def _take_inputs(self, plan: StagePlan) -> None:
        """Fill in what only the stages before can tell: their policy and reward models."""
        ticket = self.tickets[plan.id]
        if plan.policy != BASE:
            policy = self._result(plan, plan.policy).policy
            assert policy is not None
            ticket.policy = policy
        for reward in ticket.rewards:
            if reward.stage is not None:
                reward.model = self._result(plan, reward.stage).reward

    def _result(self, plan: StagePlan, source: str) -> Outcome:
        outcome = reading.outcome(self.dir.stage(source))
        if outcome is None:
            raise AlignError(
                f"stage '{plan.id}' starts from '{source}', which has not run in '{self.dir.root}'",
                f"run without --only, or `--only {source}` first",
            )
        return outcome

    def _decide(self, plan: StagePlan) -> str:
        """Judge a stage by the gate and its budgets, from stored measurements; nothing is measured or trained."""
        decision, new = deciding.decide(self.dir, plan.id, self.loaded.recipe.forgetting)
        if decision is None:
            return "continue"
        if new:
            self.changed = True
            for reason in decision.alarming:
                self.watcher.say(f"{plan.id}: {reason}", "gate")
            if decision.alarming:
                self.notifier.send("gate", stage=plan.id)
        return decision.action

    def _summarize(self) -> None:
        """forgetting.json and the report, when anything is new."""
        self._save()
        measured = (self.dir.base_measurements / "summary.json").is_file()
        lost = measured and files.read_json(self.dir.forgetting) is None
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
        if files.read_json(self.dir.record) != written:
            files.write_json(self.dir.record, written)
            self.changed = True


def _recorded(run: RunDir) -> RunRecord | None:
    """run.json as it was left; None where there is none."""
    return reading.whole(run.record, RunRecord, "give another --run-dir, or remove the file: the run then starts over")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
