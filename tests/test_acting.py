"""What the parent does about a violated limit. A child in its place trains and interpolates nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.compare import sides
from align.errors import AlignError, Exit
from align.interpolation.shares import GRID
from align.recipe.plan import StagePlan
from align.report import facts, records
from align.results import find
from align.run_folder import attempts, files, handed_on, reading
from align.run_folder.decisions import Decision
from align.run_folder.records import Adapter, Policy, Ticket
from align.runner.executing import Executor
from test_loop import RECIPE, Runs, probes, runs

__all__ = ["probes", "runs"]  # fixtures

HALF = "forgetting.retry={times: 2, learning_rate: 0.5}"
LOST = "sums: 0.9 -> 0.3 (-0.600, 95 % interval -0.687 to -0.490, 100 items) is beyond the limit, a drop of 0.1"
MEAN = "mean of the skills: 0.9 -> 0.3 (-0.600, 95 % interval -0.688 to -0.489, 100 items) is beyond the limit, "


def on_violation(action: str, *more: str) -> tuple[str, ...]:
    return (f"forgetting.on_violation={action}", *more)


def decision(runs: Runs, stage: str) -> Decision:
    return reading.read(runs.dir.stage(stage).decision, Decision)


def ticket(runs: Runs, stage: str) -> Ticket:
    return Ticket.model_validate(files.read_json(runs.dir.stage(stage).ticket))


def standing(runs: Runs) -> int | None:
    return attempts.standing(runs.dir.stage("sft"))


def test_rollback_goes_on_from_the_policy_before(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    back = (probes, *on_violation("rollback"))
    assert runs.run(*back) == ["sft, and the base", "dpo", "finish"]
    assert runs.code == Exit.DONE and ticket(runs, "dpo").policy.weights is None
    found = decision(runs, "sft")
    assert (found.action, found.policy, found.attempt, found.thresholds["on_violation"]) == (
        *("continue", "rolled_back", 1),
        "rollback",
    )
    assert found.actions == ["rolled back: what follows goes on from the base, as if sft had not been trained"]
    assert found.alarming == found.reasons[:3] and found.alarming[2:] == found.actions
    assert f"gate sft: {found.actions[0]}" in runs.said
    assert runs.run(*back) == ["finish"] and not [line for line in runs.said if line.startswith("gate ")]
    assert runs.statuses() == {"sft": "done", "dpo": "done"}


def test_a_run_that_was_rolled_back_to_its_base_is_not_compared(runs: Runs, probes: str) -> None:
    runs.right |= {"sft": 30, "dpo": 30}
    runs.run(probes, *on_violation("rollback"))
    with pytest.raises(AlignError) as error:
        sides._side(runs.dir.root, "a")
    assert str(error.value) == (
        f"'{runs.dir.root}' hands on no policy: all that it trained was rolled back to its base\n"
        "  -> compare runs that hand one on"
    )
    runs.right["sft"] = 90
    runs.run(probes, *on_violation("rollback"), "stages.sft.training.max_steps=3")
    assert list(sides._side(runs.dir.root, "a").stages) == ["sft"]


def test_replayed_rows_of_a_stage_that_was_rolled_back_are_warned_of(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    replay = "stages.dpo.replay={stage: sft, ratio: 0.2}"
    runs.run(probes, *on_violation("rollback"), replay)
    told = "it replays the rows of 'sft', which was rolled back: they teach it what 'sft' was to learn"
    assert f"warning dpo: {told}" in runs.said and runs.outcome("dpo").warnings == [told]
    runs.run(probes, replay)
    assert not runs.outcome("dpo").warnings


def test_what_follows_runs_again_only_where_another_policy_goes_on(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    back = (probes, *on_violation("rollback"))
    runs.run(*back)
    assert runs.run(probes, *on_violation("[retry, rollback]", "forgetting.retry={learning_rate: 0.5}")) == [
        "sft attempt 2",
        "finish",
    ], "rolled back as before"
    assert runs.run(*back, "stages.sft.training.max_steps=3") == ["sft", "finish"], "another sft, rolled back as well"
    assert runs.run(probes, "stages.sft.training.max_steps=3") == ["dpo", "finish"]
    assert "dpo: it starts from something else now; the old one is kept in superseded/" in runs.said
    assert ticket(runs, "dpo").policy.weights == "stages/sft/model"


def test_a_retry_that_keeps_the_limits_goes_on(runs: Runs, probes: str) -> None:
    runs.right |= {"sft 1": 30, "sft 2": 88}
    again = (probes, *on_violation("retry", HALF, "stages.sft.training.max_steps=8"))
    assert runs.run(*again) == ["sft, and the base", "sft attempt 2", "dpo", "finish"]
    found, here = decision(runs, "sft"), runs.dir.stage("sft")
    assert (found.action, found.policy, found.attempt, found.violations) == ("continue", "as_trained", 2, [])
    broken = "sums (0.9 -> 0.3) and mean of the skills (0.9 -> 0.3)"
    again_with = "trained again from the same policy, with learning_rate 0.0001 instead of 0.0002"
    done = f"retry 1 of 2, because of {broken}: {again_with}"
    assert found.actions == [done] and found.reasons[0] == done
    first, second = found.attempts
    assert (first.number, first.changed, first.violated) == (1, {}, ["sums", "mean of the skills"])
    assert (second.number, second.changed, second.violated) == (2, {"learning_rate": (2e-4, 1e-4)}, [])
    assert second.worst is not None and (second.worst.before, second.worst.after) == (0.9, 0.88)
    assert standing(runs) == 2 and ticket(runs, "sft").training["learning_rate"] == 1e-4
    kept = here.attempt(1)
    assert reading.read(kept.decision, Decision).action == "retry" and kept.outcome.is_file()
    assert (kept.model / "weights").is_file() and (kept.measurements / "summary.json").is_file()
    report = records.load(runs.dir.root)
    assert [stage.tried_seconds for stage in report.stages] == [2, 0], "a second of training and one of measuring"
    assert ("Training and measuring", "6.0 s") in [(fact.label, fact.value) for fact in facts.facts(report)]
    assert [line for line in runs.said if line.startswith("gate ")][-1] == f"gate sft: {done}"
    assert runs.run(*again) == ["finish"] and standing(runs) == 2


def test_another_limit_takes_up_an_attempt_that_is_there(runs: Runs, probes: str) -> None:
    runs.right |= {"sft 1": 30, "sft 2": 88}
    strict = (probes, *on_violation("retry", HALF))
    loose = (*strict, "forgetting.max_drop=0.9", "forgetting.max_mean_drop=0.9")
    runs.run(*strict)
    assert runs.run(*loose) == ["dpo", "finish"], "the first attempt is good enough now"
    assert standing(runs) == 1 and runs.dir.stage("sft").attempt(2).outcome.is_file()
    assert decision(runs, "sft").attempts == []
    assert runs.run(*strict) == ["finish"] and standing(runs) == 2, "and so is the dpo that was trained from the second"
    assert runs.run(*strict) == ["finish"]


TO_AND_FRO = ("forgetting.max_mean_drop=0.9", *on_violation("interpolate"))
BACK = "dpo: it starts from what it was trained from before; that result is taken back from superseded/"


def to_and_fro(runs: Runs, probes: str) -> tuple[Callable[..., list[str]], Callable[..., list[str]]]:
    """A run with a share of sft, and then rolled back: what runs it the one way and the other."""
    runs.right["sft"], runs.shares = 30, {0.3: 88}

    def shared(**options: Any) -> list[str]:
        return runs.run(probes, *TO_AND_FRO, **options)

    def back(**options: Any) -> list[str]:
        return runs.run(probes, TO_AND_FRO[0], *on_violation("rollback"), **options)

    assert shared() == ["sft, and the base", "sft interpolated", "dpo", "finish"]
    runs.content = "weights of another dpo"
    assert back() == ["dpo", "finish"] and BACK not in runs.said
    return shared, back


def test_what_was_trained_from_the_policy_before_comes_back_with_it(runs: Runs, probes: str) -> None:
    shared, back = to_and_fro(runs, probes)
    here = runs.dir.stage("dpo")
    for again, came_in in ((shared, "stages/sft/decided/model"), (back, None), (shared, "stages/sft/decided/model")):
        assert again() == ["finish"] and BACK in runs.said and "it starts from something else" not in runs.said
        assert ticket(runs, "dpo").policy.weights == came_in
        assert (here.model / "weights").read_text() == ("weights" if came_in else runs.content)
        assert not here.aside.exists() and runs.superseded() == ["dpo"]
        assert runs.statuses() == {"sft": "done", "dpo": "done"}
    assert runs.run(probes, *TO_AND_FRO) == ["finish"] and BACK not in runs.said


def test_nothing_comes_back_or_is_decided_on_behind_a_stage_that_stops_the_run(runs: Runs, probes: str) -> None:
    to_and_fro(runs, probes)
    stop = (probes, TO_AND_FRO[0], *on_violation("stop"))
    loose = (*stop, "forgetting.max_drop=0.9")
    assert runs.run(*stop) == [] and runs.code == Exit.GATE and not runs.dir.stage("dpo").root.exists()
    assert runs.run(*loose) == ["dpo", "finish"] and decision(runs, "dpo").action == "continue"
    assert runs.run(*stop) == [] and runs.code == Exit.GATE
    here = runs.dir.stage("dpo")
    assert here.outcome.is_file() and not here.decision.exists(), "it was decided on by a limit that stands no more"
    assert runs.run(*loose) == ["finish"] and decision(runs, "dpo").action == "continue"


def test_a_damaged_result_does_not_come_back(runs: Runs, probes: str) -> None:
    shared, _ = to_and_fro(runs, probes)
    (kept,) = (runs.dir.superseded).iterdir()
    weights = kept / "model" / "weights"
    stat = weights.stat()
    weights.write_text("WEIGHTS", encoding="utf-8")
    os.utime(weights, (stat.st_atime, stat.st_mtime))
    assert shared() == ["dpo", "finish"]


@pytest.mark.parametrize("again", [{"from_stage": "sft"}, {"from_stage": "dpo"}, {"fresh": True}, {"only": "dpo"}])
def test_what_a_user_wants_trained_again_does_not_come_back(runs: Runs, probes: str, again: dict[str, Any]) -> None:
    shared, back = to_and_fro(runs, probes)
    assert "dpo" in back(**again)
    assert [asked for asked in shared() if asked == "dpo"] == ["dpo"] and BACK not in runs.said


def test_another_factor_trains_only_the_attempts_that_it_changes(runs: Runs, probes: str) -> None:
    runs.right |= {"sft 1": 30, "sft 2": 88}
    runs.run(probes, *on_violation("retry", HALF))
    other = (probes, *on_violation("retry", "forgetting.retry={times: 2, learning_rate: 0.25}"))
    assert runs.run(*other) == ["sft attempt 2", "dpo", "finish"]
    assert runs.superseded() == ["2", "dpo"] and runs.dir.stage("sft").attempt(1).outcome.is_file()


@pytest.mark.parametrize(
    ("chain", "code", "policy", "ends"),
    [
        ("retry", Exit.GATE, "as_trained", "after `retry` a limit is still violated, so the run stops"),
        ("[retry, stop]", Exit.GATE, "as_trained", "after `retry` a limit is still violated, so the run stops"),
        (
            *("[retry, warn]", Exit.DONE, "as_trained"),
            "after `retry` a limit is still violated, so the run continues anyway, with the policy as it was trained "
            "last",
        ),
        (
            *("[retry, rollback]", Exit.DONE, "rolled_back"),
            "rolled back: what follows goes on from the base, as if sft had not been trained",
        ),
    ],
)
def test_a_chain_ends_as_it_says(runs: Runs, probes: str, chain: str, code: Exit, policy: str, ends: str) -> None:
    runs.right["sft"] = 30
    asked = runs.run(probes, *on_violation(chain, HALF))
    assert asked[:3] == ["sft, and the base", "sft attempt 2", "sft attempt 3"]
    assert runs.code == code and asked[3:] == ([] if code == Exit.GATE else ["dpo", "finish"])
    found = decision(runs, "sft")
    assert (found.policy, found.attempt, found.actions[-1]) == (policy, 3, ends)
    assert [one.number for one in found.attempts] == [1, 2, 3] and len(found.actions) == 3
    assert "trained again from the same policy, with learning_rate 5e-05 instead of 0.0002" in found.actions[1]
    assert runs.run(probes, *on_violation(chain, HALF)) == ([] if code == Exit.GATE else ["finish"])
    assert runs.code == code


def test_the_largest_share_goes_on(runs: Runs, probes: str) -> None:
    runs.right["sft"], runs.shares = 30, {0.5: 70, 0.3: 84, 0.2: 88}
    shared = (probes, *on_violation("interpolate"))
    assert runs.run(*shared) == ["sft, and the base", "sft interpolated", "dpo", "finish"]
    found, here = decision(runs, "sft"), runs.dir.stage("sft")
    assert (found.action, found.policy, found.share, found.shape) == ("continue", "interpolated", 0.3, "flat")
    broken = "sums (0.9 -> 0.3) and mean of the skills (0.9 -> 0.3)"
    told = f"interpolate, because of {broken}: a share of 0.3 of the update keeps it; no probe had got better, so "
    assert found.actions == [told + "there is no gain to keep"] and found.violations == []
    assert [(one.number, one.share, bool(one.violated)) for one in found.attempts] == [(1, None, True), (1, 0.3, False)]
    assert ticket(runs, "dpo").policy.weights == "stages/sft/decided/model"
    assert handed_on.folder(here).measurements == here.decided.measurements
    assert files.read_json(runs.dir.forgetting)["matrix"]["sft"]["sums"]["score"] == 0.84
    assert runs.run(*shared) == ["finish"]
    # another limit: the same share is the same policy; another share is another one
    assert runs.run(*shared, "forgetting.max_drop=0.11") == ["sft interpolated", "finish"]
    runs.shares[0.4] = 86
    assert runs.run(*shared, "forgetting.max_drop=0.12") == ["sft interpolated", "dpo", "finish"]
    files.write_text(here.decided.model / "weights", "x")
    assert runs.run(*shared, "forgetting.max_drop=0.12") == ["sft interpolated", "finish"], "the file was damaged"


def test_another_limit_is_decided_on_from_the_shares_that_are_stored(runs: Runs, probes: str) -> None:
    """Nothing is asked of the training process where each share is measured and the policy is there."""
    runs.right["sft"], runs.keeps_shares = 30, True
    runs.shares = {share: {0.4: 75, 0.3: 88, 0.2: 87}.get(share, 0) for share in GRID}
    shared = (probes, *on_violation("interpolate"), "forgetting.max_mean_drop=0.9")
    here = runs.dir.stage("sft")
    assert runs.run(*shared, "forgetting.max_drop=0.1") == ["sft, and the base", "sft interpolated", "dpo", "finish"]
    assert runs.run(*shared, "forgetting.max_drop=0.11") == ["finish"]
    found = decision(runs, "sft")
    assert (found.share, found.thresholds["max_drop"]) == (0.3, 0.11)
    sentence = (
        "a share of 0.3 of the update (flat) keeps every probe within its limit; 0.9, 0.8, 0.7, 0.6, 0.5 and 0.4 do "
        "not: at 0.4 the drop of sums is 0.15, where 0.11 is tolerated"
    )
    assert sentence in found.actions[0]
    assert runs.run(*shared, "forgetting.max_drop=0.16") == ["sft interpolated", "finish"], "0.4 has no policy yet"
    assert runs.run(*shared, "forgetting.max_drop=0.1") == ["finish"]
    assert runs.run(*shared, "forgetting.max_drop=0.01") == ["dpo", "finish"], "no share keeps that"
    assert decision(runs, "sft").policy == "rolled_back" and not here.decided.root.exists()
    assert ticket(runs, "dpo").policy.weights is None
    assert runs.run(*shared, "forgetting.max_drop=0.005") == ["finish"]
    (here.of_share("flat", 0.2) / "summary.json").unlink()
    assert runs.run(*shared, "forgetting.max_drop=0.01") == ["sft interpolated", "finish"], "it is damaged"


def test_a_limit_that_only_warns_rejects_no_share(runs: Runs, probes: str) -> None:
    """A share at which nothing but such a limit is still broken goes on, with the warning."""
    runs.right["sft"], runs.shares = 30, {0.3: 80}
    found_at = (probes, "forgetting.max_drop=0.2", "forgetting.max_mean_drop=0.01")
    runs.run(*found_at, *on_violation("{sums: interpolate, mean: warn}"))
    found = decision(runs, "sft")
    assert (found.action, found.policy, found.share) == ("continue", "interpolated", 0.3)
    assert [one.probe for one in found.violations] == ["mean of the skills"]
    assert "the run continues anyway, because on_violation is warn" in found.reasons
    runs.run(*found_at, *on_violation("{sums: interpolate, mean: stop}"))
    assert (runs.code, decision(runs, "sft").policy) == (Exit.GATE, "as_trained")


def test_a_decision_on_a_share_says_which_chain_was_taken(runs: Runs, probes: str) -> None:
    runs.right["sft"], runs.shares = 30, {0.3: 88}
    runs.run(probes, *on_violation("{sums: interpolate, default: warn}"))
    assert decision(runs, "sft").reasons[1] == (
        "of the actions for what was violated (sums: interpolate, then rollback, mean of the skills: warn) the "
        "strictest is taken: interpolate, then rollback"
    )


@pytest.mark.parametrize(
    ("chain", "code", "policy"),
    [
        ("interpolate", Exit.DONE, "rolled_back"),
        ("[interpolate, rollback]", Exit.DONE, "rolled_back"),
        ("[interpolate, stop]", Exit.GATE, "as_trained"),
        ("[interpolate, warn]", Exit.DONE, "as_trained"),
    ],
)
def test_no_share_is_a_rollback_unless_the_chain_says_otherwise(
    runs: Runs, probes: str, chain: str, code: Exit, policy: str
) -> None:
    runs.right["sft"] = 30
    asked = runs.run(probes, *on_violation(chain))
    assert asked == ["sft, and the base", "sft interpolated", *(["dpo", "finish"] if code == Exit.DONE else [])]
    found = decision(runs, "sft")
    assert (runs.code, found.policy, found.share) == (code, policy, None)
    assert found.actions[0] == "interpolate: no share of the update keeps it" and len(found.actions) == 2


def test_a_chain_is_tried_in_order(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    chain = (probes, *on_violation("[retry, interpolate, rollback]", "forgetting.retry={max_steps: 0.5}"))
    assert runs.run(*chain) == ["sft, and the base", "sft attempt 2", "sft interpolated", "dpo", "finish"]
    found = decision(runs, "sft")
    assert [text.split(":")[0].split(",")[0] for text in found.actions] == [
        "retry 1 of 1",
        "interpolate",
        "rolled back",
    ]
    assert found.attempts[1].changed == {"num_train_epochs": (3.0, 1.5)}
    runs.shares = {0.4: 88}
    looser = (*chain, "forgetting.max_drop=0.12")
    assert runs.run(*looser) == ["sft interpolated", "dpo", "finish"]
    assert (decision(runs, "sft").attempt, decision(runs, "sft").share) == (2, 0.4)


def test_a_run_that_was_interrupted_inside_an_action_comes_to_the_same(runs: Runs, probes: str, tmp_path: Path) -> None:
    runs.right["sft"], runs.shares = 30, {0.4: 88}
    chain = (probes, *on_violation("[retry, interpolate]", "forgetting.retry={max_steps: 0.5}"))
    for inside in ("sft 2", "sft interpolated", "dpo"):
        runs.raising[inside] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            runs.run(*chain)
    assert runs.run(*chain) == ["dpo", "finish"]
    found = decision(runs, "sft")
    other = Runs(tmp_path / "whole", right=runs.right, shares=runs.shares)
    other.folder.mkdir()
    (other.folder / "sums.jsonl").write_bytes((tmp_path / "sums.jsonl").read_bytes())
    type.__setattr__(__import__("test_loop").Child, "runs", other)
    other.run(*chain)
    assert decision(other, "sft") == found
    assert ticket(other, "dpo").fingerprint == ticket(runs, "dpo").fingerprint


def test_a_run_that_was_killed_while_files_were_moved_finishes_that(
    runs: Runs, probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every single file, on the way to the second attempt and back."""
    runs.right |= {"sft 1": 30, "sft 2": 88}
    strict = (probes, *on_violation("retry", HALF))
    loose = (*strict, "forgetting.max_drop=0.9", "forgetting.max_mean_drop=0.9")
    runs.run(*strict)
    here, replace = runs.dir.stage("sft"), os.replace
    names = {path.name for path in here.root.iterdir()} - {"attempts", "decision.json"}
    for asked, number in ((loose, 1), (strict, 2)):
        for last in range(1, 2 * len(names)):
            left = iter(range(last))

            def moved(source: Any, target: Any, left: Any = left) -> None:
                if here.root in source.parents and source.name[0] != "." and next(left, None) is None:
                    raise KeyboardInterrupt
                replace(source, target)

            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", moved)
                try:
                    runs.run(*asked)
                except KeyboardInterrupt:
                    assert here.moving.is_file()
        assert runs.run(*asked) == ["finish"] and standing(runs) == number
        assert {path.name for path in here.root.iterdir()} - {"attempts", "decision.json"} == names
        assert not here.moving.exists()


def test_a_run_killed_while_it_measures_again_keeps_what_goes_on_from_the_same_policy(
    runs: Runs, probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the measurement, and again between the decision and the next stage."""
    runs.right |= {"sft 1": 30, "sft 2": 88}
    again = (probes, *on_violation("retry", HALF))
    runs.run(*again)
    text = (runs.folder / "sums.jsonl").read_text(encoding="utf-8")
    (runs.folder / "sums.jsonl").write_text(text.replace("Sort", "Order"), encoding="utf-8")
    runs.raising["sft 2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(*again)
    opened = Executor.open

    def killed(executor: Executor, plan: StagePlan, **_: object) -> None:
        if plan.id == "dpo":
            raise KeyboardInterrupt
        opened(executor, plan)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Executor, "open", killed)
        runs.run(*again)
    assert runs.run(*again) == ["dpo measured", "finish"]
    assert "dpo" not in runs.superseded()


def test_one_stage_alone_waits_until_it_is_decided_what_it_starts_from(runs: Runs, probes: str) -> None:
    """A decision is gone as soon as it speaks of what is not there any more."""
    runs.right |= {"sft": 30, "sft 2": 30}
    runs.run(probes, *on_violation("rollback"))
    runs.raising["sft 3"] = KeyboardInterrupt()
    again = (probes, *on_violation("[retry, rollback]", HALF))
    with pytest.raises(KeyboardInterrupt):
        runs.run(*again)
    here = runs.dir.stage("sft")
    files.write_json(here.outcome, files.read_json(here.attempt(2).outcome))  # as if it had ended, and was killed then
    files.write_json(here.measurements / "summary.json", files.read_json(here.attempt(2).measurements / "summary.json"))
    with pytest.raises(AlignError) as error:
        runs.run(*again, only="dpo")
    assert str(error.value) == (
        f"stage 'dpo' starts from 'sft', and it is not decided yet what goes on from that in '{runs.dir.root}'\n"
        "  -> run without --only, or `--only sft` first"
    )


THREE = RECIPE + "  again: {stage: dpo, policy: dpo, data: {source: lab/helpdesk_preferences, limit: 16}}\n"


def test_all_that_was_trained_from_another_policy_is_moved_away_at_once(runs: Runs, probes: str) -> None:
    """Not only when its turn comes: until then it would stand on files that are of another attempt."""
    runs.right |= {"sft 1": 85, "sft 2": 88}
    runs.run(probes, text=THREE)
    strict = (probes, *on_violation("retry", HALF), "forgetting.max_drop=0.001", "forgetting.max_mean_drop=0.001")
    runs.right["sft 1"] = 30
    for part in ("items.jsonl", "summary.json"):
        (runs.dir.stage("sft").measurements / part).unlink()
    runs.raising["dpo"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(*strict, text=THREE)
    assert runs.superseded() == ["again", "dpo", "measurements"]
    assert runs.run(*strict, text=THREE) == ["dpo", "again", "finish"]


def test_no_policy_is_given_out_that_stands_on_an_undecided_one(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    runs.run(probes)
    here = runs.dir.stage("dpo")
    outcome = files.read_json(here.outcome)
    below = Adapter(name="sft", method="lora", path="stages/sft/model", settings={"method": "lora"})
    policy = Policy(base=outcome["policy"]["base"], adapters=[below])
    files.write_json(here.outcome, outcome | {"policy": policy.model_dump(mode="json")})
    assert find.find(runs.dir.root, "dpo")[1].policy == policy
    runs.raising["sft 3"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(probes, *on_violation("retry", HALF))
    attempts.place(runs.dir.stage("sft"), 2)
    with pytest.raises(AlignError) as error:
        find.find(runs.dir.root, "dpo")
    assert str(error.value) == (
        f"stage 'dpo' of '{runs.dir.root}' stands on 'sft', of which it is not decided yet what goes on\n"
        "  -> let the run end: align run"
    )


def test_a_share_is_taken_with_the_ticket_of_today(runs: Runs, probes: str) -> None:
    """An older align, another place of the base or another number of processes may have trained the stage."""
    runs.right["sft"], runs.shares = 30, {0.3: 84}
    runs.run(probes)
    here = runs.dir.stage("sft")
    known = files.read_json(here.ticket)
    files.write_json(here.ticket, known | {"program_sha256": "of an older align", "processes": 2})
    runs.run(probes, *on_violation("interpolate"))
    assert ticket(runs, "sft") == Ticket.model_validate(known)


def test_the_strictest_of_several_actions_is_taken_and_said(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    by_name = "{sums: [retry, warn], mean: rollback, default: stop}"
    runs.run(probes, *on_violation(by_name, HALF))
    found = decision(runs, "sft")
    assert found.policy == "rolled_back"
    assert (
        "of the actions for what was violated (sums: retry, then warn, mean of the skills: rollback) the strictest is "
        "taken: rollback"
    ) in found.reasons


def test_a_crossed_budget_that_stops_is_not_tried_to_be_mended(runs: Runs, probes: str) -> None:
    runs.right["sft"] = 30
    budget = ("forgetting.budgets={accuracy: 0.5}", "forgetting.on_budget=stop")
    assert runs.run(probes, *budget, *on_violation("rollback")) == ["sft, and the base"]
    assert runs.code == Exit.GATE and decision(runs, "sft").policy == "as_trained"


def test_a_stage_in_which_a_retry_changes_nothing_is_not_tried_again(runs: Runs, probes: str) -> None:
    """`replay: 2` in a chain whose second stage replays nothing."""
    runs.right["dpo"] = 30
    more = ("forgetting.retry={replay: 2}", "stages.sft.replay={data: lab/general, ratio: 0.2}")
    assert runs.run(probes, *more, *on_violation("[retry, rollback]")) == ["sft, and the base", "dpo", "finish"]
    assert "note stage dpo: it is not tried again, because `forgetting.retry` changes nothing in it" in runs.said
    assert decision(runs, "dpo").actions == [
        "no retry: dpo has nothing that `retry` changes",
        "rolled back: what follows goes on from the policy of sft, as if dpo had not been trained",
    ]


def test_new_probes_are_asked_of_every_attempt_without_training(runs: Runs, probes: str) -> None:
    runs.right |= {"sft 1": 30, "sft 2": 88}
    again = (probes, *on_violation("retry", HALF))
    runs.run(*again)
    text = (runs.folder / "sums.jsonl").read_text(encoding="utf-8")
    (runs.folder / "sums.jsonl").write_text(text.replace("Sort", "Order"), encoding="utf-8")
    assert runs.run(*again) == ["sft measured, and the base", "sft attempt 2 measured", "dpo measured", "finish"]
    assert standing(runs) == 2
