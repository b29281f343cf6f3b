"""Where the scorer of a probe is: a function in a user's file, or a metric of `evaluate`. Neither is imported here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from align import user_paths
from align.errors import AlignError, Exit, Place
from align.forgetting.own.items import OwnItem
from align.forgetting.own.keys import EVALUATE, ProbeFile
from align.forgetting.own.kinds import Scorer
from align.functions import declared, imports
from align.run_folder import files

PURPOSE = "scorer"
GIVEN = ("prompt", "completion")  # what a function is given besides the fields of the row
_SPACES = ("evaluate-metric", "evaluate-comparison", "evaluate-measurement")  # where the Hub keeps canonical ones


def find(keys: ProbeFile, items: Iterable[OwnItem], root: Path, *, offline: bool) -> Scorer:
    """The scorer of a probe with greedy answers.

    Args:
        items: all items of the probe.
        offline: a metric is looked for in the caches only.

    Raises:
        AlignError: it is not there, or asks for what the rows do not have.
    """
    if keys.metric.startswith(EVALUATE):
        name = keys.metric.removeprefix(EVALUATE)
        script = _script(name, root, offline)
        _check_imports(name, script)
        return Scorer("evaluate", str(script), Path(name).stem, keys.field, files.file_sha256(script))
    named = declared.NAMED.fullmatch(keys.metric)
    if named is None:
        return Scorer(keys.metric)
    example = f"def {named['name'] or 'right'}(prompt, completion, answer)"
    found = declared.find(named["file"], named["name"], root, purpose=PURPOSE, example=example)
    for item in items:
        given = dict.fromkeys((*GIVEN, *(["answer"] if item.answer else []), *item.columns))
        if (missing := declared.missing(found, given)) is not None:
            has = ", ".join(given)
            what = f"the scorer '{found.name}' asks for '{missing}', which the row does not have"
            raise AlignError(what, f"it may ask for {has}; or give it a default", place=item.place)
    return Scorer("function", str(found.path), found.name, None, found.sha256)


def _script(name: str, root: Path, offline: bool) -> Path:
    """The Python script of a metric: one's own, or one that is cached or on the Hub."""
    for path in user_paths.candidates(name, root):
        script = path if path.suffix == ".py" else path / f"{path.resolve().name}.py"
        if script.is_file():
            return script.absolute()
        if path.is_dir() and name.startswith((".", "/", "~")):
            what = f"the folder '{name}' of the metric has no script '{script.name}'"
            raise AlignError(what, "name the script like its folder, as `evaluate` does")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise AlignError(f"there is no metric '{name}': neither a folder nor a script", user_paths.START)
    return _cached(name) or _of_hub(name, offline)


def _cached(name: str) -> Path | None:
    """The script that `evaluate` fetched before, the latest where there are several."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    modules = Path(os.environ.get("HF_MODULES_CACHE") or home / "modules").expanduser() / "evaluate_modules"
    folders = [name.replace("/", "--")] if "/" in name else [f"{space}--{name}" for space in _SPACES]
    script = f"{name.rpartition('/')[2]}.py"
    found = [path for folder in folders for path in modules.glob(f"*/{folder}/*/{script}")]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def _of_hub(name: str, offline: bool) -> Path:
    """Fetch the script of a metric, and what lies beside it, into the Hub's cache."""
    from huggingface_hub import constants, errors, snapshot_download

    no_answer: tuple[type[Exception], ...] = (OSError, getattr(errors, "HTTPError", OSError))
    spaces = [name] if "/" in name else [f"{space}/{name}" for space in _SPACES]
    cannot = offline or constants.is_offline_mode()
    for space in spaces:
        try:
            folder = snapshot_download(
                space, repo_type="space", allow_patterns="*.py", local_files_only=cannot, etag_timeout=5
            )
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            continue
        except no_answer:
            cannot = True
            continue
        script = Path(folder) / f"{name.rpartition('/')[2]}.py"
        if script.is_file():
            return script.absolute()
    if cannot:
        what = f"the metric '{name}' of `evaluate` is not in the local cache, and the Hub cannot be reached"
        raise AlignError(what, "connect to the network, or give a folder of your own, `evaluate:./my_metric`")
    remedy = "metrics are listed at https://huggingface.co/evaluate-metric; one of your own is `evaluate:./my_metric`"
    raise AlignError(f"`evaluate` has no metric '{name}'", remedy)


def _check_imports(name: str, script: Path) -> None:
    """Refuse a metric whose packages are missing: of one that a function imports, `evaluate` itself would say so only
    once the first answer is scored. And one whose imports `evaluate` misreads: it goes by lines."""
    found = imports.missing(script)
    for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"import\s+[^\s.#]*,", line):
            what = f"the metric '{name}' has an import that `evaluate` cannot read: `{line.strip()}`"
            raise AlignError(what, "write each import in a line of its own", place=Place(str(script), number, 1))
    if found is not None:
        where = f"line {found.line} of {found.file.name}"
        what = f"the metric '{name}' needs the package '{found.module}' ({where}), which is not installed"
        raise AlignError(what, found.install, exit=Exit.MACHINE)
