"""`reward:` of a recipe: what scores the answers of a stage that learns from rewards, found and checked. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from align import errors, user_paths
from align.data.formats import GIVEN
from align.errors import AlignError
from align.functions import declared
from align.policy import base as bases
from align.run_folder import files
from align.run_folder.records import Policy, Reward
from align.run_folder.stage_dir import StageDir
from align.stage.rewarded import RewardSource


@dataclass(frozen=True)
class Finder:
    """Finds what rewards name.

    Attributes:
        stages: the ids of the recipe's stages, which go before everything else of that name, and whether they train a
            reward model.
        root: the recipe's folder, where relative paths are looked for after the current one.
        offline: names on the Hub are taken on trust.
    """

    stages: dict[str, bool]
    root: Path
    offline: bool = False

    def find(self, source: RewardSource) -> Reward:
        """What a source is.

        Raises:
            AlignError: it is nothing that can score answers.
        """
        name = source.source
        if name in self.stages:
            return Reward(name=name, kind="stage", weight=source.weight, stage=name, identity=name)
        function = declared.NAMED.fullmatch(name)
        if function is not None:
            return self._function(function["file"], function["name"], source.weight)
        folder = user_paths.find(name, self.root, Path.is_dir)
        if folder is not None and (folder / "outcome.json").is_file():
            return _of_other_run(folder.resolve(), name, source.weight)
        if folder is not None:
            _check_whole(folder.resolve(), name)
        if folder is None and not bases.is_on_hub(name, self.root):
            what = f"there is no stage, folder or file '{name}' that could score answers"
            trained = [stage for stage, scores in self.stages.items() if scores]
            known = errors.did_you_mean(name, trained) if trained else ""
            raise AlignError(
                what, known or "name a function, such as ./rewards.py:polite, or a stage that trains a reward model"
            )
        found = bases.resolve(name, source.revision, root=self.root, offline=self.offline)
        if found.path is not None:
            _check_scores(name, found)
        path, identity = (str(found.path), found.identity()) if found.path else (None, name)
        return Reward(name=Path(name).name, kind="model", weight=source.weight, path=path, identity=identity)

    def _function(self, file: str, name: str | None, weight: float) -> Reward:
        example = f"def {name or 'polite'}(prompts, completions, **kwargs)"
        found = declared.find(file, name, self.root, purpose="reward function", example=example)
        columns = [one for one in found.needs if one not in GIVEN]
        return Reward(
            name=found.name, kind="function", weight=weight, path=str(found.path), function=found.name,
            columns=columns, identity=found.sha256,
        )  # fmt: skip


def _of_other_run(folder: Path, name: str, weight: float) -> Reward:
    """The reward model that a stage of another run trained."""
    outcome = files.read_object(folder / "outcome.json")
    if not outcome.get("reward"):
        raise AlignError(
            f"the stage in '{name}' did not train a reward model", "name the folder of a stage that trained one"
        )
    try:
        model, run = Policy.model_validate(outcome["reward"]), folder.parent.parent
    except ValidationError:
        what = f"the outcome.json in '{name}' is damaged, or from another version of align"
        raise AlignError(what, "train the reward model again") from None
    for path in [*filter(None, [model.weights]), *(adapter.path for adapter in model.adapters)]:
        if not (run / path).is_dir():
            what = f"the reward model in '{name}' needs '{run / path}', which does not exist"
            raise AlignError(what, _written_out(outcome.get("stage")))
    identity = files.digest([model.base.identity, outcome.get("artifacts")])
    return Reward(name=folder.name, kind="stage", weight=weight, model=model, root=str(run), identity=identity)


def _check_whole(folder: Path, name: str) -> None:
    """Raises AlignError where a folder is a part of a reward model: its adapter, or weights that adapters act on."""
    outcome = files.read_object(folder.parent / "outcome.json")
    under = (outcome.get("reward") or {}).get("adapters")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        what = f"'{name}' is an adapter, which cannot score answers without its base model"
    elif under and StageDir(folder.parent).model == folder:
        what = f"the weights in '{name}' were trained under adapters and cannot score answers without them"
    else:
        return
    raise AlignError(what, _written_out(outcome.get("stage")))


def _written_out(stage: str | None) -> str:
    """The one way in which a reward model of another run can be taken along."""
    return f"export the complete reward model and use FOLDER: align export RUN FOLDER --stage {stage or 'STAGE'}"


def _check_scores(name: str, model: bases.Base) -> None:
    """Raises AlignError where a model on files gives no single score."""
    config, kinds = model.config, model.config.get("architectures") or []
    if not any("SequenceClassification" in kind for kind in kinds):
        what = f"'{name}' is {kinds[0] if kinds else 'a model of an unknown kind'}, which cannot score answers"
        raise AlignError(what, "give a sequence-classification model with one label, or a stage that trained one")
    labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    if labels != 1:
        raise AlignError(f"'{name}' has {labels} labels, but a reward model has one", "give another")
    if not any(tensor.startswith("score.") for tensor in model.tensors()):
        what = f"'{name}' is {kinds[0]}, whose head is not called 'score'"
        raise AlignError(what, "give one that is based on Llama, Mistral, Qwen, Gemma, Phi or GPT-2")
