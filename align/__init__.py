"""align: take a base language model through a chain of post-training stages, and tell what each one forgot.

The names of `__all__` are public, and each is imported when it is first asked for. So are those of `align.stage`, for
authors of stages, and `import align.bottleneck`. All else is private: it may change with any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from align.version import VERSION

if TYPE_CHECKING:
    from align.adapters.adapted import Adapted
    from align.api import Checked, PlannedStage, Run, StageResult, check, load_policy, open_run, run
    from align.errors import AlignError
    from align.policy import nf4
    from align.spectrum.analyzer import SpectrumAnalyzer
    from align.stage import Stage, StageKeys

__version__ = VERSION
__all__ = [
    "Adapted",
    "AlignError",
    "Checked",
    "PlannedStage",
    "Run",
    "SpectrumAnalyzer",
    "Stage",
    "StageKeys",
    "StageResult",
    "check",
    "load_policy",
    "nf4",
    "open_run",
    "run",
]

_ELSEWHERE = {
    "Adapted": "align.adapters.adapted",
    "AlignError": "align.errors",
    "SpectrumAnalyzer": "align.spectrum.analyzer",
    "Stage": "align.stage",
    "StageKeys": "align.stage",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'align' has no attribute '{name}'")
    home = _ELSEWHERE.get(name, "align.api")
    return import_module("align.policy.nf4") if name == "nf4" else getattr(import_module(home), name)
