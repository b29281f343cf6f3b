"""What a PPO run is warned of: histories made up so that one thing goes wrong in them, or nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from align.recipe import training_arguments
from align.rl import rollouts
from align.rl.health import REMEDIES, Health, start
from align.rl.ppo_keys import KlKeys, PpoKeys
from align.rl.rollouts import Alarm, Rollout

TARGET = 3.0
GOOD: dict[str, Any] = {
    "kl": TARGET,
    "coef": 0.05,
    "length": 20.0,
    "entropy": 1.0,
    "distinct_2": 0.4,
    "repetition": 0.05,
    "missing_eos": 0.02,
    "explained_variance": 0.4,
    "approx_kl": 0.01,
    "clip_fraction": 0.1,
    "ratio_max": 2.0,
    "policy_loss": -0.01,
    "value_loss": 0.2,
    "stopped": 0.0,
}


def steady(count: int = 16, *, rise: float = 0.1, std: float = 0.5, **figures: Any) -> list[Rollout]:
    """Rollouts in which nothing changes but the score, which rises from 0 by `rise` each."""
    return [
        Rollout(i + 1, 16 * i, 64, score=rise * i, score_std=std, rewards={"r": rise * i}, **{**GOOD, **figures})
        for i in range(count)
    ]


def changed(history: list[Rollout], numbers: range | set[int], **figures: Any) -> list[Rollout]:
    """With these figures in the rollouts of these numbers."""
    return [replace(one, **figures) if one.number in numbers else one for one in history]


def healthy(count: int = 40) -> list[Rollout]:
    """A run as it should be: the score comes to rest, the KL overshoots, the policy gets certain, the critic learns."""
    made = []
    for i, one in enumerate(steady(count)):
        done = 1 - math.exp(-i / 8)
        made.append(
            replace(
                one,
                score=0.1 + 2.2 * done,
                score_std=0.5 - 0.3 * done,
                kl=TARGET * done * (1.6 if i % 4 == 0 else 0.9),
                entropy=1 - 0.7 * done,
                length=20 + 5 * done,
                explained_variance=-0.5 if i < 3 else 0.6 * done,
                clip_fraction=0.05 + 0.1 * (i % 2),
                ratio_max=12.0 if i % 5 == 0 else 3.0,
            )
        )
    return made


def play(history: list[Rollout], target: float | None = TARGET, warmup: int = 0) -> list[Alarm]:
    """Every alarm of a run, as its rollouts come in one by one; the history keeps them."""
    health = Health(target, warmup)
    for i, one in enumerate(history):
        one.alarms = health.judge(history[:i], one)
    return [alarm for one in history for alarm in one.alarms]


def raised(history: list[Rollout], target: float | None = TARGET, warmup: int = 0) -> list[tuple[str, int]]:
    return [(alarm.name, alarm.rollout) for alarm in play(history, target, warmup)]


FROM_10 = range(10, 100)

LIMITS = [  # alarm, figures not quite beyond its limit, figures beyond it, the rollout that tells, words of its figure
    ("reward_hacking", {"kl": 6.0}, {"kl": 6.01}, 12, "KL 6.01 nats, more than 2 times the target 3, for 3 rollouts"),
    ("reward_hacking", {"length": 30.0}, {"length": 30.1}, 12, "30.1 tokens per answer, more than 1.5 times the 20"),
    (
        "reward_hacking",
        {"repetition": 0.249},
        {"repetition": 0.26},
        12,
        "repetition 0.26, more than 0.2 above the 0.05",
    ),
    (
        "mode_collapse",
        {"distinct_2": 0.201},
        {"distinct_2": 0.19},
        12,
        "0.19 distinct token pairs, below 0.5 of the 0.4",
    ),
    (
        "mode_collapse",
        {"entropy": 0.101},
        {"entropy": 0.099},
        12,
        "entropy 0.099 nats, below 0.1 of the 1 at the start",
    ),
    ("kl_explosion", {"kl": -10.0}, {"kl": -10.1}, 10, "KL -10.1 nats, below -10"),
    ("kl_explosion", {"ratio_max": 10.0}, {"ratio_max": 10.1}, 12, "changed 10.1-fold, more than 10, for 3 rollouts"),
    ("clipped", {"clip_fraction": 0.3}, {"clip_fraction": 0.304}, 12, "30.4% of the tokens clipped, more than 30%"),
    ("missing_eos", {"missing_eos": 0.2}, {"missing_eos": 0.201}, 12, "20.1% of the answers cut off, more than 20.0%"),
    ("flat_reward", {"score": 0.0, "score_std": 1e-8}, {"score": 0.0, "score_std": 9e-9}, 12, "every answer scored 0"),
]


@pytest.mark.parametrize(("name", "within", "beyond", "rollout", "words"), LIMITS)
def test_an_alarm_is_raised_once_beyond_its_limit(
    name: str, within: dict[str, Any], beyond: dict[str, Any], rollout: int, words: str
) -> None:
    assert raised(changed(steady(), FROM_10, **within)) == []
    [alarm] = play(changed(steady(), FROM_10, **beyond))
    assert (alarm.name, alarm.rollout, alarm.remedy) == (name, rollout, REMEDIES[name])
    assert words in alarm.figure


@pytest.mark.parametrize(("name", "beyond"), [(name, beyond) for name, _, beyond, at, _ in LIMITS if at == 12])
def test_two_rollouts_beyond_a_limit_are_noise(name: str, beyond: dict[str, Any]) -> None:
    assert raised(changed(steady(), {7, 8, 10, 11, 13, 14}, **beyond)) == []
    assert raised(changed(steady(), {7, 8, 10, 11, 12, 14}, **beyond)) == [(name, 12)]


@pytest.mark.parametrize("target", [TARGET, None])
def test_a_healthy_run_raises_nothing(target: float | None) -> None:
    assert raised(healthy(), target) == []
    assert raised(healthy(), target, warmup=3) == []
    bare = {name: None for name, value in GOOD.items() if name not in ("length", "missing_eos") and value is not None}
    assert raised(steady(**bare), target) == [], "a trainer that has not these figures"


def test_a_policy_with_one_answer_to_every_prompt_has_collapsed() -> None:
    tokens = [[7, prompt, 8, 9, prompt + 1, 2] for prompt in range(20, 84)]
    varied, same = rollouts.distinct_2(tokens), rollouts.distinct_2([tokens[0]] * 64)
    history = steady(distinct_2=varied, entropy=0.3)
    assert raised(changed(history, FROM_10, entropy=0.1)) == [], "certain of its answers, which differ"
    assert raised(changed(history, FROM_10, distinct_2=same)) == [("mode_collapse", 12)]


def test_kl_explosion_goes_by_one_rollout_and_by_the_target_if_there_is_one() -> None:
    far = steady(rise=0.0)
    assert raised(changed(far, {9}, kl=12.0)) == []
    assert raised(changed(far, {9}, kl=12.1)) == [("kl_explosion", 9)]
    assert raised(changed(far, {1}, kl=12.1)) == [("kl_explosion", 1)], "no start is needed"
    assert raised(changed(far, {9}, kl=40.0), target=None) == []
    assert raised(changed(far, {9}, kl=40.1), target=None) == [("kl_explosion", 9)]
    assert raised(changed(far, {9}, kl=41.0), target=20.0) == []
    [alarm] = play(changed(far, {9}, kl=12.1))
    assert alarm.figure == "KL 12.1 nats, more than 4 times the target 3"


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_no_number_has_exploded(kl: float) -> None:
    [alarm] = play(changed(steady(), {4}, kl=kl))
    assert (alarm.name, alarm.rollout, alarm.figure) == ("kl_explosion", 4, f"KL is {kl}")


def test_reward_hacking_needs_a_score_that_rose() -> None:
    flat = changed(steady(rise=0.0), FROM_10, kl=7.0, length=40.0, repetition=0.5)
    assert raised(flat) == []
    assert raised(changed(flat, FROM_10, score=0.5)) == [("reward_hacking", 12)], "still rising: 8 standard errors"
    fell = steady(rise=-0.5, std=0.01, kl=7.0)
    assert raised(fell) == []
    rested = changed(steady(30, rise=0.0), range(4, 10), score=0.6)
    rested = changed(rested, range(10, 31), score=0.51)
    assert raised(changed(rested, range(20, 31), kl=7.0)) == [("reward_hacking", 22)], "risen by 1.02 deviations"
    rested = changed(rested, range(10, 31), score=0.49)
    assert raised(changed(rested, range(20, 31), kl=7.0)) == [], "by 0.98, and no longer rising"


def test_a_score_is_still_rising_beyond_the_noise_of_its_means() -> None:
    """Means of 3 rollouts of 64 answers with a deviation of 0.5 differ by 0.051 or so by chance."""
    history = changed(steady(rise=0.0), FROM_10, kl=7.0)
    assert raised(changed(history, FROM_10, score=0.10)) == []
    assert raised(changed(history, FROM_10, score=0.11)) == [("reward_hacking", 12)]


def test_every_sign_of_reward_hacking_is_told() -> None:
    history = changed(steady(rise=0.2), FROM_10, kl=14.2 / 2, length=44.0, repetition=0.5)
    [alarm] = play(history)
    assert alarm.figure == (
        "KL 7.1 nats, more than 2 times the target 3, and 44 tokens per answer, more than 1.5 times the 20 at the "
        "start, and repetition 0.50, more than 0.2 above the 0.05 at the start, for 3 rollouts while the score rose "
        "from 0.2 to 2"
    )


def test_without_a_target_the_kl_is_no_sign_of_reward_hacking() -> None:
    history = changed(steady(), FROM_10, kl=30.0)
    assert raised(history, target=None) == []
    assert raised(changed(history, FROM_10, length=44.0), target=None) == [("reward_hacking", 12)]


def test_what_is_held_against_the_start_is_not_judged_within_it() -> None:
    """The third rollout is far beyond the mean of the first three, but no more than a part of the start."""
    beyond = {"kl": 7.0, "length": 60.0, "repetition": 0.9, "distinct_2": 0.1, "entropy": 0.01, "missing_eos": 0.5}
    for sign, at in {
        "kl": "reward_hacking",
        "length": "reward_hacking",
        "repetition": "reward_hacking",
        "distinct_2": "mode_collapse",
        "entropy": "mode_collapse",
        "missing_eos": "missing_eos",
    }.items():
        history = steady(rise=0.5, std=0.2, length=1.0, repetition=0.0, distinct_2=0.9, missing_eos=0.0)
        later = changed(history, range(3, 100), **{sign: beyond[sign]})
        if sign == "entropy":
            later = changed(later, {1, 2}, entropy=9.0)
        assert raised(later) == [(at, 6)], sign


def test_a_lost_score_is_no_rise() -> None:
    far = {"kl": 7.0, "std": 0.5, "rise": 0.0}
    fine = changed(steady(12, **far), range(1, 13), score=1.0)
    assert raised(changed(fine, {8}, score=math.nan)) == [("not_finite", 8)]
    low = changed(steady(12, **far), range(1, 13), score=-1.0)
    assert raised(changed(low, {8}, score=math.nan)) == [("not_finite", 8)]
    assert raised([replace(one, episodes=0) for one in fine]) == [], "rollouts without a scored answer"


def test_the_start_is_the_mean_of_the_first_three() -> None:
    history = steady(rise=0.3)
    history[1].entropy, history[2].length, history[0].distinct_2 = None, math.nan, 0.7
    for one in history[:3]:
        one.repetition = None
    assert start(history[:2]) == {}
    found = start(history)
    assert found == start(history[:3])
    assert found == pytest.approx(
        {"score": 0.3, "score_std": 0.5, "length": 20, "entropy": 1, "distinct_2": 0.5, "missing_eos": 0.02}
    )


@pytest.mark.parametrize("name", ["score", "score_std", "length", "repetition", "distinct_2", "entropy", "missing_eos"])
def test_without_a_figure_at_the_start_nothing_is_held_against_it(name: str) -> None:
    history = changed(steady(), FROM_10, length=40.0, repetition=0.9, distinct_2=0.01, entropy=0.01, missing_eos=0.9)
    alone = changed(history, {1, 2, 3}, **{name: math.nan})
    if name in ("score", "score_std"):
        flat = changed(alone, range(4, 100), score=1.0, score_std=0.5)
        assert {alarm for alarm, _ in raised(flat)} == {"mode_collapse", "missing_eos"} | (
            {"not_finite"} if name == "score" else set()
        )
        return
    others = {"length": 20.0, "repetition": 0.05, "distinct_2": 0.4, "entropy": 1.0, "missing_eos": 0.02}
    del others[name]
    assert raised(changed(alone, FROM_10, **others)) == []
    assert raised(changed(history, FROM_10, **others)) != []


def test_answers_that_never_end_are_told_with_the_first_rollout() -> None:
    """With its interval, by Wilson: 61 of 64 are 0.871 to 0.984."""
    [alarm] = play(steady(missing_eos=61 / 64))
    assert (alarm.name, alarm.rollout, alarm.remedy) == ("no_end", 1, REMEDIES["no_end"])
    assert alarm.figure == (
        "95.3% of the first 64 answers cut off at the limit (95 % interval 87.1% to 98.4%), 80% or more"
    )
    assert raised(steady(missing_eos=0.79)) == []
    assert raised(changed(steady(3, missing_eos=1.0), {1}, missing_eos=0.0)) == [], "two of three rollouts are not all"


def test_a_few_answers_are_not_enough_to_say_that_none_ends() -> None:
    few = [replace(one, episodes=2) for one in steady(missing_eos=1.0)]
    assert raised(few) == [("no_end", 2)], "4 of 4 are surely more than half, 2 of 2 are not"
    assert raised([replace(one, episodes=1) for one in steady(missing_eos=1.0)]) == []
    assert raised(changed(few, range(1, 4), missing_eos=math.nan)) == []


def test_answers_cut_off_from_the_beginning_are_no_rise() -> None:
    assert raised(changed(steady(missing_eos=0.4), FROM_10, missing_eos=0.499)) == []
    assert raised(changed(steady(missing_eos=0.4), FROM_10, missing_eos=0.51)) == [("missing_eos", 12)]


def test_a_critic_is_judged_after_ten_rollouts_of_its_policy() -> None:
    assert raised(steady(explained_variance=-0.01)) == [("dead_critic", 10)]
    assert raised(steady(9, explained_variance=-0.01)) == []
    assert raised(steady(20, explained_variance=-0.01), warmup=4) == [("dead_critic", 14)]
    assert raised(steady(explained_variance=0.0)) == []


def test_a_critic_is_judged_by_its_last_five_rollouts() -> None:
    bad_start = changed(steady(explained_variance=0.1), range(1, 6), explained_variance=-9.0)
    assert raised(bad_start) == []
    one_bad = changed(steady(explained_variance=0.2), {12}, explained_variance=-0.79)
    assert raised(one_bad) == [], "together they have 0.002"
    [alarm] = play(changed(one_bad, {12}, explained_variance=-0.85))
    assert (alarm.name, alarm.rollout) == ("dead_critic", 12)
    assert alarm.figure.startswith("explained variance -0.01 over 5 rollouts, below 0")


def test_a_rollout_counts_in_a_critics_favour_or_against_it_by_what_there_was_to_explain() -> None:
    good = steady(explained_variance=0.2, returns_std=1.0)
    assert raised(changed(good, {11, 12}, explained_variance=-9.0, returns_std=0.1)) == []
    bad = changed(good, {11, 12}, explained_variance=-0.5, returns_std=2.0)
    assert raised(bad) == [("dead_critic", 11)]
    assert rollouts.explained_variance(bad[9:12]) == pytest.approx((0.2 - 4 * 0.5 * 2) / 9)


def test_a_critic_that_is_off_by_next_to_nothing_is_not_dead() -> None:
    """As the score comes to its maximum, nothing is left to explain: rlhf_full ends with returns that vary by 0.15."""
    spread = {number: 2.0 if number < 8 else 0.2 for number in range(1, 17)}
    history = [replace(one, returns_std=spread[one.number]) for one in steady(explained_variance=0.3)]
    assert raised(changed(history, FROM_10, explained_variance=-1.1)) == []
    assert raised(changed(history, FROM_10, explained_variance=-12.0)) == [("dead_critic", 13)], "off by 0.42, of 4"


def test_rollouts_without_an_explained_variance_are_skipped() -> None:
    history = changed(steady(explained_variance=None), {8, 9, 10}, explained_variance=-0.5)
    assert raised(history) == [("dead_critic", 10)]
    history = changed(steady(explained_variance=None), {9, 10}, explained_variance=-0.5)
    assert raised(history) == [], "two of five tell too little"


def test_a_constant_score_is_flat_whatever_float32_makes_of_it() -> None:
    spread = 3e-8  # of answers that all scored 0.1, as found in float32
    assert raised(changed(steady(), FROM_10, score=0.1, score_std=spread)) == [("flat_reward", 12)]
    assert raised(changed(steady(), FROM_10, score=-0.1, score_std=spread)) == [("flat_reward", 12)]
    assert raised(changed(steady(), FROM_10, score=0.1, score_std=2e-7)) == []
    assert raised(changed(steady(), {1, 2, 3}, score=0.0, score_std=0.0)) == [("flat_reward", 3)]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"score": math.nan}, "the score is nan"),
        ({"policy_loss": math.inf}, "the policy loss is inf"),
        ({"value_loss": -math.inf}, "the value loss is -inf"),
        ({"policy_loss": math.nan, "value_loss": math.nan}, "the policy loss is nan and the value loss is nan"),
    ],
)
def test_a_number_that_is_none_is_told_at_once(figures: dict[str, Any], words: str) -> None:
    [alarm] = play(changed(steady(), {5, 6}, **figures))
    assert (alarm.name, alarm.rollout, alarm.figure) == ("not_finite", 5, words)


def test_an_alarm_that_went_away_and_comes_back_stands_already() -> None:
    history = changed(steady(30), {*range(5, 9), *range(20, 25)}, clip_fraction=0.5)
    assert raised(history) == [("clipped", 7)]


def test_one_alarm_does_not_hide_another() -> None:
    history = changed(steady(20), FROM_10, clip_fraction=0.5, kl=13.0)
    assert raised(changed(history, range(14, 21), distinct_2=0.01)) == [
        ("kl_explosion", 10),
        ("reward_hacking", 12),
        ("clipped", 12),
        ("mode_collapse", 16),
    ]


@pytest.mark.parametrize("stop", range(1, 20, 3))
def test_a_resumed_run_raises_the_same(stop: int, tmp_path: Path) -> None:
    def made() -> list[Rollout]:
        history = changed(steady(20), range(5, 21), kl=13.0, ratio_max=math.inf, explained_variance=-1.0)
        return changed(history, {6, 9}, score=math.nan, value_loss=math.nan)

    through = made()
    assert len(raised(through)) == 4

    path, health = tmp_path / "rollouts.jsonl", Health(TARGET, 0)
    for one in made()[:stop]:
        one.alarms = health.judge(rollouts.read(path), one)
        rollouts.append(path, one)
    resumed, again = rollouts.read(path), Health(TARGET, 0)
    for one in made()[stop:]:
        one.alarms = again.judge(resumed, one)
        resumed.append(one)
    assert [one.alarms for one in resumed] == [one.alarms for one in through]


def test_judging_changes_nothing() -> None:
    history = changed(steady(), FROM_10, kl=13.0)
    before = [json.dumps(asdict(one)) for one in history]
    assert (
        Health(TARGET, 0).judge(history[:-1], history[-1]) == Health(TARGET, 0).judge(history[:-1], history[-1]) != []
    )
    assert [json.dumps(asdict(one)) for one in history] == before


def test_remedies_name_keys_that_there_are() -> None:
    trainer = set(training_arguments.known("RLOOConfig"))
    for remedy in REMEDIES.values():
        named = re.findall(r"`([^`]+)`", remedy)
        assert named
        for key in named:
            owner, _, rest = key.rpartition(".")
            keys = {"": set(PpoKeys.model_fields), "kl": set(KlKeys.model_fields), "training": trainer}[owner]
            assert rest in keys, key


def test_judging_needs_no_torch() -> None:
    code = "import sys, align.rl.health; print(sorted({'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
