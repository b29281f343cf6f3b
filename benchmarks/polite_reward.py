"""A reward that can be earned without a reward model: a right form, and politeness."""

from align.lab import helpdesk


def polite(completions: list[list[dict[str, str]]]) -> list[float]:
    """1 for a polite reply of the help desk's grammar, 0.3 for a rude one, 0 for any other text."""
    found = [helpdesk.parse_reply(said[-1]["content"].strip()) for said in completions]
    return [0.0 if reply is None else 1.0 if reply.style == "polite" else 0.3 for reply in found]
