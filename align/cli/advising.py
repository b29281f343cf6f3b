"""`align advise` and `align init`: on a finished run, and before the first one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from align.cli import printed
from align.cli.options import AsJson
from align.errors import AlignError, did_you_mean
from align.runner.lines import line

if TYPE_CHECKING:
    from align.guidance.rules import Choice
    from align.guidance.situation import Situation
    from align.planning.target import Target

Goal = Annotated[str, typer.Option(metavar="GOAL", help="balanced, quality, prototype, domain or provider.")]
Gpu = Annotated[str | None, typer.Option(metavar="SIZE", help="The memory of one GPU, 24GB; otherwise this machine's.")]
Gpus = Annotated[int, typer.Option(min=1, help="How many of them.")]
Tasks = Annotated[int, typer.Option(min=1, help="Tasks that one base is to serve, each with its own adapter.")]
Far = Annotated[bool, typer.Option("--far", help="The data are far from what the base was pretrained on.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="The recipe to write; defaults to NAME.yaml.")]


def advise(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A finished run.")] = None,
    model: Annotated[str | None, typer.Option(help="Before a run: the base model.")] = None,
    data: Annotated[str | None, typer.Option(help="Before a run: the training data.")] = None,
    gpu: Gpu = None,
    gpus: Gpus = 1,
    tasks: Tasks = 1,
    goal: Goal = "balanced",
    far: Far = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Say why a run forgot or learnt nothing, and what helps; or, before a run, which method, rank and batch to take.

    [dim]align advise runs/mine[/dim]

    [dim]align advise --model ./my-model --data my.jsonl --gpu 24GB[/dim]
    """
    if (run_dir is None) == (model is None and data is None):
        raise AlignError("give a finished run, or --model and --data", "align advise runs/NAME")
    if run_dir is not None:
        if (gpu, gpus, tasks, goal, far, out) != (None, 1, 1, "balanced", False, None):
            raise AlignError("of a finished run only --json changes anything", "leave the other options out")
        _on_a_run(run_dir, as_json)
        return
    if model is None or data is None:
        missing = "--model" if model is None else "--data"
        raise AlignError(f"{missing} is missing", "align advise --model ./my-model --data my.jsonl --gpu 24GB")
    _before(model, data, gpu, gpus, tasks, goal, far, out, as_json=as_json)


def init(out: Out = None) -> None:
    """Ask for model, data, device and goal, and write a recipe."""
    from align.guidance.situation import GOALS
    from align.planning import target

    if not _asked_by_a_person():
        raise AlignError("align init asks questions, and this is no terminal", "align advise --model ... --data ...")
    model = typer.prompt("Base model: a folder, or org/name on the Hub")
    data = typer.prompt("Training data: a file, a folder, or org/name on the Hub")
    device = target.here()
    here = device.name if device.gpu else "none here"
    gpu = typer.prompt(f"Memory of one GPU, such as 24GB ({here})", default="this machine")
    gpus = typer.prompt("How many of them", default=1, type=int)
    tasks = typer.prompt("Tasks that one base is to serve", default=1, type=int)
    for name, text in GOALS.items():
        print(f"  {name}: {text}")
    goal = typer.prompt("Goal", default="balanced")
    far = typer.confirm("Are the data far from what the base was pretrained on?", default=False)
    _before(model, data, None if gpu == "this machine" else gpu, max(1, gpus), max(1, tasks), goal, far, out)


def _asked_by_a_person() -> bool:
    return sys.stdin.isatty()


def _before(
    model: str,
    data: str,
    gpu: str | None,
    gpus: int,
    tasks: int,
    goal: str,
    far: bool,
    out: Path | None,
    *,
    as_json: bool = False,
) -> None:
    """The advice before a run, and its recipe."""
    from align.guidance import recipe, rules, words
    from align.guidance.situation import GOALS
    from align.planning import target
    from align.recipe import load

    if goal not in GOALS:
        raise AlignError(f"there is no goal '{goal}'", did_you_mean(goal, GOALS))
    if goal == "provider":
        print(json.dumps({"reasons": [words.PROVIDER]}, indent=1) if as_json else words.PROVIDER)
        return
    printed.refuse_unwritable(out)
    device = target.asked(gpu) if gpu else target.here()
    now, notes = _situation(model, data, device, gpus=gpus, tasks=tasks, goal=goal, far=far)
    choice = rules.choose(now)
    file = out or Path(f"{recipe.name_of(model, data, now.stage, choice.method)}.yaml")
    text = recipe.text(model, data, now.stage, choice, held_out=now.rows >= 100 and now.stage != "reward")
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise AlignError(f"'{file}' already exists and differs", "give another --out, or remove it")
    file.write_text(text, encoding="utf-8")
    load.load(file)
    if as_json:
        print(json.dumps(words.document(now, choice, str(file)), indent=1, ensure_ascii=False))
        return
    printed.found(notes, {})
    _print(now, choice, device)
    print(f"recipe: {file}\nnext: align plan {file}{f' --gpu {gpu}' if gpu else ''}")


def _print(now: Situation, choice: Choice, device: Target) -> None:
    from align.guidance import words

    out = Console(highlight=False, soft_wrap=True)
    for text in words.shown(now, choice, device.name):
        out.print(text)


def _situation(model: str, data: str, device: Target, **asked: Any) -> tuple[Situation, tuple[str, ...]]:
    """What is asked, and what the model and the data tell."""
    from align.guidance import measured
    from align.guidance.situation import Situation
    from align.inspection import look

    looked = look.over(data, look.How())
    found = looked.survey
    if not found.rows:
        raise looked.faults[0]
    (kind, _), *others = found.kinds.most_common()
    stage = {"preference": "dpo", "unpaired": "kto"}.get(kind, "sft")
    if others and {kind, *(other for other, _ in others)} & {"preference", "unpaired", "prompt"}:
        listed = ", ".join(f"{count:,} are {name}" for name, count in found.kinds.most_common())
        raise AlignError(f"the rows of '{data}' are of several kinds: {listed}", "give those of one stage")
    if "prompt" in found.kinds:
        what = f"'{data}' has prompts without answers, and what to reward is not known"
        raise AlignError(what, "write a recipe for grpo, rloo or ppo: docs/stages.md")
    prototype = asked["goal"] == "prototype" and asked["tasks"] == 1
    methods = ("prefix_tuning", "qlora", "lora") if prototype else ("full", "lora", "qlora")
    took = measured.measure(model, data, stage, methods, device)
    notes = list(took.notes)
    if stage in ("dpo", "kto"):
        notes.append(f"{stage} on a base that was not trained on answers learns little: put an sft stage before it")
    label = device.memory / 2**30 if device.gpu and device.memory else None
    now = Situation(took.parameters, device.memory, label, took.rows, stage, needs=took.needs, **_named(asked))
    return now, tuple(notes)


def _named(asked: dict[str, Any]) -> dict[str, Any]:
    return {"devices" if name == "gpus" else name: value for name, value in asked.items()}


def _on_a_run(run_dir: Path, as_json: bool) -> None:
    from align.advice import words
    from align.advice.advise import advise as advice_on
    from align.report import records, shown
    from align.run_folder.paths import RunDir

    folder = RunDir(run_dir)
    if folder.record.is_file() and folder.is_held():
        raise AlignError(f"'{run_dir}' is under way", "wait until it has ended")
    found = advice_on(shown.facts(records.load(run_dir)))
    if as_json:
        print(json.dumps(words.document(found), indent=1))
        return
    out = Console(highlight=False, soft_wrap=True)
    for told in words.text(found):
        out.print(line(told))
