"""What a launch proved of itself, in words."""

from collections.abc import Iterator

from align.run_folder.proofs import Name, Proofs

LABELS: dict[Name, str] = {
    "first_loss": "Loss before the first step",
    "start_kl": "Policy and reference at the start",
    "saved": "Saved weights",
    "ranks_agree": "Weights of the processes",
}


def facts(proofs: Proofs) -> Iterator[tuple[str, str]]:
    """Labels and what stands beside them; none of a stage of an older align."""
    for name, label in LABELS.items():
        text = _TEXTS[name](proofs)
        if not text and name in proofs.absent:
            text = f"not proved: {proofs.absent[name]}"
        if text:
            yield label, text


def _first_loss(proofs: Proofs) -> str:
    one = proofs.first_loss
    if one is None:
        return ""
    if one.single is None:
        return f"{one.value:.6g} on {one.rows} rows, kept for later launches of the stage"
    other = "an earlier launch" if one.kept else "one process alone"
    return f"{one.value:.6g} on {one.rows} rows, and {one.single:.6g} in {other} (at most {one.limit:g} of it apart)"


def _start_kl(proofs: Proofs) -> str:
    one = proofs.start_kl
    if one is None:
        return ""
    limit = (
        "no limit: with this method it need not be 0"
        if one.limit is None
        else f"at most {one.limit:g} in {one.precision}"
    )
    return f"{one.value:.3g} nats per token apart in the first {one.of} ({limit})"


def _saved(proofs: Proofs) -> str:
    one = proofs.saved
    if one is None:
        return ""
    return f"{one.trained:,} trained tensors, read again: their names, shapes and bytes are in the files"


def _ranks_agree(proofs: Proofs) -> str:
    one = proofs.ranks_agree
    return f"the same {one.tensors:,} tensors in all {one.processes}" if one else ""


_TEXTS = {"first_loss": _first_loss, "start_kl": _start_kl, "saved": _saved, "ranks_agree": _ranks_agree}
