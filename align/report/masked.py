"""How many tokens of the answers a stage left untrained, in words."""

from collections.abc import Mapping

from pydantic import JsonValue


def words(data: Mapping[str, JsonValue]) -> str:
    """Of an outcome's `data`, as `21.7 % of 5,678 answer tokens, those above a perplexity of 2.5`; else empty."""
    found = data.get("masked")
    if not isinstance(found, dict):
        return ""
    limit, tokens, masked = (found[name] for name in ("above_perplexity", "answer_tokens", "masked_tokens"))
    assert isinstance(limit, int | float) and isinstance(tokens, int) and isinstance(masked, int)
    which = f"those above a perplexity of {limit:g}"
    if found["at_random"]:
        which = f"drawn at random, as many as are above a perplexity of {limit:g}"
    return f"{masked / max(tokens, 1):.1%} of {tokens:,} answer tokens, {which}"
