"""A run without a recipe: the recipe is written first, and can be read, changed and run again."""

from __future__ import annotations

import re
from pathlib import Path

from align import parameterization, shelf
from align.errors import AlignError

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
  {stage}:
    data: {data}
    eval_data: 0.05
    training: {{num_train_epochs: 1, per_device_train_batch_size: 4, gradient_accumulation_steps: 4}}
"""


def write(model: str | None, data: str | None, *, method: str, stage: str) -> Path:
    """Write `<name>.yaml` into the current folder, or find that it stands there already.

    Raises:
        AlignError: the model or the data were not given, a name does not exist, or another recipe has that file.
    """
    if model is None or data is None:
        raise AlignError("neither a recipe nor --model and --data were given", "align run recipes/dpo_qlora.yaml, or "
                         "align run --model ./my-model --data ./my.jsonl")
    parameterization.load(method)
    if shelf.find("stages", stage) is None:
        raise AlignError(f"there is no stage '{stage}'", shelf.did_you_mean(stage, shelf.names("stages")))
    name = "-".join(_word(part) for part in (model, Path(data).stem, stage, method))
    path = Path(f"{name}.yaml")
    template = "  chat_template: plain\n" if _bare(model) else ""
    text = _TEXT.format(stage=stage, model=_quoted(model), data=_quoted(data), method=method, name=name, path=path,
                        template=template)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise AlignError(f"'{path}' is there already and differs", f"align run {path}, or remove it")
    path.write_text(text, encoding="utf-8")
    return path


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", Path(text).name).strip("-.") or "run"


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) else '"' + text.replace('"', '\\"') + '"'


def _bare(model: str) -> bool:
    """A local model without a chat template gets the plain one, in the open."""
    from align.data import template

    folder = Path(model).expanduser()
    return folder.is_dir() and template.find(folder) is None
