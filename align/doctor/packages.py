"""The packages that are installed, against the ranges that align was tested with."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator

from align.doctor.finding import Finding
from align.version import VERSION

DISTRIBUTION = "align-suite"
PYTHON = (3, 11)
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?P<range>[^;]*)(?:;\s*extra == \"(?P<extra>\w+)\")?")
_FOR = {  # what an extra is for
    "tensorboard": "the tracker of that name",
    "wandb": "the tracker of that name",
    "mlflow": "the tracker of that name",
    "trackio": "the tracker of that name",
    "eval": "tasks of lm-evaluation-harness as probes",
    "deepspeed": "`launch: {engine: deepspeed}`",
    "tune": "`align tune`",
}


def look() -> Iterator[Finding]:
    """Python, align, what it requires, and its extras."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding("Python", "fault", f"{version}, but align needs 3.11 or newer", "make install PYTHON=python3.11")
    else:
        yield Finding("Python", "ok", f"{version}, {sys.executable}")
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("align", "fault", f"{VERSION}, a checkout that is not installed", "make install")
        return
    yield Finding("align", "ok", VERSION)
    found = [one for one in map(_REQUIREMENT.fullmatch, lines) if one is not None]
    yield from (_required(one["name"], one["range"]) for one in found if one["extra"] is None)
    extras = dict.fromkeys(one["extra"] for one in found if one["extra"] in _FOR)
    for extra in extras:
        yield _extra(extra, [(one["name"], one["range"]) for one in found if one["extra"] == extra])


def _required(name: str, range_: str) -> Finding:
    version = installed(name)
    install = f"pip install '{name}{range_}'"
    if version is None:
        return Finding(name, "fault", "not installed", install)
    if not is_within(version, range_):
        return Finding(name, "fault", f"{version}, but align was tested with {range_}", install)
    return Finding(name, "ok", version)


def _extra(extra: str, packages: list[tuple[str, str]]) -> Finding:
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    for name, range_ in packages:
        version = installed(name)
        if version is None:
            return Finding(extra, "note", f"not installed; only for {_FOR[extra]}", install)
        if not is_within(version, range_):
            return Finding(extra, "fault", f"{name} {version}, but align was tested with {range_}", install)
    return Finding(extra, "ok", ", ".join(f"{name} {installed(name)}" for name, _ in packages))


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_within(version: str, range_: str) -> bool:
    """Whether a version is in a range; taken for so where `packaging`, which compares them, is missing itself."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(range_).contains(version, prereleases=True)
