"""A recipe while it is put together from another tool's file, and what became of each key of that file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from align.libraries.trl import known
from align.recipe import argument_values, training_arguments, verdicts
from align.stage import program

OFF: Final[tuple[Any, ...]] = (None, False, "", [], {}, 0, "none", "None", "null", "no")
"""Values of a key that asks for nothing."""

_HERE: Final = Path()
_ORDER: Final = ("name", "seed", "model", "parameterization", "launch", "trackers", "stages")


@dataclass
class Draft:
    """What is known so far.

    Attributes:
        tool: whose file it is, as its users write it.
        given: the file.
        stage: the program of the recipe's one stage, which is also its name.
        recipe: as nested mappings.
        mapped: where the value of a key stands in the recipe now.
        idle: keys that need no place in a recipe, with why.
        lost: keys that ask for something that the recipe does not have, with why or what to write.
    """

    tool: str
    given: dict[str, Any]
    stage: str = "sft"
    recipe: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, str] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The name of the stage's TRL config."""
        return str(program.load(self.stage, _HERE).stage.arguments)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; the default where it is not given or null."""
        found = self.given.get(key)
        return default if found is None else found

    def place(self, where: str) -> str:
        """A place from the top of the recipe: `training.` and what `.` begins stands in the stage."""
        if where.startswith("training."):
            return f"stages.{self.stage}.{where}"
        return f"stages.{self.stage}{where}" if where.startswith(".") else where

    def put(self, where: str, value: Any, *keys: str) -> None:
        """Set a value of the recipe; `keys` of the file are where it comes from."""
        whole = self.place(where)
        *above, last = whole.split(".")
        node = self.recipe
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
        self.mapped.update(dict.fromkeys((key for key in keys if self.given.get(key) is not None), whole))

    def has(self, where: str) -> bool:
        """Whether the recipe says something there."""
        node: Any = self.recipe
        for part in self.place(where).split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True

    def leave(self, why: str, *keys: str) -> None:
        """These keys need no place; of those that something was said of already, that holds."""
        still = set(self.open)
        self.idle.update(dict.fromkeys((key for key in keys if key in still), why))

    def lose(self, why: str, *keys: str) -> None:
        """These keys have no place, unless they ask for nothing; of those that something was said of, that holds."""
        still = set(self.open)
        for key in keys:
            if key in still:
                off = self.given[key] in OFF
                (self.idle if off else self.lost)[key] = "it is off" if off else why

    @property
    def open(self) -> list[str]:
        """Keys of the file that nothing was said of yet."""
        return [key for key in self.given if key not in self.mapped | self.idle | self.lost]

    def argument(self, name: str, value: Any, *keys: str) -> None:
        """Set a training argument, if the stage takes it with this value; otherwise its keys are lost."""
        config, stage = self.config, program.load(self.stage, _HERE).stage
        argument = known(config).get(name)
        if argument is None:
            self.lose(f"the stage '{self.stage}' has no training argument '{name}'", *keys)
            return
        verdict = verdicts.of(config, name, frozenset(stage.keys.model_fields), stage.reserved)
        if verdict.kind == "key":
            self.put(f".{name}", value, *keys)
        elif verdict.kind != "acts":
            same = value == argument.default
            (self.leave if same else self.lose)(verdict.remedy, *keys)
        elif fault := argument_values.fault(argument, value, config):
            self.lose(fault.what.replace("{key}", name), *keys)
        else:
            self.put(f"training.{name}", value, *keys)

    def arguments(self) -> None:
        """Set every key of the file that is a training argument by TRL's own name, and is not dealt with yet."""
        for key in self.open:
            if key in known(self.config) and self.given[key] is not None:
                self.argument(key, self.given[key], key)

    def without_effect(self) -> None:
        """Take out training arguments that do nothing beside the others, which a recipe may not have."""
        stage, config = program.load(self.stage, _HERE).stage, self.config
        own = self.recipe["stages"][self.stage]
        training = own.get("training", {})
        defaults = {name: argument.default for name, argument in known(config).items()}
        evaluated = {} if "eval_data" in own else {"eval_data": None, "eval_strategy": "no"}
        keys = {name: own.get(name, field.default) for name, field in stage.keys.model_fields.items()}
        while True:
            values = {**defaults, **training, **keys, **evaluated}
            idle = next(training_arguments.idle(training, values, config, frozenset(keys)), None)
            if idle is None:
                return
            del training[idle.name]
            for key in [key for key, place in self.mapped.items() if place == self.place(f"training.{idle.name}")]:
                del self.mapped[key]
                self.idle[key] = idle.what.replace("{key}", key)

    def finish(self) -> dict[str, Any]:
        """The recipe, its keys in their usual order; what nothing was said of is lost."""
        self.without_effect()
        for key in self.open:
            if self.given[key] in OFF:
                self.idle[key] = "it is off"
            else:
                self.lost[key] = f"align knows no such key of {self.tool}"
        return {key: self.recipe[key] for key in _ORDER if key in self.recipe}


def number(value: Any) -> Any:
    """`2e-4` as a number: YAML 1.1, which these tools read, takes it for a text, and they turn it into one."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


_TEXTS: Final = ("name", "revision", "revision_of_model", "_config", "base_model", "name_or_path", "dataset")
_WORDS: Final = {"yes": True, "no": False, "on": True, "off": False, "true": True, "false": False}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys with numbers as numbers, and the words of YAML 1.1 for true and false as such; the strategies
    of transformers have a `no` of their own, and names and revisions may look like numbers."""
    found = {}
    for key, value in given.items():
        if str(key).endswith(_TEXTS) and isinstance(value, int | float | str) and not isinstance(value, bool):
            found[str(key)] = str(value)
        elif str(key).endswith("_strategy"):
            found[str(key)] = "no" if value is False else value
        else:
            found[str(key)] = _WORDS.get(value.lower(), number(value)) if isinstance(value, str) else value
    return found
