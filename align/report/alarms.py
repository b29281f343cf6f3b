"""The names of alarms in words."""

from typing import Final

WORDS: Final = {
    "not_finite": "a figure that is no number",
    "kl_explosion": "KL explosion",
    "clipped": "too many tokens clipped",
    "missing_eos": "answers cut off",
    "no_end": "answers that never end",
}


def words(name: str) -> str:
    """`reward hacking` for `reward_hacking`."""
    return WORDS.get(name, name.replace("_", " "))
