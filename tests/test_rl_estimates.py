"""The figures that PPO learns from against exact expectations, brute force in float64, and hand-computed cases."""

from __future__ import annotations

import math
import random
import statistics
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from align.rl.controller import Controller, auto_horizon
from align.rl.estimates import advantages, explained_variance, kl, shaped, whiten
from align.rl.losses import policy_loss, value_loss

LENGTHS = [5, 1, 0, 8, 3]  # of the answers; one is empty, one fills the row
GARBAGE = [1e6, -1e6, math.inf, math.nan]


def alone(x: torch.Tensor) -> torch.Tensor:
    """The sum over one process."""
    return x


def mask_of(lengths: list[int] = LENGTHS, width: int = 8) -> torch.Tensor:
    return torch.tensor([[float(place < length) for place in range(width)] for length in lengths])


def noise(seed: int, mean: float = 0.0, width: int = 8) -> torch.Tensor:
    return torch.randn(len(LENGTHS), width, generator=torch.Generator().manual_seed(seed)) + mean


def soiled(x: torch.Tensor, mask: torch.Tensor, garbage: float) -> torch.Tensor:
    return torch.where(mask > 0, x, garbage)


def real(x: torch.Tensor, mask: torch.Tensor) -> list[float]:
    return [float(value) for value in x[mask > 0].double()]


def in_two_processes(task: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], Any]) -> list[Any]:
    """Run task(rank, reduce) in two threads whose `reduce` waits for both and sums, as an all-reduce does."""
    barrier = threading.Barrier(2, timeout=30)
    given: dict[int, torch.Tensor] = {}
    found: list[Any] = [None, None]

    def run(rank: int) -> None:
        def reduce(x: torch.Tensor) -> torch.Tensor:
            given[rank] = x.clone()
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        found[rank] = task(rank, reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# KL


def exact(p: list[float], q: list[float], estimator: str) -> tuple[float, float]:
    """KL(p, q) in float64, and the exact expectation under p of the estimator."""
    truth = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    estimates = kl(torch.tensor([p]).log(), torch.tensor([q]).log(), estimator)
    assert estimates.shape == (1, len(p))
    return truth, math.fsum(a * float(k) for a, k in zip(p, estimates[0], strict=True))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize(
    ("p", "q"),
    [([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]), ([0.9, 0.05, 0.05], [0.1, 0.1, 0.8]), ([0.25] * 4, [0.26, 0.24, 0.25, 0.25])],
)
def test_k1_and_k3_are_unbiased(estimator: str, p: list[float], q: list[float]) -> None:
    truth, mean = exact(p, q, estimator)
    assert mean == pytest.approx(truth, rel=2e-4, abs=2e-7)


def test_k2_is_close_where_the_two_are_near_and_biased_where_not() -> None:
    truth, mean = exact([0.5, 0.3, 0.2], [0.48, 0.31, 0.21], "k2")
    assert mean == pytest.approx(truth, rel=0.03)
    truth, mean = exact([0.9, 0.05, 0.05], [0.1, 0.1, 0.8], "k2")
    assert abs(mean / truth - 1) > 0.3


def test_estimators_by_hand() -> None:
    ours, theirs = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.5, -1.0]])  # d = 0.5, -2
    assert kl(ours, theirs, "k1").tolist() == [[0.5, -2.0]]
    assert kl(ours, theirs, "k2").tolist() == [[0.125, 2.0]]
    assert kl(ours, theirs, "k3")[0].tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.exp(2) - 3], rel=1e-6)


@pytest.mark.parametrize(
    # Schulman's two cases, KL(q, p) with q = N(0, 1) and p = N(mean, 1): bias / KL and deviation / KL of each estimator
    ("mean", "figures"),
    [
        (0.1, {"k1": (0, 20), "k2": (0.002, 1.42), "k3": (0, 1.42)}),
        (1.0, {"k1": (0, 2), "k2": (0.25, 1.73), "k3": (0, 1.7)}),
    ],
)
def test_gaussians_have_the_published_bias_and_deviation(mean: float, figures: dict[str, tuple[float, float]]) -> None:
    x = torch.randn(1, 2_000_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    truth = mean**2 / 2
    for estimator, (bias, deviation) in figures.items():
        found = kl(-(x**2) / 2, -((x - mean) ** 2) / 2, estimator) / truth
        error = 4 * deviation / math.sqrt(x.numel())
        assert float(found.mean()) - 1 == pytest.approx(bias, abs=error + 0.001)
        assert float(found.std()) == pytest.approx(deviation, rel=0.03)


def test_k3_keeps_small_differences() -> None:
    difference = 2.0**-13  # exact in float32
    estimate = float(kl(torch.tensor([[difference]]), torch.tensor([[0.0]]), "k3"))
    assert estimate == pytest.approx(math.expm1(-difference) + difference, rel=2e-3)
    naive = float(torch.tensor(-difference).exp() - 1 + torch.tensor(difference))
    assert abs(naive / estimate - 1) > 0.5


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="no estimator 'k4'"):
        kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


# rewards


def test_rewards_by_hand() -> None:
    found = shaped(
        torch.tensor([10.0, 20.0, 30.0]),
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
        0.5,
    )
    assert found.tolist() == [[-0.5, 9.0, 0.0], [-2.0, -2.5, 17.0], [0.0, 0.0, 0.0]]


def test_rewards_of_an_answer_add_up_to_the_penalized_score() -> None:
    mask, penalty, scores = mask_of(), noise(0), noise(1)[:, 0]
    found = shaped(scores, penalty, mask, 0.3).double().sum(-1)
    for row, length in enumerate(LENGTHS):
        expected = float(scores[row]) - 0.3 * math.fsum(penalty[row, :length].tolist()) if length else 0.0
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


# advantages


def brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 as it stands, over one answer without padding."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    return [
        math.fsum((gamma * lam) ** (s - t) * (rewards[s] + gamma * after[s] - values[s]) for s in range(t, n))
        for t in range(n)
    ]


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("garbage", [0.0, *GARBAGE])
def test_advantages_are_the_double_sum(gamma: float, lam: float, garbage: float) -> None:
    mask, rewards, values = mask_of(), noise(2), noise(3)
    found, returns = advantages(soiled(rewards, mask, garbage), soiled(values, mask, garbage), mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        expected = brute_force(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        sums = [a + float(v) for a, v in zip(expected, values[row, :length], strict=True)]
        assert returns[row, :length].tolist() == pytest.approx(sums, abs=1e-5)
        assert not found[row, length:].any() and not returns[row, length:].any()


def test_lam_1_returns_the_discounted_rewards_whatever_the_values() -> None:
    _, returns = advantages(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[7.0, -3.0, 5.0]]), torch.ones(1, 3), 0.5, 1)
    assert returns[0].tolist() == pytest.approx([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0], abs=1e-5)


# whitening


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_whitening_has_mean_0_and_variance_1(mean: float) -> None:
    mask, x = mask_of(), noise(4, mean)
    white = whiten(x, mask, alone)
    assert white.dtype == torch.float32
    assert statistics.fmean(real(white, mask)) == pytest.approx(0, abs=1e-6)
    assert statistics.variance(real(white, mask)) == pytest.approx(1, abs=1e-5)
    inner, outer = statistics.fmean(real(x, mask)), statistics.stdev(real(x, mask))
    assert real(white, mask) == pytest.approx([(value - inner) / outer for value in real(x, mask)], abs=1e-5)
    assert not white[mask == 0].any()


def test_whitening_can_keep_the_mean() -> None:
    mask, x = mask_of(), noise(4, 3.0)
    white = whiten(x, mask, alone, shift_mean=False)
    assert statistics.fmean(real(white, mask)) == pytest.approx(statistics.fmean(real(x, mask)), abs=1e-5)
    assert statistics.variance(real(white, mask)) == pytest.approx(1, abs=1e-5)
    assert not white[mask == 0].any()


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("cut", [1, 2, 3, 5])  # at 5 the second process has no answer
def test_whitening_in_two_processes_is_that_of_one(cut: int, shift_mean: bool) -> None:
    mask, x = mask_of(), noise(6, 2.0)
    parts = [(x[:cut], mask[:cut]), (x[cut:, :], mask[cut:, :])]
    found = in_two_processes(lambda rank, reduce: whiten(*parts[rank], reduce, shift_mean))
    torch.testing.assert_close(torch.cat(found), whiten(x, mask, alone, shift_mean), rtol=1e-6, atol=1e-6)
    assert (whiten(x[:cut], mask[:cut], alone, shift_mean) - found[0]).abs().max() > 1e-3 or cut == 5


def test_processes_may_pad_to_different_widths() -> None:
    left, right = (noise(7)[:2, :5], mask_of([5, 1], 5)), (noise(8)[2:], mask_of([0, 8, 3]))
    found = in_two_processes(lambda rank, reduce: whiten(*(left, right)[rank], reduce))
    values = real(found[0], left[1]) + real(found[1], right[1])
    assert (statistics.fmean(values), statistics.variance(values)) == pytest.approx((0, 1), abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4 / 3, 1e6 / 7])
def test_a_constant_does_not_explode(constant: float) -> None:
    mask = torch.ones(37, 27)
    x = torch.full((37, 27), constant)
    assert whiten(x, mask, alone).abs().max() < 1e-3
    torch.testing.assert_close(whiten(x, mask, alone, shift_mean=False), x)


def test_one_token_and_none() -> None:
    x = torch.tensor([[5.0, 7.0]])
    assert whiten(x, torch.tensor([[1.0, 0.0]]), alone).tolist() == [[0.0, 0.0]]
    assert whiten(x, torch.tensor([[1.0, 0.0]]), alone, shift_mean=False).tolist() == [[5.0, 0.0]]
    assert whiten(x, torch.zeros(1, 2), alone).tolist() == [[0.0, 0.0]]


# losses


def test_first_update_is_the_plain_policy_gradient() -> None:
    mask, gain = mask_of(), noise(9)
    logits = torch.randn(len(LENGTHS), 8, 6, generator=torch.Generator().manual_seed(10), requires_grad=True)
    chosen = torch.randint(6, (len(LENGTHS), 8, 1), generator=torch.Generator().manual_seed(11))
    log_probs = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    loss, clipped = policy_loss(log_probs, log_probs.detach(), gain, mask, 0.2, 0.2)
    assert torch.equal(loss.detach(), -gain * mask)
    assert not clipped.any()
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad(-(log_probs * gain * mask).sum(), logits)
    torch.testing.assert_close(gradient, plain)
    assert plain.abs().max() > 0.1


@pytest.mark.parametrize(
    ("ratio", "gain", "loss", "clipped", "slope"),  # low 0.2, high 0.3; slope is d loss / d log_prob
    [
        (1.5, 2.0, -2.6, True, 0.0),  # above, and it was good: no more of it
        (1.5, -2.0, 3.0, False, 3.0),  # above, but it was bad: all the way back
        (0.5, 2.0, -1.0, False, -1.0),  # below, but it was good
        (0.5, -2.0, 1.6, True, 0.0),  # below, and it was bad
        (1.25, 2.0, -2.5, False, -2.5),  # within high, beyond low
        (0.75, -2.0, 1.6, True, 0.0),  # beyond low, within high
        (0.85, -2.0, 1.7, False, 1.7),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_clipping_by_hand(ratio: float, gain: float, loss: float, clipped: bool, slope: float) -> None:
    log_probs = torch.tensor([[math.log(ratio) - 1]], requires_grad=True)
    found, at_limit = policy_loss(log_probs, torch.tensor([[-1.0]]), torch.tensor([[gain]]), torch.ones(1, 1), 0.2, 0.3)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
    assert (bool(at_limit), at_limit.dtype) == (clipped, torch.bool)
    found.sum().backward()
    assert float(log_probs.grad) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "clip", "loss", "slope"),  # the old value is 1
    [
        (2.0, None, 0.5, -1.0),  # returns of 3: error 1
        (2.0, 0.25, 0.5 * 1.75**2, 0.0),  # ran ahead of the clip towards the return
        (1.125, 0.25, 0.5 * 1.875**2, -1.875),  # within the clip
        (0.0, 0.25, 4.5, -3.0),  # ran away from the return: error 3 is more than 2.25
        (6.0, 0.25, 4.5, 3.0),  # overshot: error 3 is more than 1.75
    ],
)
def test_value_loss_by_hand(value: float, clip: float | None, loss: float, slope: float) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    found = value_loss(values, torch.tensor([[1.0]]), torch.tensor([[3.0]]), clip)
    assert float(found.detach()) == loss
    found.sum().backward()
    assert float(values.grad) == slope


# explained variance


def test_explained_variance_is_that_of_the_formula() -> None:
    mask, returns = mask_of(), noise(12, 5.0)
    values = returns + 0.5 * noise(13, 2.0)
    errors = [r - v for r, v in zip(real(returns, mask), real(values, mask), strict=True)]
    expected = 1 - statistics.pvariance(errors) / statistics.pvariance(real(returns, mask))
    assert 0 < expected < 1
    assert explained_variance(values, returns, mask, alone) == pytest.approx(expected, abs=1e-5)


def test_explained_variance_of_good_useless_and_bad_critics() -> None:
    mask, returns = mask_of(), noise(14, 1.0)
    assert explained_variance(returns + 3, returns, mask, alone) == pytest.approx(1, abs=1e-5)
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask, alone) == pytest.approx(0, abs=1e-5)
    assert explained_variance(-returns, returns, mask, alone) == pytest.approx(-3, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4 / 3])
def test_returns_that_do_not_vary_have_no_explained_variance(constant: float) -> None:
    mask = mask_of()
    returns = torch.full_like(mask, constant) * (1 + 1e-7 * noise(15))  # rounding does not count
    assert explained_variance(noise(16), returns, mask, alone) is None
    assert explained_variance(noise(16), returns, torch.zeros_like(mask), alone) is None
    assert explained_variance(noise(16), returns + 0.01 * noise(17), mask, alone) is not None


@pytest.mark.parametrize("cut", [1, 3])
def test_explained_variance_in_two_processes_is_that_of_one(cut: int) -> None:
    mask, values = mask_of(), noise(18)
    returns = values + noise(19) + torch.arange(len(LENGTHS)).unsqueeze(1)
    parts = [(values[:cut], returns[:cut], mask[:cut]), (values[cut:], returns[cut:], mask[cut:])]
    found = in_two_processes(lambda rank, reduce: explained_variance(*parts[rank], reduce))
    expected = explained_variance(values, returns, mask, alone)
    assert found == [pytest.approx(expected, abs=1e-9)] * 2
    assert abs(explained_variance(*parts[1], alone) - expected) > 1e-3


# padding


@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_nothing(garbage: float) -> None:
    mask = mask_of()
    clean = [noise(seed) for seed in range(20, 24)]
    dirty = [soiled(x, mask, garbage) for x in clean]
    scores = clean[0][:, 0]

    def everything(one: torch.Tensor, two: torch.Tensor, three: torch.Tensor, four: torch.Tensor) -> list[torch.Tensor]:
        log_probs = one.clone().requires_grad_()
        loss, clipped = policy_loss(log_probs, two, three, mask, 0.2, 0.2)
        loss.sum().backward()
        estimates = [kl(one, two, name) for name in ("k1", "k2", "k3")]
        return [
            loss.detach(),
            clipped,
            log_probs.grad,
            *[shaped(scores, estimate, mask, 0.1) for estimate in estimates],
            *[torch.where(mask > 0, estimate, 0.0) for estimate in estimates],
            *advantages(one, two, mask, 0.9, 0.95),
            whiten(one, mask, alone),
            whiten(one, mask, alone, shift_mean=False),
            torch.where(mask > 0, value_loss(one, two, three, 0.2), 0.0),
            torch.tensor(explained_variance(three, four, mask, alone)),
        ]

    for before, after in zip(everything(*clean), everything(*dirty), strict=True):
        assert torch.equal(before, after)
        assert before.any()


def test_an_empty_answer_has_nothing_whatever_its_score() -> None:
    scores = torch.tensor([1.0, math.nan])
    found = shaped(scores, torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0.5)
    assert found.tolist() == [[0.5, 0.0], [0.0, 0.0]]


# the controller


def test_controller_by_hand() -> None:
    controller = Controller(coef=0.1, target=6.0, horizon=10000, adaptive=True)
    controller.update(6.6, 500)  # error 0.1 over 1/20 of the horizon
    assert controller.coef == pytest.approx(0.1 * 1.005, rel=1e-12)
    controller.update(60.0, 1000)  # error 9, cut to 0.2
    assert controller.coef == pytest.approx(0.1 * 1.005 * 1.02, rel=1e-12)
    controller.update(-3.0, 5000)  # error -1.5, cut to -0.2
    assert controller.coef == pytest.approx(0.1 * 1.005 * 1.02 * 0.9, rel=1e-12)
    controller.update(6.0, 5000)
    assert controller.coef == pytest.approx(0.1 * 1.005 * 1.02 * 0.9, rel=1e-12)


@pytest.mark.parametrize(
    ("measured", "moves"),
    [
        ([0.0, 1.0, 2.0, 3.0], [0.9, 1, 1, 1]),  # on its way up to the target
        ([9.0, 8.0, 7.0], [1.1, 1, 1]),  # on its way down
        ([3.0, 3.0, 2.0], [0.9, 0.9, 0.9]),  # at rest, and on its way away
        ([3.0, 20.0, 15.0], [0.9, 1.1, 1]),  # past it, and back
        ([20.0, 3.0], [1.1, 0.9]),  # through it
    ],
)
def test_a_coefficient_waits_while_the_kl_comes_by_itself(measured: list[float], moves: list[float]) -> None:
    controller, expected = Controller(coef=0.1, target=6.0, horizon=200, adaptive=True), 0.1
    for kl_now, factor in zip(measured, moves, strict=True):
        controller.update(kl_now, 100)
        expected *= factor
        assert controller.coef == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("measured", "factor"), [(100.0, 1.2), (0.0, 0.8), (6.6, 1.1), (math.inf, 1.2)])
def test_a_step_is_capped_at_the_horizon(measured: float, factor: float) -> None:
    controller = Controller(coef=0.1, target=6.0, horizon=100, adaptive=True)
    controller.update(measured, 10**6)
    assert controller.coef == pytest.approx(0.1 * factor, rel=1e-9)


def test_a_fixed_coefficient_stays() -> None:
    controller = Controller(coef=0.1, target=0.0, horizon=0.0, adaptive=False)
    controller.update(50.0, 1000)
    controller.update(math.nan, 1000)
    assert controller.coef == 0.1
    assert controller.reach(10**6, 1000) == (1.0, 1.0)


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 100.0), (6.0, 0.0), (-1.0, 100.0), (math.nan, 100.0)])
def test_an_adaptive_controller_needs_target_and_horizon(target: float, horizon: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Controller(0.1, target, horizon, adaptive=True)


def test_a_kl_that_is_no_number_is_an_error() -> None:
    controller = Controller(0.1, 6.0, 100, adaptive=True)
    with pytest.raises(ValueError, match="not a number"):
        controller.update(math.nan, 10)
    assert controller.coef == 0.1


@pytest.mark.parametrize(("episodes", "rollouts", "horizon"), [(640, 10, 10000), (640, 10, 20), (1000, 3, 700)])
def test_reach_is_what_updates_do(episodes: int, rollouts: int, horizon: float) -> None:
    ends = []
    for measured in (0.0, 1e9):
        controller = Controller(1.0, 6.0, horizon, adaptive=True)
        for number in range(rollouts):
            controller.update(measured, episodes * (number + 1) // rollouts - episodes * number // rollouts)
        ends.append(controller.coef)
    assert Controller(1.0, 6.0, horizon, adaptive=True).reach(episodes, rollouts) == pytest.approx(ends, rel=1e-6)
    assert ends[0] < 1 < ends[1]


def test_reach_of_the_published_setting_in_a_short_run() -> None:
    low, high = Controller(0.05, 6.0, 10000, adaptive=True).reach(640, 10)  # 640 episodes: hardly more than 1 %
    assert (low, high) == pytest.approx((0.98727, 1.01287), abs=1e-5)
    assert Controller(0.05, 6.0, 10000, adaptive=True).reach(0, 0) == (1.0, 1.0)


def test_a_controller_goes_on_from_its_state() -> None:
    random.seed(0)
    whole, first = (Controller(0.1, 6.0, 300, adaptive=True) for _ in range(2))
    measured = [random.uniform(0, 12) for _ in range(20)]
    for one in measured:
        whole.update(one, 32)
    for one in measured[:9]:
        first.update(one, 32)
    state = first.state()
    assert all(type(value) is float for value in state.values())
    second = Controller(0.1, 6.0, 300, adaptive=True)
    second.load(state)
    assert second.coef != 0.1
    for one in measured[9:]:
        second.update(one, 32)
    assert second.coef == whole.coef


@pytest.mark.parametrize("episodes", [8, 512])
@pytest.mark.parametrize("rollouts", [1, 10, 38, 39, 60, 1000])
def test_auto_horizon_reaches_tenfold_in_a_third_of_the_run(rollouts: int, episodes: int) -> None:
    horizon = auto_horizon(episodes, rollouts)
    controller = Controller(1.0, 6.0, horizon, adaptive=True)
    updates = max(1, rollouts // 3)
    for _ in range(updates):
        controller.update(1e9, episodes)
    if 1.2**updates < 10:  # impossible: as far as a capped step goes
        assert horizon == episodes
        assert controller.coef == pytest.approx(1.2**updates, rel=1e-9)
    else:
        assert horizon >= episodes
        assert controller.coef == pytest.approx(10, rel=1e-9)
    low, high = controller.reach(episodes * updates, updates)
    assert high == pytest.approx(controller.coef, rel=1e-9)
    assert low <= 1 / high * (1 + 1e-9)  # down it goes at least as far
