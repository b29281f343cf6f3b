"""A graph of stages: which there are, and whose output each one takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from align import shelf, stage
from align.document import Document, read, validate
from align.errors import AlignError, FaultList

BASE = "base"


class Edge(BaseModel):
    """One stage of a pipeline file."""

    model_config = ConfigDict(extra="forbid")
    stage: str | None = None
    policy: str | None = None


class Graph(BaseModel):
    """A pipeline file."""

    model_config = ConfigDict(extra="forbid")
    description: str = Field(min_length=1)
    stages: dict[str, Edge] = Field(min_length=1)


@dataclass(frozen=True)
class Node:
    """A stage of a run: its id, its program, and the id whose policy it takes (`base` for the base model)."""

    id: str
    program: stage.Program
    policy: str


def preset(name: str) -> Graph:
    """A shipped pipeline, or a user's by path.

    Raises:
        AlignError: there is no such pipeline, or its file is wrong.
    """
    path = shelf.find("pipelines", name)
    if path is None and name.endswith((".yaml", ".yml")):
        path = Path(name)
    if path is None:
        raise AlignError(f"there is no pipeline '{name}'", shelf.did_you_mean(name, shelf.names("pipelines")))
    document = read(path)
    return validate(document, Graph, document.data)


def resolve(document: Document, root: Path) -> list[Node]:
    """The stages of a recipe in an order in which every input comes before its user.

    Reads `pipeline` (optional) and `stages.<id>.{stage, policy}` of the recipe's raw data.

    Raises:
        AlignError, Faults: a stage that does not exist, an edge to a missing, later or wrong stage, a cycle.
    """
    edges = _edges(document)
    faults = FaultList()
    programs: dict[str, stage.Program] = {}
    for id, edge in edges.items():
        try:
            programs[id] = stage.load(edge.stage or id, root)
        except AlignError as error:
            named = ("stages", id, "stage") if edge.stage else ("stages", id)
            faults.found.append(error if error.place else document.fault(named, error.what, error.remedy))
    for id, edge in edges.items():
        source = edge.policy or BASE
        if source == BASE:
            continue
        if source not in edges:
            remedy = shelf.did_you_mean(source, [BASE, *(other for other in edges if other != id)])
            faults.found.append(document.fault(("stages", id, "policy"), f"stage '{id}' takes its policy from '{source}', "
                                               "which is no stage of this recipe", remedy))
        elif source in programs and programs[source].stage.gives != "policy":
            faults.found.append(document.fault(
                ("stages", id, "policy"), f"stage '{id}' takes a policy from '{source}', which gives a "
                f"{programs[source].stage.gives}", "name a stage that gives a policy, or base"))
    faults.raise_any()
    return [Node(id, programs[id], edges[id].policy or BASE) for id in _ordered(document, edges)]


def _edges(document: Document) -> dict[str, Edge]:
    """The graph: the preset's, with what the recipe's own entries say over it."""
    name, entries = document.data.get("pipeline"), document.data.get("stages") or {}
    own = {id: Edge(stage=_text(entry, "stage"), policy=_text(entry, "policy")) for id, entry in entries.items()}
    if name is None:
        return own
    try:
        graph = preset(str(name))
    except AlignError as error:
        raise error if error.place else document.fault(("pipeline",), error.what, error.remedy) from None
    faults = FaultList()
    for id in own:
        if id not in graph.stages:
            faults.found.append(document.fault(("stages", id), f"the pipeline '{name}' has no stage '{id}'",
                                               shelf.did_you_mean(id, graph.stages)))
    for id in graph.stages:
        if id not in own:
            faults.found.append(document.fault(("stages",), f"the stage '{id}' of the pipeline '{name}' has no entry",
                                               f"write `{id}: {{data: ...}}` under `stages`"))
    faults.raise_any()
    return {id: Edge(stage=own[id].stage or edge.stage, policy=own[id].policy or edge.policy)
            for id, edge in graph.stages.items()}


def _text(entry: Any, key: str) -> str | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None


def _ordered(document: Document, edges: dict[str, Edge]) -> list[str]:
    """The order of the file; an edge that points forward is a fault, a circle is named as one."""
    order: list[str] = []
    for id, edge in edges.items():
        source = edge.policy or BASE
        if source == BASE or source in order:
            order.append(id)
            continue
        circle = _circle(id, edges)
        if circle:
            raise document.fault(("stages", id, "policy"), f"the stages {' -> '.join(circle)} wait for each other",
                                 "let one of them start from base")
        raise document.fault(("stages", id, "policy"), f"stage '{id}' takes its policy from '{source}', which comes later",
                             f"write '{source}' above '{id}'")
    return order


def _circle(start: str, edges: dict[str, Edge]) -> list[str]:
    path, here = [start], edges[start].policy or BASE
    while here != BASE and here not in path:
        path.append(here)
        here = edges[here].policy or BASE
    return [*path[path.index(here):], here] if here in path else []
