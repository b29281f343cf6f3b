"""What quantising a base costs it before anything is trained: perplexity of running text against its own precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from align.forgetting.bench import Bench, likelihoods
from align.forgetting.gate import finite
from align.forgetting.probes import Probe, Texts
from align.forgetting.records import QuantizationCost
from align.forgetting.statistics import exp, paired_perplexity

WORSE = 1.1  # perplexity quantised / in its own precision, from where on it is worth a warning; ours
ROOM = 1.5  # free memory / size of the weights that a second loading of the base is dared with

Likelihoods = list[tuple[float, int]]


def texts(probes: Sequence[Probe]) -> list[str]:
    """The running text among the probes, of both halves."""
    found = [probe for probe in probes if isinstance(probe, Texts)]
    return [text for probe in found for half in probe.texts.values() for text in half]


def has_room(folder: Path) -> bool:
    """Whether the base fits into memory beside nothing else, in the precision of its files."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        from align.policy.memory import free_memory

        free = free_memory()
    return free > ROOM * size


def measured(bench: Bench, asked: Sequence[str]) -> Likelihoods:
    """Negative log-likelihood and tokens of each text that has any to predict."""
    bench.model.eval()
    with torch.inference_mode():
        return [found for found in likelihoods(bench, asked) if found[1] > 0]


def compare(own: Likelihoods, quantised: Likelihoods) -> QuantizationCost:
    """The perplexity in the base's own precision, quantised, and their ratio with its 95 % interval."""
    change = paired_perplexity(own, quantised)
    before, after = (exp(sum(nll for nll, _ in each) / sum(n for _, n in each)) for each in (own, quantised))
    return QuantizationCost(
        before=finite(before),
        after=finite(after),
        ratio=finite(change.ratio),
        ci95=(finite(change.low), finite(change.high)),
        n=change.n,
    )


def warning(found: QuantizationCost) -> str | None:
    """What is to be said of a quantised base that is surely and clearly worse; None of one that is not."""
    ratio, (low, high) = found.ratio, found.ci95 or (None, None)
    if ratio is None or low is None or high is None or ratio <= WORSE or low <= 1:
        return None
    figures = f"{found.before:.2f} to {found.after:.2f}, x{ratio:.2f}"
    return (
        f"quantising the base costs before anything is trained: perplexity of running text {figures} (95 % interval "
        f"x{low:.2f} to x{high:.2f}, {found.n} texts); every change of this run is counted from the quantised base; "
        "`method: lora` leaves the base unquantised, if it fits in memory"
    )
