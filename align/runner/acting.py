"""What is done about a stage that violates a limit, until it is decided which policy goes on.

Every time a run is opened this is gone through from the first attempt on, from what is stored: an attempt that is there
is not trained again, a share that is there not measured again. So a run that was killed anywhere comes to the same
decision, and one whose limits or actions have changed to the decision that it would have come to from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from align.forgetting import gate
from align.forgetting.action_keys import Action, Chain, Interpolate
from align.forgetting.keys import ForgettingKeys
from align.interpolation import shares, stored
from align.parameterization import chain
from align.recipe import retries
from align.recipe.plan import StagePlan
from align.run_folder import attempts, files, handed_on, interpolation, reading
from align.run_folder.decisions import AS_TRAINED, INTERPOLATED, ROLLED_BACK, Attempt, Decision
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.run_folder.stage_dir import StageDir
from align.runner import deciding
from align.runner.executing import Executor
from align.runner.notify import Notifier

NAMED: Final = 3  # of what was violated, in the sentence on what was done about it


@dataclass
class Walk:
    """The way of one stage to its decision.

    Attributes:
        seen: what was judged.
        done: sentences on what was done.
        said: sentences that the user has been told.
    """

    plan: StagePlan
    seen: list[Attempt] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@dataclass
class Acting:
    """Decides on the stages of a run, one after the other."""

    executor: Executor
    notifier: Notifier

    @property
    def _run(self) -> RunDir:
        return self.executor.dir

    @property
    def _keys(self) -> ForgettingKeys:
        return self.executor.loaded.recipe.forgetting

    def settle(self, plan: StagePlan) -> str:
        """Bring a stage up, judge it and act, until it is decided what goes on; whether the run then does: `continue`
        or `stop`."""
        walk, number = Walk(plan), 1
        self.executor.open(plan)
        while True:
            here = self.executor.stand(plan, number)
            known = self._known(plan, number)
            found = known or deciding.verdict(self._run, plan.id, here, self._keys)
            if found is None:
                self._run.stage(plan.id).decision.unlink(missing_ok=True)  # of budgets that the recipe no longer has
                self._in_place(plan, here, number)
                return "continue"
            if known is None:
                found.attempt = number
                found = self._act(walk, here, found)
            if found.action != "retry":
                self._in_place(plan, here, number)
                return self._decided(walk, found)
            self._keep(walk, found)
            number += 1

    def _known(self, plan: StagePlan, number: int) -> Decision | None:
        """A decision that stands, on a policy that goes on as it was trained first."""
        known = reading.whole(self._run.stage(plan.id).decision, Decision)
        if known is None or number > 1 or known.attempt > 1 or known.thresholds != self._keys.thresholds():
            return None
        return known if known.policy == AS_TRAINED and not known.actions else None

    def _in_place(self, plan: StagePlan, here: StageDir, number: int) -> None:
        """Have the attempt that was decided on stand in the stage's folder."""
        if here.root != self._run.stage(plan.id).root:
            self.executor.place(plan, number)

    def _act(self, walk: Walk, here: StageDir, found: Decision) -> Decision:
        """Try what is to be done about a verdict, in order; the decision, with the action `retry` where the stage is to
        be trained again."""
        actions = () if found.action in ("continue", "stop") else gate.chain(self._keys, found)
        if actions or walk.seen:
            changed = retries.changed(walk.plan, self._keys.retry, found.attempt)
            walk.seen.append(deciding.attempt(self._run, here, self._keys, found, changed))
        for action in actions:
            if action == "retry" and self._retries(walk, found):
                return self._told(walk, found, "retry")
            if action == "interpolate" and (shared := self._interpolated(walk, found)) is not None:
                return shared
            if action == "rollback":
                walk.done.append(self._rolled_back(walk))
                found.policy = ROLLED_BACK
                return self._told(walk, found, "continue")
            if action in ("warn", "stop"):
                walk.done.append(_nothing_helped(actions, action))
                return self._told(walk, found, action)
        return self._told(walk, found, found.action)

    def _told(self, walk: Walk, found: Decision, action: Action | str) -> Decision:
        """The decision with what was done, right after what was violated."""
        first = len(found.violations) + len(found.budgets)
        return found.model_copy(
            update={
                "action": "continue" if action == "warn" else action,
                "actions": list(walk.done),
                "attempts": list(walk.seen),
                "reasons": [*found.reasons[:first], *walk.done, *found.reasons[first:]],
            }
        )

    def _retries(self, walk: Walk, found: Decision) -> bool:
        """Whether the stage is to be trained again; says why not."""
        retry, made = self._keys.retry, found.attempt - 1
        assert retry is not None
        now, then = (retries.changed(walk.plan, retry, found.attempt + more) for more in (0, 1))
        if made >= retry.times:
            return False
        if then == now:
            why = "has nothing that `retry` changes" if not now else "could change nothing more"
            walk.done.append(f"no retry: {walk.plan.id} {why}")
            return False
        again = f"trained again from the same policy, with {retries.sentence(then)}"
        walk.done.append(f"retry {made + 1} of {retry.times}, because of {_broken(found)}: {again}")
        return True

    def _keep(self, walk: Walk, found: Decision) -> None:
        """Put an attempt aside that is followed by another."""
        here = self._run.stage(walk.plan.id)
        attempts.put_aside(here, found.attempt)
        path = here.attempt(found.attempt).decision
        if reading.whole(path, Decision) != found:
            files.write_json(path, found.model_dump(mode="json"))
            self._say(walk, found)

    def _interpolated(self, walk: Walk, found: Decision) -> Decision | None:
        """The decision for a share of the update; None where there is none."""
        here = self.executor.place(walk.plan, found.attempt)
        came_in = reading.read(here.ticket, Ticket).policy
        refused = shares.refusal(chain.layers(came_in.adapters), walk.plan.layer)
        if refused is not None:
            walk.done.append(f"interpolate: {refused}")
            return None
        result = self._result(walk, here, found)
        if result.share is None:
            walk.done.append(f"interpolate: {result.sentence}")
            return None
        shared = deciding.verdict(self._run, walk.plan.id, here.decided, self._keys)
        assert shared is not None
        shared.attempt, shared.policy = found.attempt, INTERPOLATED
        shared.share, shared.shape = result.share, result.shape
        changed = retries.changed(walk.plan, self._keys.retry, found.attempt)
        walk.seen.append(deciding.attempt(self._run, here.decided, self._keys, shared, changed))
        if gate.acts(self._keys, shared):
            walk.done.append(f"interpolate: at a share of {result.share:g} a limit is still surely broken")
            return None
        first = len(shared.violations) + len(shared.budgets)
        shared.reasons[first:first] = gate.choice(self._keys, found)
        rank = f"; its adapter has rank {result.rank}" if result.rank else ""
        kept = deciding.gain_kept(self._run, result.gains)
        walk.done.append(f"interpolate, because of {_broken(found)}: {result.sentence}{rank}; {kept}")
        return self._told(walk, shared, shared.action)

    def _result(self, walk: Walk, here: StageDir, found: Decision) -> InterpolationResult:
        """What share of the update keeps the limits: as it was found, or from what is stored; else the child finds
        it."""
        outcome, shape = reading.outcome(here), (self._keys.interpolate or Interpolate()).shape
        assert outcome is not None
        ticket, limits = self.executor.tickets[walk.plan.id], self._keys.limits()
        prompts = [prompt.id for prompt in ticket.prompts]
        of = files.digest([outcome.artifacts, outcome.probes_sha256, prompts, ticket.latency, shape])
        key = files.digest([of, shares.GRID, limits])
        request = InterpolationRequest(
            stage=walk.plan.id, shape=shape, shares=shares.GRID, limits=limits, made_of=of, key=key
        )
        known = reading.whole(here.interpolation_result, InterpolationResult)
        if known is not None and known.key == request.key and interpolation.is_whole(here, known):
            return known
        told = stored.again(self._run, here, ticket, request)
        if told is not None:
            here.decision.unlink(missing_ok=True)  # it speaks of the share that was decided on before
            stored.write(here, told)
            return told
        self._say(walk, found)
        return self.executor.interpolate(walk.plan, request)

    def _rolled_back(self, walk: Walk) -> str:
        parents = {plan.id: plan.policy for plan in self.executor.loaded.stages}
        source = handed_on.source(self._run, walk.plan.policy, parents)
        before = "the base" if source == handed_on.BASE else f"the policy of {source}"
        return f"rolled back: what follows goes on from {before}, as if {walk.plan.id} had not been trained"

    def _decided(self, walk: Walk, found: Decision) -> str:
        """Write the decision down, and tell it where it is new."""
        path = self._run.stage(walk.plan.id).decision
        if reading.whole(path, Decision) != found:
            files.write_json(path, found.model_dump(mode="json"))
            self.executor.changed = True
            self._say(walk, found)
            if found.alarming:
                self.notifier.send("gate", stage=walk.plan.id)
        return found.action

    def _say(self, walk: Walk, found: Decision) -> None:
        for reason in found.alarming:
            if reason not in walk.said:
                walk.said.append(reason)
                self.executor.watcher.say(f"{walk.plan.id}: {reason}", "gate")


def _broken(found: Decision) -> str:
    """`copy (0.95 -> 0.45), sort (0.9 -> 0.5) and 2 more`: what was violated, the first few."""
    named = [f"{one.probe} ({_score(one.before)} -> {_score(one.after)})" for one in found.violations]
    shown = named[:NAMED] + ([f"{len(named) - NAMED} more"] if len(named) > NAMED else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _nothing_helped(actions: Chain, last: Action) -> str:
    tried = ", then ".join(f"`{action}`" for action in actions[:-1])
    ends = "the run stops" if last == "stop" else "the run continues anyway, with the policy as it was trained last"
    return f"after {tried} a limit is still violated, so {ends}"
