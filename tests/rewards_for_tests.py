"""Reward functions of a user's file, good and bad."""


def short(prompts, completions, **kwargs):
    """Fewer characters are better."""
    return [-len(said[-1]["content"] if isinstance(said, list) else said) / 10 for said in completions]


def varied(completion_ids):
    """More different tokens are better; takes what it needs alone."""
    return [float(len(set(ids))) for ids in completion_ids]


def level(prompts, completions, **kwargs):
    """The same for all."""
    return [1.0] * len(prompts)


def raises(prompts, completions, **kwargs):
    """Finds no key."""
    return [{}["missing"] for _ in prompts]


def none_for_some(prompts, completions, **kwargs):
    """Cannot score every other answer."""
    return [None if i % 2 else 1.0 for i in range(len(prompts))]


def too_few(prompts, completions, **kwargs):
    """Forgets one."""
    return [0.0] * (len(prompts) - 1)


def not_a_number(prompts, completions, **kwargs):
    """Divides nothing by nothing."""
    return [float("nan")] * len(prompts)
