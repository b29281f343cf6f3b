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


def solved(prompts, completions, solution, level=None, **columns):
    """Every answer comes with the columns of its own row; one that another row has is None."""
    asked = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    assert [text.split()[-1] for text in asked] == [str(number) for number in solution]
    assert level == [7 if number == 1 else None for number in solution]
    assert columns.keys() == {"completion_ids", "images"}
    return [float(len(answer) % 3) for answer in completions]


def exits(prompts, completions):
    """Gives up altogether."""
    raise SystemExit(3)


def none_for_all(prompts, completions, **kwargs):
    """Knows none of the answers."""
    return [None] * len(prompts)
