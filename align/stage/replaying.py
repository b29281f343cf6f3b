"""The recipe key of a stage that learns replayed rows by a term of its loss."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.stage.keys import Setting, StageKeys

PTX_COEF = 1.0


class ReplayingKeys(StageKeys):
    """The recipe keys of `dpo`, `kto`, `rloo`, `grpo` and `sdft` as far as they replay; `ppo` has them of its own."""

    later: ClassVar[frozenset[str]] = frozenset({"ptx_coef"})
    ptx_coef: float = Field(
        PTX_COEF,
        ge=0,
        allow_inf_nan=False,
        description="weight of the language-model loss on replayed rows, if the stage has a replay",
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """A weight of nothing."""
        found = super().contradictions(setting)
        if self.ptx_coef != PTX_COEF and not setting.replays:
            found.append(("ptx_coef", *weightless(setting.own.stage)))
        return found


def weightless(stage: str) -> tuple[str, str]:
    """What is wrong with a `ptx_coef` without a replay, and the way out."""
    what = f"'ptx_coef' weights the loss on replayed rows, but stage '{stage}' has no replay"
    return what, "give it a `replay:`, or leave `ptx_coef` out"
