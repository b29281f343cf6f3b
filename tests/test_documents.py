"""Documents of lm-evaluation-harness in words, of every shape that its tasks have. The harness itself is not needed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from align.forgetting.own.documents import Document, answered, document


class Leaf:
    """What is asked of a task of the harness."""

    def __init__(self, kind: str, text: Any, target: Any, choices: list[str] | None = None) -> None:
        self.OUTPUT_TYPE, self.text, self.target, self.choices = kind, text, target, choices

    def doc_to_text(self, doc: Any) -> Any:
        return self.text

    def doc_to_target(self, doc: Any) -> Any:
        return self.target

    def doc_to_choice(self, doc: Any) -> list[str]:
        assert self.choices is not None
        return self.choices

    def get_config(self, key: str) -> Any:
        return {"doc_to_choice": self.choices}[key]


CITIES = ["Lima", " Quito", "La Paz in Bolivia"]


@pytest.mark.parametrize(
    ("leaf", "prompt", "answer"),
    [
        (Leaf("multiple_choice", "Capital of Ecuador? ", 1, CITIES), "Capital of Ecuador?", "Quito"),
        (Leaf("multiple_choice", "Capital of Ecuador?", [1, 2], CITIES), "Capital of Ecuador?", "Quito"),
        (Leaf("multiple_choice", "Capital of Peru?", "Lima", CITIES), "Capital of Peru?", "Lima"),
        (Leaf("multiple_choice", "Capital of Chile?", -1, CITIES), "Capital of Chile?", ""),
        (Leaf("multiple_choice", 1, "is too big.", ["The cup", "The trophy"]), "... is too big.", "The trophy"),
        (Leaf("generate_until", "Capital of Peru?", ["Lima", "Ciudad de los Reyes"]), "Capital of Peru?", "Lima"),
        (Leaf("generate_until", "One of two", 1, ["yes", "no"]), "One of two", "no"),
        (Leaf("generate_until", "2 + 2 =", 4), "2 + 2 =", "4"),
        (Leaf("generate_until", "Nothing is right", []), "Nothing is right", ""),
    ],
)
def test_a_document_is_a_prompt_and_its_right_answer(leaf: Leaf, prompt: str, answer: str) -> None:
    assert document(leaf, {}) == Document(prompt, answer)


def sample(*likelihoods: float) -> dict[str, Any]:
    return {"doc": {}, "filtered_resps": [(one, False) for one in likelihoods]}


@pytest.mark.parametrize(
    ("metric", "likelihoods", "said"),
    [
        ("acc", (-3.0, -2.0, -4.0), "Quito"),
        ("f1", (-3.0, -2.0, -4.0), "Quito"),
        ("acc_norm", (-3.0, -2.9, -4.0), "La Paz in Bolivia"),  # -0.75, -0.48, -0.24 a character
        ("acc_bytes", (-3.0, -2.9, -20.0), "Quito"),
        ("acc_mutual_info", (-3.0, -2.0, -4.0, -6.0, -2.0, -5.0), "Lima"),  # 3, 0, 1 above their own
        ("acc", (-3.0, -2.0, -4.0, -6.0, -2.0, -5.0), "Quito"),
        ("acc", (-2.0, -2.0, -4.0), "Lima"),
    ],
)
def test_what_was_said_is_the_choice_that_the_metric_counts(
    metric: str, likelihoods: tuple[float, ...], said: str
) -> None:
    found = answered(Leaf("multiple_choice", "?", 1, CITIES), metric, sample(*likelihoods))
    assert found["said"] == said
    assert ("p" in found) == (metric == "acc")


def test_the_probability_of_the_right_choice() -> None:
    given = sample(math.log(0.1), math.log(0.3), math.log(0.2))
    for right in (1, " Quito"):
        assert answered(Leaf("multiple_choice", "?", right, CITIES), "acc", given)["p"] == 0.5
    assert answered(Leaf("multiple_choice", 2, "end", CITIES), "acc", given)["p"] == pytest.approx(1 / 3, abs=1e-6)
    for several in ([1, 2], -1, "Cuzco"):
        assert "p" not in answered(Leaf("multiple_choice", "?", several, CITIES), "acc", given)


def test_a_written_answer_is_shown_whole() -> None:
    given = {"doc": {}, "resps": [[" It is Lima. \n"]], "filtered_resps": ["Lima"]}
    assert answered(Leaf("generate_until", "?", "Lima"), "exact_match", given) == {"said": "It is Lima."}


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert answered(Leaf("loglikelihood", "?", "Lima"), "acc", sample(-1.0)) == {}
    assert answered(Leaf("multiple_choice", "?", 1, CITIES), "acc", sample(-1.0, -2.0)) == {}
    assert answered(Leaf("multiple_choice", "?", 1, CITIES), "acc", sample(-1.0, math.nan, -2.0)) == {}
