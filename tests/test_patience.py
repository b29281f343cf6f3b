"""Code that may never come to an end is ended, and what comes after it is left alone."""

from __future__ import annotations

import time

import pytest

from align.data import patience, template
from align.errors import AlignError


def spin(seconds: float) -> int:
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
    return number


def test_a_block_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(patience.TookTooLongError), patience.within(0.1):
        spin(30)
    assert time.monotonic() - began < 15
    assert spin(0.6) and not patience._watch.until


def test_a_block_that_ends_as_it_is_given_up_raises_within() -> None:
    """Never behind it."""
    for over in (0.0, 0.2, 0.24, 0.25, 0.26, 0.3, 0.5):
        try:
            with patience.within(0.0):
                spin(over)
        except patience.TookTooLongError:
            pass
        spin(0.05)


def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(KeyError), patience.within(10):
        raise KeyError
    assert not patience._watch.until


def test_a_template_that_loops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(AlignError, match="the chat template took more than"):
        template.render(loops, [], add_generation_prompt=False, bos_token=None, eos_token=None)
    assert template.render("a", [], add_generation_prompt=False, bos_token=None, eos_token=None) == "a"


@pytest.mark.parametrize("text", ["{{ 9 ** 99999999 }}", "{{ 'x' * 99999999999 }}", "{{ [1] * 99999999999 }}"])
def test_an_operator_that_makes_too_much_is_refused(text: str) -> None:
    """One call of it could not be ended, and jinja2 would make it while it reads the template."""
    with pytest.raises(AlignError, match="is too large"):
        template.render(text, [], add_generation_prompt=False, bos_token=None, eos_token=None)
    small = "{{ 2 ** 10 * 3 }}{{ 'a' * 2 }}"
    assert template.render(small, [], add_generation_prompt=False, bos_token="", eos_token="") == "3072aa"
