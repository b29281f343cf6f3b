"""One attempt at a stage: skip it, measure it again, go on with it or run it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.errors import AlignError, Exit, OutOfMemory
from align.forgetting import measurements
from align.recipe import replays
from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded, StagePlan
from align.report import masked
from align.run_folder import aside, attempts, checkpoints, files, handed_on, reading
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Ticket
from align.run_folder.stage_dir import StageDir
from align.runner import answers, memory, tickets
from align.runner.child import Child
from align.runner.live_page import LivePage
from align.runner.progress import Watcher


@dataclass
class Executor:
    """Brings the stages of a run up, in their order.

    Attributes:
        tickets: of the stages as the recipe has them.
        note: writes into run.json what is known of a stage.
        changed: whether the report has to be written again.
        brought: the attempts that have been brought up since the run was opened; of these nothing more is said.
    """

    loaded: Loaded
    dir: RunDir
    tickets: dict[str, Ticket]
    watcher: Watcher
    child: Child
    page: LivePage
    note: Callable[..., None]
    changed: bool = False
    brought: set[str] = field(default_factory=set)

    def open(self, plan: StagePlan, *, back: bool = True) -> bool:
        """Begin with a stage: what goes on from its inputs has been decided now, and may be another policy than that
        which the stage was trained from, or is being trained from. Whether the stage was moved away for that; one that
        was moved away before comes back where its inputs do, if `back`."""
        here, ticket = self.dir.stage(plan.id), self.tickets[plan.id]
        opened = ticket.fingerprint
        attempts.finish(here)
        tickets.seal(plan, self.loaded, self.tickets, self.dir)
        moved = ticket.fingerprint not in (opened, attempts.fingerprint(here)) and self._put_aside(plan)
        if back and not here.root.exists() and aside.bring_back(self.dir, plan.id, ticket.fingerprint):
            self._tell_back(plan)
        elif moved:
            self._tell_aside(plan)
        return moved

    def _tell_back(self, plan: StagePlan) -> None:
        """Say that a stage came back, also to run.json."""
        outcome = reading.outcome(self.dir.stage(plan.id))
        assert outcome is not None
        self.changed = True
        self.note(plan, seconds=round(outcome.seconds + outcome.measure_seconds, 1), resumed_from=outcome.resumed_from)
        why = "it starts from what it was trained from before"
        self.watcher.say(f"{plan.id}: {why}; that result is taken back from superseded/")

    def follow(self, decided: StagePlan, *, stopped: bool) -> None:
        """Once it is decided what goes on from a stage, move away all that was trained from another policy of it, and
        what was trained from that: its files no longer belong together. If the run stops there, nothing is decided on
        what follows any more, and nothing comes back."""
        gone = set[str]()
        for plan in self.loaded.stages[self.loaded.stages.index(decided) + 1 :]:
            if gone & set(plan.inputs):
                if self._put_aside(plan):
                    self._tell_aside(plan)
            elif plan.policy != decided.id or not self.open(plan, back=not stopped):
                continue
            gone.add(plan.id)
        for plan in self.loaded.stages if stopped else ():
            if decided.id in before(self.loaded, plan):
                self.dir.stage(plan.id).decision.unlink(missing_ok=True)

    def _put_aside(self, plan: StagePlan) -> bool:
        """Move a stage away, with its attempts and its checkpoints; whether there was one."""
        there = self.dir.stage(plan.id).root.exists()
        if there:
            aside.put(self.dir, plan.id)
        return there

    def _tell_aside(self, plan: StagePlan) -> None:
        self.watcher.say(f"{plan.id}: it starts from something else now; the old one is kept in superseded/")

    def stand(self, plan: StagePlan, number: int) -> StageDir:
        """Where the records of an attempt are, which is trained and measured where it is not yet."""
        kept = self.dir.stage(plan.id).attempt(number)
        ticket = self._ticket(plan, number)
        outcome = reading.outcome(kept)
        if outcome is not None and outcome.fingerprint == ticket.fingerprint:
            asked = outcome.probes_sha256 == ticket.probes_sha256
            if asked and not self._base_is_missing() and not self._row_is_missing(plan, kept):
                return kept
        return self.place(plan, number)

    def place(self, plan: StagePlan, number: int) -> StageDir:
        """The same, in the stage's own folder, with its model."""
        here = self.dir.stage(plan.id)
        attempts.place(here, number)
        self._bring_up(plan, self._ticket(plan, number))
        return here

    def interpolate(self, plan: StagePlan, request: InterpolationRequest) -> InterpolationResult:
        """Have a share of what stands in the stage's folder found, measured and saved.

        Raises:
            AlignError: the method has none, or the child died.
        """
        here = self.dir.stage(plan.id)
        for old in (here.decision, here.error, here.progress):  # a decision on a share would speak of another
            old.unlink(missing_ok=True)
        self._renew_ticket(plan, here)
        files.write_json(here.interpolation_request, request.written())
        self.changed = True
        self.note(plan, status="running")
        self.watcher.say(f"{plan.id}: looking for the largest share of its update that keeps the limits")
        self.watcher.begin(plan.id, here.metrics, here.progress)
        try:
            return self.child.interpolate(request, plan.launch)
        except AlignError:
            self.note(plan, status="failed")
            raise

    def _renew_ticket(self, plan: StagePlan, here: StageDir) -> None:
        """Have what stands in a stage's folder go by the ticket of today: another align, in other processes, may have
        trained it."""
        known = reading.read(here.ticket, Ticket)
        ticket = self._ticket(plan, known.attempt)
        take_inputs(self.loaded, self.dir, plan, ticket)
        ticket = ticket.model_copy(update={name: getattr(known, name) for name in tickets.BEGUN})
        files.write_json(here.ticket, ticket.model_dump(mode="json"))

    def _ticket(self, plan: StagePlan, number: int) -> Ticket:
        return tickets.attempt(plan, self.loaded, self.tickets, self.dir, number)

    def _bring_up(self, plan: StagePlan, ticket: Ticket) -> None:
        """Skip an attempt, measure it again, or run it. Cheapest test first."""
        here, name = self.dir.stage(plan.id), _named(ticket)
        outcome, file = reading.outcome(here), here.outcome
        if outcome is None or outcome.probes_sha256 != ticket.probes_sha256:
            kept = reading.outcome_in(here.remeasuring)
            outcome, file = (kept, here.remeasuring) if kept is not None else (outcome, file)
        if outcome is None:
            if here.outcome.is_file():
                self._refuse_newer(here)
                self.watcher.say(f"{name}: its outcome.json is damaged; it runs again, the old is kept in superseded/")
                attempts.supersede(self.dir, here)
            self._begin(plan, ticket)
            return
        begun = file == here.remeasuring  # what was done again then may lack its last files
        asking = begun and bool(files.read_object(here.ticket).get("ask_only"))
        unasked = outcome.probes_sha256 != ticket.probes_sha256 or (begun and not asking)
        rewritten = {str(here.card.relative_to(here.root))} if begun else set()  # it shows what is measured again
        recorded = {path: known for path, known in outcome.artifacts.items() if path not in rewritten}
        torn = files.damaged(recorded, here.root)
        if torn is not None or outcome.fingerprint != ticket.fingerprint:
            bad = f"has a damaged file, {torn}" if torn else "belongs to another recipe"
            self.watcher.say(f"{name}: its result {bad}; it runs again, the old one is kept in superseded/")
            attempts.supersede(self.dir, here)
            self._execute(plan, ticket)
        elif unasked or self._base_is_missing() or self._row_is_missing(plan, here):
            self.watcher.say(f"{name}: trained already; measured again")
            for old in (here.measurements, here.interpolation, here.decided.root):
                self.dir.supersede(old)
            here.decision.unlink(missing_ok=True)
            self._measure_again(plan, ticket, file)
        elif asking or self._answers_are_missing(plan):
            self.watcher.say(f"{name}: trained already; only its answers are written again")
            self.dir.supersede(here.answers)
            ticket.ask_only = True
            self._measure_again(plan, ticket, file)
        else:
            here.remeasuring.unlink(missing_ok=True)
            if reading.whole(here.ticket, Ticket) is None:  # what acts on the stage later reads it
                take_inputs(self.loaded, self.dir, plan, ticket)
                files.write_json(here.ticket, ticket.model_dump(mode="json"))
            if name not in self.brought:
                self.watcher.say(f"{name}: done already")
        self.brought.add(name)

    def _begin(self, plan: StagePlan, ticket: Ticket) -> None:
        """Run an attempt that never came to its end; go on with it where it is of this recipe."""
        here, name = self.dir.stage(plan.id), _named(ticket)
        known = files.read_object(here.ticket).get("fingerprint")
        if known != ticket.fingerprint and (known is not None or here.checkpoints.exists()):
            lost = "its ticket.json is lost, and with it what it is of"
            how = "it was begun with another recipe" if known else lost
            self.watcher.say(f"{name}: {how}; the old one is kept in superseded/")
            attempts.supersede(self.dir, here)
        self._execute(plan, ticket)
        self.brought.add(name)

    def _measure_again(self, plan: StagePlan, ticket: Ticket, outcome: Path) -> None:
        """Execute a stage that is trained, without training; its outcome is kept aside until that is done."""
        here = self.dir.stage(plan.id)
        outcome.replace(here.remeasuring)
        here.outcome.unlink(missing_ok=True)
        ticket.measure_only = True
        self._execute(plan, ticket)
        ticket.measure_only = ticket.ask_only = False
        here.remeasuring.unlink()

    def _refuse_newer(self, here: StageDir) -> None:
        """Raises AlignError where an outcome is as it was written, but this align cannot read it: to train the stage
        again would cost what another version has done."""
        value = files.read_json(here.outcome)
        if isinstance(value, dict) and "seal" in value and files.unsealed(value) is not None:
            what = f"'{here.outcome}' was written by another version of align, and this one cannot read it"
            raise AlignError(what, "use that version, or remove the file and the stage is trained again")

    def _assert_whole(self, plan: StagePlan) -> None:
        """Raises AlignError where a file is damaged that the stage starts from; also where `--only` passes over those
        before it."""
        for id in before(self.loaded, plan):
            source = handed_on.folder(self.dir.stage(id))
            outcome = reading.outcome(source)
            torn = outcome and files.damaged(outcome.artifacts, source.root)
            if torn:
                what = f"stage '{plan.id}' starts from '{id}', of which a file is damaged: {source.root / torn}"
                remedy = f"remove '{self.dir.stage(id).outcome}' and run again: '{id}' is trained again"
                raise AlignError(what, remedy, exit=Exit.STAGE_FAILED)

    def _answers_are_missing(self, plan: StagePlan) -> bool:
        """Whether a policy, or the base, has not answered the prompts of the recipe as it is now."""
        if plan.program.stage.gives != "policy":
            return False
        prompts, here = self.tickets[plan.id].prompts, self.dir.stage(plan.id)
        return any(answers.missing(path, prompts) for path in (here.answers, self.dir.base_answers))

    def _row_is_missing(self, plan: StagePlan, here: StageDir) -> bool:
        keys = self.loaded.recipe.forgetting
        if keys.probes == "none" or plan.program.stage.gives != "policy":
            return False
        if not measurements.is_whole(here.measurements):
            return True
        untimed = self.tickets[plan.id].latency and not here.latency.is_file()
        unlimited = keys.max_kl is not None and not here.task_kl.is_file()  # as an older run leaves it
        summary = files.read_json(here.measurements / "summary.json")
        return untimed or unlimited or summary is None or self._base_is_another(summary)

    def _base_is_another(self, summary: dict[str, Any]) -> bool:
        """Whether the base was measured anew after a policy that was held against it: loaded in another way, as its
        first stage now does. What an older align measured does not say against what."""
        items, against = self.dir.base_measurements / "items.jsonl", summary.get("against")
        return against is not None and items.is_file() and files.file_sha256(items) != against

    def _base_is_missing(self) -> bool:
        asked = self.loaded.recipe.forgetting.probes != "none"
        return asked and not measurements.is_whole(self.dir.base_measurements)

    def _execute(self, plan: StagePlan, ticket: Ticket) -> None:
        here = self.dir.stage(plan.id)
        take_inputs(self.loaded, self.dir, plan, ticket)
        if not ticket.measure_only:
            self._assert_whole(plan)
        self._tell_unlearnt(plan, ticket)
        self.changed = True
        ticket.measure_base = self._base_is_missing()
        ticket.ask_base = not ticket.measure_base and answers.missing(self.dir.base_answers, ticket.prompts)
        if ticket.ask_base:
            self.dir.supersede(self.dir.base_answers)
        while (done := self._trained(plan, memory.fitting(here, ticket))) is None:
            ticket.measure_base = self._base_is_missing()
        self._tell(plan, done, here)
        shutil.rmtree(here.checkpoints, ignore_errors=True)  # the result is whole

    def _trained(self, plan: StagePlan, ticket: Ticket) -> Ticket | None:
        """Have the child execute a ticket, from the last checkpoint on; None where the memory ran out and fewer rows at
        a time may fit.

        Raises:
            AlignError: the stage failed, or the child died.
        """
        here = self.dir.stage(plan.id)
        checkpoint = checkpoints.whole_checkpoint(here.checkpoints)
        ticket.resume_from = checkpoint.relative_to(here.root).as_posix() if checkpoint else None
        here.error.unlink(missing_ok=True)
        here.progress.unlink(missing_ok=True)
        if not ticket.measure_only:
            attempts.inherit(here)
        files.write_json(here.ticket, ticket.model_dump(mode="json"))
        resumed = checkpoint.name if checkpoint else None
        self.note(plan, status="running", started=_now(), resumed_from=resumed)
        if not ticket.measure_only:
            resuming = f" (resuming from {checkpoint.name})" if checkpoint else ""
            self.watcher.say(f"{_named(ticket)}: {plan.program.stage.description}{resuming}")
        self.watcher.begin(plan.id, here.metrics, here.progress)
        self.page.write(measured=True)
        try:
            self.child.execute(plan.id, ticket.launch)
        except AlignError as error:
            self.note(plan, status="failed")
            text = memory.halve(here, ticket, self.loaded, plan, error) if isinstance(error, OutOfMemory) else None
            if text is None:
                raise
            self.watcher.warn(plan.id, text)
            return None
        return ticket

    def _tell_unlearnt(self, plan: StagePlan, ticket: Ticket) -> None:
        """Warn of rows that are replayed and that the policy never learnt, since their stage was rolled back."""
        named = [source.stage for _, source in replays.places(plan) if source.stage is not None]
        for id in named:
            if handed_on.rolled_back(self.dir.stage(id)):
                text = f"it replays the rows of '{id}', which was rolled back: they teach it what '{id}' was to learn"
                ticket.warnings = [*ticket.warnings, *([] if text in ticket.warnings else [text])]
                self.watcher.warn(plan.id, text)

    def _tell(self, plan: StagePlan, ticket: Ticket, here: StageDir) -> None:
        """Tell the warnings of an attempt that is done, two of its answers, and run.json how long it took."""
        outcome = reading.outcome(here)
        assert outcome is not None
        alarms = {f"{name.replace('_', ' ')} " for name in outcome.metrics.get("alarms", ())}
        for text in outcome.warnings:
            if not text.startswith(tuple(alarms)) and text not in ticket.warnings:  # which were told before
                self.watcher.warn(plan.id, text)
        if not ticket.measure_only and (untrained := masked.words(outcome.data)):
            self.watcher.say(f"{plan.id}: masked {untrained}")
        for text in answers.told(self.dir.base_answers, here.answers, plan.id):
            self.watcher.say(text)
        self.note(plan, ended=_now(), seconds=round(outcome.seconds + outcome.measure_seconds, 1))


def take_inputs(loaded: Loaded, run: RunDir, plan: StagePlan, ticket: Ticket) -> None:
    """Fill in what only the stages before can tell: their policy and reward models. Where the base is, today's recipe
    says: a run may have been moved since.

    Raises:
        AlignError: one of them has not run.
    """
    if plan.policy != BASE:
        policy = handed_on.policy(run, plan.policy)
        if policy is None:
            raise _not_run(run, plan, plan.policy)
        ticket.policy = _on_base_of(ticket, policy)
    for id in before(loaded, plan):
        if handed_on.undecided(run.stage(id)):
            what = f"stage '{plan.id}' starts from '{id}', and it is not decided yet what goes on from that in"
            raise AlignError(f"{what} '{run.root}'", f"run without --only, or `--only {id}` first")
    if ticket.inside is not None:
        parents = {one.id: one.policy for one in loaded.stages}
        ticket.inside = ticket.inside.model_copy(update={"incoming": handed_on.source(run, plan.policy, parents)})
    for reward in ticket.rewards:
        if reward.stage is not None:
            outcome = reading.outcome(run.stage(reward.stage))
            if outcome is None:
                raise _not_run(run, plan, reward.stage)
            reward.model = _on_base_of(ticket, outcome.reward) if outcome.reward else None


def _on_base_of(ticket: Ticket, policy: Policy) -> Policy:
    """A policy of the run, with the base where the ticket has it."""
    own = ticket.policy.base
    return policy.model_copy(update={"base": own}) if policy.base.identity == own.identity else policy


def before(loaded: Loaded, plan: StagePlan) -> Iterator[str]:
    """The stages of which anything comes into a stage, by way of others too; the last first."""
    wanted = set(plan.inputs)
    for other in reversed(loaded.stages):
        if other.id in wanted:
            wanted |= set(other.inputs)
            yield other.id


def _not_run(run: RunDir, plan: StagePlan, source: str) -> AlignError:
    what = f"stage '{plan.id}' starts from '{source}', which has not run in '{run.root}'"
    return AlignError(what, f"run without --only, or `--only {source}` first")


def _named(ticket: Ticket) -> str:
    """What an attempt is called in the terminal."""
    return ticket.stage if ticket.attempt == 1 else f"{ticket.stage}, attempt {ticket.attempt}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
