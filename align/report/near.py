"""What kept the policy of a stage near where it started, in words."""

from collections.abc import Iterator
from typing import Final

from align.report import numbers
from align.run_folder.records import Fisher, Outcome

KINDS: Final = {
    "empirical": "the data's own answers (empirical)",
    "sampled": "tokens sampled from the policy",
}


def facts(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Labels and what stands beside them; none of a stage without a penalty."""
    weights = outcome.penalties
    if "ewc" in weights:
        yield "EWC", f"weight {weights['ewc']:g}" + (f"; {measured(outcome.fisher)}" if outcome.fisher else "")
    if "l2_sp" in weights:
        yield "L2-SP", f"weight {weights['l2_sp']:g}"
    if "kl" in weights:
        yield "KL to the incoming policy", f"weight {weights['kl']:g}, in nats per trained token"


def measured(fisher: Fisher) -> str:
    """What the Fisher information was measured on, and what the weight is in terms of EWC's lambda."""
    of = KINDS.get(fisher.kind, fisher.kind)
    return (
        f"Fisher information of {fisher.rows:,} rows ({fisher.tokens:,} tokens), from {of}, over {fisher.weights:,} "
        f"weights, in {numbers.seconds(fisher.seconds)}; lambda 1 of the paper would be a weight of {fisher.mean:.3g}"
    )
