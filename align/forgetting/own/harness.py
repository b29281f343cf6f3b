"""lm-evaluation-harness on a model in memory: its own tasks, requests and scores, item by item."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy
import torch

from align.errors import AlignError, Exit
from align.forgetting.own import documents
from align.forgetting.own.documents import Document
from align.forgetting.own.items import SPLITS
from align.forgetting.own.kinds import Task
from align.forgetting.own.scoring import fraction

BATCH = 16  # requests that the harness puts to the model at a time


def prepare(task: Task) -> None:
    """Load a task with its data, before any weights are.

    Raises:
        AlignError: its files or its data cannot be loaded, or it has no such metric.
    """
    for name, leaf in _tasks(task).items():
        metric = (task.field or "").partition(",")[0]
        if metric and metric not in leaf.aggregation():
            raise _no_metric(name, metric, list(leaf.aggregation()))


@lru_cache
def chance(task: Task) -> float:
    """The share of items that guessing gets right: of an accuracy over choices 1 / their number, else 0."""
    shares = [
        1 / len(leaf.doc_to_choice(doc)) if _over_choices(task, leaf) else 0.0
        for leaf in _tasks(task).values()
        for _, doc in leaf.doc_iterator(limit=task.limit)
    ]
    return math.fsum(shares) / len(shares)


def _over_choices(task: Task, leaf: Any) -> bool:
    metric = task.field or next(iter(leaf.aggregation()))
    return leaf.OUTPUT_TYPE == "multiple_choice" and metric.startswith("acc")


def lines(model: Any, tokenizer: Any, task: Task, *, autocast: bool) -> list[dict[str, Any]]:
    """The items of a task as lines of items.jsonl: even document numbers are the gate's, odd ones the report's.

    Raises:
        AlignError: the harness fails, or the metric is no number in 0..1 for each item.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    precision, tasks = torch.bfloat16 if autocast else None, list(_tasks(task).values())
    manager = _manager(task.folder, task.own, task.task)
    with _untouched(model), _quiet():
        try:
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, mixed_precision_dtype=precision)
            result = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=task.limit, bootstrap_iters=0)
        except Exception as error:
            raise _failed(task, error) from error
    assert result is not None
    return [line for leaf, samples in result["samples"].items() for line in _of(task, leaf, samples)]


def _of(task: Task, leaf: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The items of one task; of a group, each under its task's name."""
    metrics, filters = list(samples[0]["metrics"]), list(dict.fromkeys(sample["filter"] for sample in samples))
    metric, _, used = (task.field or metrics[0]).partition(",")
    if metric not in metrics:
        raise _no_metric(leaf, metric, metrics)
    if used and used not in filters:
        what = f"the task '{leaf}' has no filter '{used}'"
        raise AlignError(what, f"choose one of: {', '.join(filters)}", exit=Exit.STAGE_FAILED)
    for sample in samples:
        if sample["filter"] != (used or filters[0]):
            continue
        score, number = fraction(sample[metric]), sample["doc_id"]
        if score is None:
            what = f"the metric '{metric}' of the task '{leaf}' is not a number from 0 to 1 for each item"
            raise AlignError(what, f"name another as `field`: {', '.join(metrics)}", exit=Exit.STAGE_FAILED)
        line = {"probe": task.name, "split": SPLITS[number % 2], "id": _id(task, leaf, number), "score": score}
        yield line | documents.answered(_tasks(task)[leaf], metric, sample)


def _id(task: Task, leaf: str, number: int) -> str:
    return f"{task.name}-{number}" if leaf == task.task else f"{task.name}-{leaf}-{number}"


def document(task: Task, id: str) -> Document:
    """What an item asks, and its right answer."""
    number = int(id.rpartition("-")[2])
    leaf, found = next((name, one) for name, one in _tasks(task).items() if _id(task, name, number) == id)
    try:
        return documents.document(found, _docs(task, leaf)[number])
    except Exception as error:
        raise _failed(task, error) from error


@lru_cache
def _docs(task: Task, leaf: str) -> Any:
    """The documents of one task; asking it for them may process them all."""
    return _tasks(task)[leaf].eval_docs


def _no_metric(leaf: str, metric: str, metrics: Sequence[str]) -> AlignError:
    what = f"the task '{leaf}' has no metric '{metric}'"
    return AlignError(what, f"choose one of: {', '.join(metrics)}", exit=Exit.STAGE_FAILED)


@lru_cache
def _manager(folder: str, own: bool, task: str) -> Any:
    """The index of the tasks in the folder; of all, which takes the harness long, only where that is not enough."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        near = TaskManager(include_path=folder, include_defaults=False)
        if own or task in near.all_subtasks:
            return near
        return TaskManager()


@lru_cache
def _tasks(task: Task) -> dict[str, Any]:
    """The task by its name, or those of a group, with their data."""
    try:
        with _quiet():
            found: dict[str, Any] = _manager(task.folder, task.own, task.task).load([task.task])["tasks"]
    except Exception as error:
        raise _failed(task, error) from error
    return found


def _failed(task: Task, error: Exception) -> AlignError:
    if isinstance(error, AlignError):
        return error
    first = str(error).splitlines()[0] if str(error) else ""
    what = f"lm-evaluation-harness cannot run the task '{task.task}': {type(error).__name__}: {first}".rstrip(": ")
    remedy = f"see that it runs alone: lm-eval run --tasks {task.task} --limit 2 --model dummy"
    return AlignError(what, remedy, exit=Exit.STAGE_FAILED)


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """The harness seeds every generator and ties the embeddings of a model; training goes on as if it had not."""
    python, arrays = random.getstate(), numpy.random.get_state()
    model.tie_weights = lambda *_, **__: None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        del model.tie_weights
        random.setstate(python)
        numpy.random.set_state(arrays)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the harness, which would stand among the warnings of the run."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
