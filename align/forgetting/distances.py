"""How far a policy is from the base, as it stands in a run folder: KL on the prompts of the task, and how far the
weights moved. Neither needs old data. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from align.forgetting.statistics import Verdict, paired_perplexity
from align.run_folder.records import Record

KL = "KL to the base"


class KlEstimate(Record):
    """KL(base || policy) in nats per answer token: the mean over the tokens of all answers.

    Attributes:
        ci95: over the prompts, since the tokens of one answer are not independent.
        n: prompts.
    """

    kl: float | None = None
    ci95: tuple[float | None, float | None] | None = None
    n: int = 0
    tokens: int = 0


class TaskKl(Record):
    """task_kl.json of a stage: how far its policy's next-token distributions are from the base's.

    Attributes:
        prompts: which ones, in words.
        own_answers: along answers that the base itself sampled; None where the rows have no prompt.
        data_answers: along the answers of the data; None where the rows have none.
        answer_tokens: of each answer, at most.
        undefined: why there is no figure.
        verdict, limit: against the recipe's `max_kl`; only in forgetting.json, and None without a limit.
    """

    prompts: str = ""
    own_answers: KlEstimate | None = None
    data_answers: KlEstimate | None = None
    answer_tokens: int | None = None
    undefined: str | None = None
    verdict: Verdict | None = None
    limit: float | None = None

    @property
    def judged(self) -> KlEstimate | None:
        """What a limit is held against: the base's own answers, and the data's where rows have no prompt."""
        return self.own_answers or self.data_answers

    @property
    def figure(self) -> str:
        """What is judged, with three digits."""
        found = self.judged
        return "n/a" if found is None or found.kl is None else f"{found.kl:.3g}"

    def against(self, limit: float | None) -> TaskKl:
        """With the verdict that the whole 95 % interval gives."""
        found = self.judged
        if limit is None or found is None or found.ci95 is None:
            return self.but(limit=limit)
        low, high = (math.inf if end is None else end for end in found.ci95)
        verdict: Verdict = "FORGOT" if low > limit else "OK" if high <= limit else "UNCLEAR"
        return self.but(limit=limit, verdict=verdict)

    def sentence(self) -> str:
        """The figures, and what they say against the limit."""
        found = self.judged
        if found is None or found.kl is None:
            return f"{KL} has no verdict: {self.undefined or 'it is not a finite number'}"
        low, high = (f"{math.inf if end is None else end:.3g}" for end in found.ci95 or (None, None))
        figures = f"{KL}: {found.kl:.3g} nats per token (95 % interval {low} to {high}, {self.prompts})"
        if self.verdict == "FORGOT":
            return f"{figures} is beyond the limit, {self.limit:.3g}"
        if self.verdict == "OK":
            return f"{figures} is within the limit, {self.limit:.3g}"
        return f"{figures} may or may not be beyond the limit, {self.limit:.3g}: the prompts are too few to decide"


def estimate(sums: Sequence[tuple[float, int]]) -> KlEstimate:
    """The mean over tokens with its 95 % interval, from the KL summed over each answer, and the answer's tokens.

    A ratio estimator over answers, as the log of a perplexity is over texts, with that one's jackknife interval.
    """
    total, tokens = math.fsum(kl for kl, _ in sums), sum(count for _, count in sums)
    if not sums or not math.isfinite(total):
        return KlEstimate(n=len(sums), tokens=tokens)
    change = paired_perplexity([(0.0, count) for _, count in sums], list(sums))
    low = max(0.0, math.log(change.low)) if change.low > 0 else 0.0
    high = math.log(change.high) if math.isfinite(change.high) else None
    return KlEstimate(kl=max(0.0, total / tokens), ci95=(low, high), n=len(sums), tokens=tokens)


class Moved(Record):
    """Weights that are counted together: a matrix, or all weights of a layer.

    Attributes:
        relative: `update` / `weight`; None where the base's weights are all 0.
        update, weight: Frobenius norms of W' - W and of W.
    """

    name: str
    relative: float | None = None
    update: float = 0.0
    weight: float = 0.0


class Drift(Record):
    """drift.json of a stage: how far the weights of its policy are from the base's, all stages before it included.

    Attributes:
        all: over the whole model.
        layers: transformer layers in their order, then what stands outside them.
        modules: those that changed, the furthest first; in forgetting.json only the first few.
        note: what else is in the figures.
        undefined: why there are none, or of which modules not.
    """

    all: Moved | None = None
    layers: tuple[Moved, ...] = ()
    modules: tuple[Moved, ...] = ()
    note: str = ""
    undefined: str | None = None


def moved(name: str, update: float, weight: float) -> Moved:
    """From the squared norms of the update and of the weights."""
    update, weight = math.sqrt(max(update, 0.0)), math.sqrt(weight)
    return Moved(name=name, relative=update / weight if weight else None, update=update, weight=weight)
