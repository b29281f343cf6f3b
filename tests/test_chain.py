"""What a chain of parameterizations hands on, by rules alone; that the weights follow is told in test_handover.py."""

from __future__ import annotations

import pytest

from align.errors import AlignError
from align.parameterization import chain
from align.parameterization.chain import Layer
from align.run_folder.records import Adapter

LORA = {"method": "lora", "lora": {"r": 8}}
WIDER = {"method": "lora", "lora": {"r": 16}}
BOTTLENECK = {"method": "adapter"}
PROMPT = {"method": "prompt_tuning", "peft": {"num_virtual_tokens": 4}}
FULL = {"method": "full"}


def layer(settings: dict[str, object], stage: str) -> Layer:
    return Layer.of(settings, stage)


def handed_on(*settings: dict[str, object]) -> list[str]:
    """The stages whose adapters the last of these stages hands on; they are called a, b, c, in order."""
    policy: list[Layer] = []
    for own, stage in zip(settings, "abc", strict=False):
        policy = chain.after(policy, layer(own, stage))
    return [one.stage for one in policy]


@pytest.mark.parametrize(
    ("stages", "left"),
    [
        ((LORA,), ["a"]),
        ((LORA, LORA), ["b"]),  # trained further
        ((LORA, WIDER), ["a", "b"]),  # put on top
        ((LORA, WIDER, WIDER), ["a", "c"]),
        ((LORA, FULL), []),  # merged
        ((FULL, LORA), ["b"]),
        ((BOTTLENECK, FULL), ["a"]),  # cannot be merged and stays, on weights that are trained
        ((LORA, BOTTLENECK, FULL), ["b"]),  # merged up to the first that cannot be
        ((BOTTLENECK, LORA, FULL), ["a", "b"]),  # what lies over that stays too
    ],
)
def test_what_is_merged_stays_or_is_trained_further(stages: tuple[dict[str, object], ...], left: list[str]) -> None:
    assert handed_on(*stages) == left


def test_an_adapter_goes_on_only_from_the_very_same_settings() -> None:
    assert chain.continues([layer(LORA, "a")], layer(LORA, "b"))
    assert not chain.continues([layer(LORA, "a")], layer(WIDER, "b"))
    assert not chain.continues([layer(LORA, "a"), layer(WIDER, "b")], layer(LORA, "c")), "it is not the last"
    assert not chain.continues([], layer(LORA, "a"))


def test_a_learnt_prompt_cannot_stay_beneath_another_method() -> None:
    with pytest.raises(AlignError) as error:
        handed_on(PROMPT, LORA)
    assert str(error.value) == (
        "stage 'b' cannot continue from the prompt_tuning of stage 'a' with lora\n"
        "  -> give both stages the same parameterization, or 'a' another"
    )


def test_a_bottleneck_does_not_return_over_another_method() -> None:
    with pytest.raises(AlignError) as error:
        handed_on(BOTTLENECK, LORA, {"method": "adapter", "adapter": {"r": 8}})
    assert str(error.value) == (
        "stage 'c' cannot train adapter on top of the lora of stage 'b'\n"
        "  -> give this stage another parameterization, such as lora, or the same one as the stage before it"
    )


def test_adapters_that_lie_on_the_model_are_not_put_on_again() -> None:
    own = {"a": BOTTLENECK, "b": LORA, "c": BOTTLENECK}
    one, two, three = (
        Adapter(name=name, path=f"stages/{name}/model", method=str(settings["method"]), settings=settings)
        for name, settings in own.items()
    )
    on_it = [one]
    assert chain.beside(on_it, [one, two])
    assert on_it == [one, two]
    assert not chain.beside(on_it, [three]), "a bottleneck does not return over another method"
    assert on_it == [one, two]
