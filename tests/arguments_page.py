"""What becomes of every training argument, stage by stage, and the page that shows it.

python tests/arguments_page.py > docs/training_arguments.md
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from align import shipped
from align.recipe import training_arguments, verdicts
from align.recipe.verdicts import Verdict
from align.stage import program
from align.stage.declaration import Stage

_ORDER = ("sft", "dpo", "kto", "reward", "ppo", "rloo", "grpo", "sdft")
_HEAD = """\
# Training arguments

The arguments that `training:` accepts in a recipe. The names are those of TRL's configs and of the `TrainingArguments`
of transformers, from which they inherit. `align check` refuses an argument that would have no effect, or that would
fail only after the model has loaded, with the line and what to write instead. How to write recipes:
[recipes/stages.md](recipes/stages.md#training).

| in the table | |
|---|---|
| acts | it works in this stage as TRL documents it |
| acts if | it works only under the condition in the last column, and is refused otherwise |
| key | it is a key of the stage: write it next to `training:` |
| refused | the last column says what to write instead |
| | TRL's config has no such argument; it is refused, and the nearest one is suggested |

Notes are reported by `align check` and do not stop a run. A value that equals the default is always accepted. Notes
also report a warm-up that is longer than the run, and evaluations that would come after its end.

This page is generated from [align/recipe/verdicts.py](../align/recipe/verdicts.py) and the installed TRL and
transformers, by `python tests/arguments_page.py > docs/training_arguments.md`.

"""


@lru_cache
def stages() -> dict[str, Stage]:
    """The shipped stages that train by a config of TRL, in the order in which they are usually used."""
    names = sorted(shipped.names("stages"), key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name))
    found = {name: program.load(name, Path()).stage for name in names}
    return {name: declared for name, declared in found.items() if declared.arguments}


@lru_cache
def table() -> dict[str, dict[str, Verdict]]:
    """Of every argument of every config the verdict in each stage whose config has it."""
    found: dict[str, dict[str, Verdict]] = {}
    for name, declared in stages().items():
        assert declared.arguments is not None
        keys = frozenset(declared.keys.model_fields) - {"training"}
        for argument in training_arguments.known(declared.arguments):
            verdict = verdicts.of(declared.arguments, argument, keys, declared.reserved)
            found.setdefault(argument, {})[name] = verdict
    return dict(sorted(found.items()))


def page() -> str:
    """docs/training_arguments.md"""
    names = list(stages())
    rows = [f"| argument | {' | '.join(names)} | |", "|---" * (len(names) + 2) + "|"]
    for argument, found in table().items():
        cells = [_cell(argument, name, found.get(name)) for name in names]
        rows.append(f"| `{argument}` | {' | '.join(cells)} | {_remark(argument, found)} |")
    return _HEAD + "\n".join(rows) + "\n"


def _cell(argument: str, name: str, verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.kind == "acts":
        return "acts if" if _conditions(argument, name) else "acts"
    return "key" if verdict.kind == "key" else "refused"


def _conditions(argument: str, name: str) -> list[str]:
    """Beside what an argument acts in a stage: another stage may have no such argument or key."""
    declared = stages()[name]
    assert declared.arguments is not None
    there = {*training_arguments.known(declared.arguments), *declared.keys.model_fields}
    return [_beside(*one) for one in verdicts.BESIDE.get(argument, {}).items() if one[0] in there]


def _remark(argument: str, found: dict[str, Verdict]) -> str:
    remarks: dict[str, list[str]] = {}
    for name, verdict in found.items():
        texts = [verdict.remedy] if verdict.kind not in ("acts", "key") else []
        if verdict.kind == "acts":
            texts += _conditions(argument, name)
            texts += [f"noted if {_not(*one)}" for one in verdicts.NOTED.get(argument, {}).items()]
            texts += ["needs a GPU"] if argument in verdicts.NEED_A_GPU else []
            texts += [verdicts.ALSO[argument]] if argument in verdicts.ALSO else []
        for text in texts:
            remarks.setdefault(text, []).append(name)
    alike = {text: "" if len(names) == len(found) else f"{', '.join(names)}: " for text, names in remarks.items()}
    return "; ".join(f"{where}{text}" for text, where in alike.items())


def _beside(other: str, wanted: verdicts.Values) -> str:
    if wanted.others and wanted != verdicts.SET:
        return f"not with {training_arguments.one_of_values(other, wanted.listed)}"
    return f"with {training_arguments.said(other, wanted)}"


def _not(other: str, wanted: verdicts.Values) -> str:
    if wanted.others:
        return f"it is used with {training_arguments.one_of_values(other, wanted.listed)}"
    return f"`{other}` is given" if wanted.listed == (-1,) else f"there is no {training_arguments.said(other, wanted)}"


if __name__ == "__main__":
    print(page(), end="")
