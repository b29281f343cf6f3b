"""A graph of stages: which there are, and whose output each one takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from align import errors, shipped, user_paths
from align.errors import AlignError, FaultList
from align.recipe.document import Document, read
from align.recipe.validation import validate
from align.run_folder.run_record import STAGE_NAME
from align.stage.program import Program
from align.stage.program import load as load_program
from align.stage.rewrite_keys import named

BASE = "base"


class Edge(BaseModel):
    """One stage of a pipeline file."""

    model_config = ConfigDict(extra="forbid")
    stage: str | None = Field(
        None, description="the program: a name from `align list`; defaults to the stage's own name"
    )
    policy: str | None = Field(None, description="the stage whose policy it starts from; defaults to the base model")
    reward: str | None = Field(None, description="the stage whose reward model scores its answers")


class Graph(BaseModel):
    """A pipeline file."""

    model_config = ConfigDict(extra="forbid")
    description: str = Field(min_length=1, description="one line for `align list`")
    stages: dict[str, Edge] = Field(min_length=1, description="the stages in order, each with its inputs")


@dataclass(frozen=True)
class Node:
    """A stage of a run.

    Attributes:
        policy: the id of the stage whose policy it takes, or `base` for the base model.
        reward: the stage that scores its answers, where the pipeline says so and the recipe's entry does not.
    """

    id: str
    program: Program
    policy: str
    reward: str | None = None


@dataclass
class _Wiring:
    """The edges of a recipe, and the files in which they are written."""

    recipe: Document
    graph: Document | None = None  # of the pipeline that the recipe names
    edges: dict[str, Edge] = field(default_factory=dict)

    def fault(self, id: str, key: str, what: str, remedy: str) -> AlignError:
        """A fault at the line that says `key` of a stage: the recipe's where it does, else the pipeline's."""
        loc = ("stages", id, key)
        entry = (self.recipe.data.get("stages") or {}).get(id)
        said_here = isinstance(entry, dict) and entry.get(key) is not None
        if self.graph is not None and not said_here and self.graph.has(loc):
            return self.graph.fault(loc, what, remedy)
        return self.recipe.fault(loc, what, remedy)

    def source(self, id: str) -> str:
        """The id whose policy a stage takes."""
        return self.edges[id].policy or BASE

    def rewards(self, id: str) -> list[str]:
        """The stages that score a stage's answers."""
        entry = (self.recipe.data.get("stages") or {}).get(id)
        return [name for name in named(entry) or named({"reward": self.edges[id].reward}) if name in self.edges]


def preset(name: str, root: Path = Path()) -> Graph:
    """A shipped pipeline, or a user's by path (from the current folder, or from `root`).

    Raises:
        AlignError: there is no such pipeline, or its file is wrong.
    """
    document = _read(name, root)
    return validate(document, Graph, document.data)


def _read(name: str, root: Path) -> Document:
    path = shipped.find("pipelines", name)
    if path is not None:
        return read(path)
    if name.endswith((".yaml", ".yml")):
        found = user_paths.find(name, root, Path.is_file)
        if found is None:
            raise AlignError(f"there is no pipeline file '{name}'", user_paths.START)
        return read(found, name)
    raise AlignError(f"there is no pipeline '{name}'", errors.did_you_mean(name, shipped.names("pipelines")))


def resolve(document: Document, root: Path, faults: FaultList) -> list[Node]:
    """The stages of a recipe in an order in which every input comes before its user.

    Reads `pipeline` (optional) and `stages.<id>.{stage, policy}` of the recipe's raw data.

    Args:
        faults: takes what is wrong: a stage that does not exist, an edge to a missing, later or wrong stage, a cycle.

    Returns:
        every stage whose program could be loaded, so that its own keys can be checked as well.
    """
    wiring = _wiring(document, root, faults)
    programs: dict[str, Program] = {}
    for id, edge in wiring.edges.items():
        try:
            programs[id] = load_program(edge.stage or id, root)
        except AlignError as error:
            faults.found.append(error if error.place else wiring.fault(id, "stage", error.what, error.remedy))
    for id in wiring.edges:
        with faults.collect():
            _check_edge(wiring, id, programs)
        with faults.collect():
            _check_rewards(wiring, id, programs)
    found = [id for id in wiring.edges if id in programs]
    return [Node(id, programs[id], wiring.source(id), wiring.edges[id].reward) for id in found]


def _wiring(document: Document, root: Path, faults: FaultList) -> _Wiring:
    """The graph: the preset's, with what the recipe's own entries say over it."""
    name, entries = document.data.get("pipeline"), document.data.get("stages")
    entries = entries if isinstance(entries, dict) else {}
    own = {id: Edge(stage=_text(entry, "stage"), policy=_text(entry, "policy")) for id, entry in entries.items()}
    _check_ids(document, own, faults)
    if not isinstance(name, str):
        return _Wiring(document, None, own)
    try:
        graph_document = _read(name, root)
        graph = validate(graph_document, Graph, graph_document.data)
    except AlignError as error:
        # the graph of the stages' entries alone: their own keys are still checked
        faults.found.append(error if error.place else document.fault(("pipeline",), error.what, error.remedy))
        return _Wiring(document, None, {id: Edge(stage=edge.stage) for id, edge in own.items()})
    for id in [id for id in own if id not in graph.stages]:
        remedy = errors.did_you_mean(id, graph.stages)
        faults.found.append(document.fault(("stages", id), f"the pipeline '{name}' has no stage '{id}'", remedy))
    for id in [id for id in graph.stages if id not in own]:
        what = f"the stage '{id}' of the pipeline '{name}' has no entry"
        faults.found.append(document.fault(("stages",), what, f"write `{id}: {{data: ...}}` under `stages:`"))
    edges = {
        id: Edge(stage=own[id].stage or edge.stage, policy=own[id].policy or edge.policy, reward=edge.reward)
        for id, edge in graph.stages.items()
        if id in own
    }
    return _Wiring(document, graph_document, edges)


def _text(entry: Any, key: str) -> str | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None


def _check_ids(document: Document, ids: Iterable[str], faults: FaultList) -> None:
    """The id of a stage is the name of its folder, and a part of the paths of `--set`."""
    for id in ids:
        if id == BASE:
            what = "a stage cannot be called 'base', which means the base model"
            faults.found.append(document.fault(("stages", id), what, "choose another name"))
        elif not STAGE_NAME.fullmatch(id):
            what = f"a stage cannot be called '{id}'"
            faults.found.append(document.fault(("stages", id), what, "use letters, digits, '_' and '-'"))


def _check_edge(wiring: _Wiring, id: str, programs: dict[str, Program]) -> None:
    source, order = wiring.source(id), list(wiring.edges)
    if source == BASE:
        return
    if source not in wiring.edges:
        known = [BASE, *order[: order.index(id)]]
        what = f"stage '{id}' takes its policy from '{source}', which is not a stage of this recipe"
        raise wiring.fault(id, "policy", what, errors.did_you_mean(source, known))
    if source in programs and programs[source].stage.gives != "policy":
        what = f"stage '{id}' takes its policy from '{source}', which gives a {programs[source].stage.gives}"
        raise wiring.fault(id, "policy", what, "choose a stage that trains a policy, or base")
    circle = _circle(id, wiring)
    if circle:
        if circle[0] == min(circle, key=order.index):  # said once, at its first stage
            told = " -> ".join(circle)
            what = f"the stages wait for each other: {told}" if len(circle) > 2 else f"stage '{id}' waits for itself"
            raise wiring.fault(id, "policy", what, "start one of them from base" if len(circle) > 2 else "use base")
    elif order.index(source) > order.index(id):
        what = f"stage '{id}' takes its policy from '{source}', which comes later"
        raise wiring.fault(id, "policy", what, f"write '{source}' above '{id}'")


def _check_rewards(wiring: _Wiring, id: str, programs: dict[str, Program]) -> None:
    """A reward comes from an earlier stage that gives one."""
    order = list(wiring.edges)
    for source in wiring.rewards(id):
        if source in programs and programs[source].stage.gives != "reward":
            what = f"stage '{id}' takes its reward from '{source}', which gives a {programs[source].stage.gives}"
            raise wiring.fault(
                id, "reward", what, "choose a stage that trains a reward model, such as one with `stage: reward`"
            )
        if order.index(source) >= order.index(id):
            what = f"stage '{id}' takes its reward from '{source}', which comes later"
            what = what if source != id else f"stage '{id}' waits for its own reward"
            raise wiring.fault(id, "reward", what, f"write '{source}' above '{id}'" if source != id else "name another")


def _circle(start: str, wiring: _Wiring) -> list[str]:
    """The way from a stage along its inputs back to itself; empty where there is none."""
    path, here = [start], wiring.source(start)
    while here in wiring.edges and here not in path:
        path.append(here)
        here = wiring.source(here)
    return [*path, here] if here == start else []
