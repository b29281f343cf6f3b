"""A reward that can be hacked: every token of an answer is worth something."""


def long(completion_ids: list[list[int]]) -> list[float]:
    """A tenth of the tokens of each answer."""
    return [len(ids) / 10 for ids in completion_ids]
