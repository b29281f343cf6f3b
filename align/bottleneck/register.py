"""Tell PEFT of the bottleneck method as soon as peft is imported, without importing it.

`import align` calls `install()`. The parent process of align never imports torch, so nothing here may import peft.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

_CLASSES = {"align.bottleneck.config": "BottleneckConfig", "align.bottleneck.layer": "BottleneckLayer"}


def install() -> None:
    """Register now if peft is imported, else right after it is. A second call does nothing."""
    if "peft" in sys.modules:
        register()
    if not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def register() -> None:
    """Import `align.bottleneck.model`, whose last lines are the registration; peft must be there.

    Where `align.bottleneck.config` or `layer` is what imports peft first, its class does not exist yet when peft is
    ready. Then this does nothing, and the last lines of those modules call it again.
    """
    for name, member in _CLASSES.items():
        module = sys.modules.get(name)
        if module is not None and not hasattr(module, member):
            return
    import_module("align.bottleneck.model")


class _PeftFinder:
    """Finds peft by the other finders, and has it registered with once its code has run.

    The spec and its loader are theirs, so that importlib.metadata, resources and pickles see nothing new; only the
    loader's `exec_module` is followed by `register()`. A spec that is only looked at (`find_spec`) does nothing, and
    a reload goes the same way again.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        spec = self._spec_of_others(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register()

            # on this loader alone: a loader of ours would be seen by whoever asks the spec
            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def _spec_of_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if find is None or isinstance(finder, _PeftFinder):
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                return spec
        return None
