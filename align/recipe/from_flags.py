"""A run without a recipe: the recipe is written first, and can be read, changed and run again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from align import user_paths
from align.errors import AlignError, Place
from align.parameterization import method as methods
from align.recipe import document, load
from align.stage import program as stages

_TEXT = """\
# {stage} of {model} on {data}, written by `align run --model … --data …`
# needs: the model and the data named below
# run: align run {path}
name: {name}
model:
  base: {model}
{template}parameterization:
  method: {method}
stages:
  {id}:
{program}    data: {data}
    training: {{num_train_epochs: 1, per_device_train_batch_size: 4, gradient_accumulation_steps: 4}}
"""


def write(model: str | None, data: str | None, *, method: str, stage: str, overrides: Sequence[str] = ()) -> Path:
    """Write `<name>.yaml` into the current folder, or find that it stands there already.

    Args:
        overrides: keys that are set besides, as `stages.sft.training.learning_rate=1e-4`; they stand in the recipe.

    Raises:
        AlignError: the model or the data were not given, a name does not exist, another recipe has that file, or the
            recipe would be wrong, which is not written then.
    """
    if model is None or data is None:
        given = [flag for flag, value in (("--model", model), ("--data", data)) if value is not None]
        missing = [flag for flag, value in (("--model", model), ("--data", data)) if value is None]
        what = f"{given[0]} needs {missing[0]} as well" if given else "give a recipe, or --model and --data"
        raise AlignError(what, "align run recipes/dpo_qlora.yaml, or align run --model ./my-model --data ./my.jsonl")
    with _option("--method", method):
        methods.load(method)
    with _option("--stage", stage):
        stages.load(stage, Path())
    name = "-".join(word(part) for part in (model, Path(data).stem, _stem(stage), method))
    path = Path(f"{name}.yaml")
    text = _TEXT.format(
        id=_stem(stage).replace(".", "-"),
        stage=stage,
        method=method,
        name=name,
        path=path,
        model=_quoted(model),
        data=_quoted(data),
        program=f"    stage: {_quoted(stage)}\n" if stage != _stem(stage) else "",
        template="  chat_template: plain\n" if bare(model) else "",
    )
    whole = _overridden(text, str(path), overrides) if overrides else text
    if path.is_file():
        if path.read_text(encoding="utf-8") != whole:
            raise AlignError(f"'{path}' already exists and differs", f"align run {path}, or remove it")
        return path
    path.write_text(text, encoding="utf-8")
    try:
        load.load(path, overrides)  # faults of an override stand on the command line, not in the file
    except AlignError:
        path.unlink()
        raise
    path.write_text(whole, encoding="utf-8")
    return path


def _overridden(text: str, shown: str, overrides: Sequence[str]) -> str:
    """The recipe with these keys set, its comments kept.

    Raises:
        AlignError: one is no KEY=VALUE.
    """
    read = document.parse(text, shown)
    for override in overrides:
        read.set(override)
        *above, last = override.partition("=")[0].strip().split(".")
        node, data = read.marks, read.data
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = CommentedMap()
            node, data = node[part], data[part]
        node[last] = data[last]
    out = StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.dump(read.marks, out)
    return out.getvalue()


@contextmanager
def _option(flag: str, value: str) -> Iterator[None]:
    """Faults of an option stand on the command line."""
    try:
        yield
    except AlignError as error:
        raise AlignError(error.what, error.remedy, place=error.place or Place(f"{flag} {value}")) from None


def _stem(stage: str) -> str:
    """The name of a stage, also of one that is given by its file."""
    return word(stage.removesuffix(".py"))


def word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", Path(text).name).strip("-.") or "run"


def _quoted(text: str) -> str:
    """A text as YAML; JSON's quotes are YAML's too."""
    return text if re.fullmatch(r"[A-Za-z./~][A-Za-z0-9_./-]*[./][A-Za-z0-9_-]+|lab", text) else json.dumps(text)


def bare(model: str) -> bool:
    """A local model without a chat template gets the plain one, in the open."""
    from align.data import template

    folder = user_paths.expanded(model)
    return user_paths.there(folder, Path.is_dir) and template.find(folder) is None
