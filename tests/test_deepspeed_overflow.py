"""A step that DeepSpeed leaves out for its gradients ends the stage, whatever DeepSpeed itself goes on to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState

from align.engines.deepspeed import _finite
from align.errors import AlignError, Exit


def end_step(optimizer: Any) -> None:
    trainer: Any = SimpleNamespace(model_wrapped=SimpleNamespace(optimizer=optimizer))
    _finite(trainer).on_step_end(None, TrainerState(global_step=3), None)


def test_gradients_that_are_no_numbers_end_the_training() -> None:
    with pytest.raises(AlignError, match="the gradients of step 3 contain NaN") as error:
        end_step(SimpleNamespace(overflow=True))
    assert error.value.exit == Exit.STAGE_FAILED and "learning_rate" in error.value.remedy


@pytest.mark.parametrize("optimizer", [SimpleNamespace(overflow=False), SimpleNamespace(), None])
def test_any_other_step_goes_on(optimizer: Any) -> None:
    end_step(optimizer)
