"""The documentation says what the code does: keys and defaults, names, links, command lines and examples."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from ruamel.yaml import YAML

from align import shipped
from align.cli.commands import app
from align.data.fields import FIELDS
from align.data.formats import FORMATS, normalise
from align.data.marks import MARKS
from align.data.rows import Row
from align.errors import Place
from align.parameterization import method
from align.recipe import document, load, pipeline, training_arguments
from align.recipe import keys as recipe_keys
from align.recipe.json_schema import recipe_schema
from align.recipe.validation import validate
from align.rl import health
from align.rl.ppo_keys import KlKeys, PpoKeys
from align.rl.rollouts import Rollout
from align.stage import keys, program

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "llms.txt", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"errors.md"}  # shows command lines that are wrong on purpose
RECIPES = ROOT / "docs" / "recipes.md"  # a recipe at a glance; its pages, by subject:
SUBJECTS = ROOT / "docs" / "recipes"
PPO = ROOT / "docs" / "ppo.md"
STAGES = ROOT / "docs" / "stages.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NO_DEFAULT = ("", "below", "as above")  # what a table says where the schema has no default, or a mapping of many

Schema = dict[str, Any]


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def id_of(page: object) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


@functools.cache
def recipes() -> str:
    """The pages about recipes as one text."""
    return "\n".join(page.read_text(encoding="utf-8") for page in (RECIPES, *sorted(SUBJECTS.glob("*.md"))))


@functools.cache
def tables() -> dict[str, dict[str, str]]:
    """Those of the pages about recipes that stand under `<!-- keys: NAME -->`: key -> default as written."""
    found: dict[str, dict[str, str]] = {}
    marked = r"<!-- keys: (\w+) -->\n\|.*\n\|[-|]+\n((?:\|.*\n)+)"
    for name, rows in re.findall(marked, recipes()):
        assert name not in found, f"two tables of {name}"
        cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows.splitlines()]
        found[name] = {key.strip("`"): default for key, default in cells}
    return found


def fields(model: type[BaseModel]) -> Schema:
    """As properties of a schema, with the defaults that it leaves out."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    return {name: {} if name in required else {"default": default} for name, default in defaults.items()}


def properties(part: Schema) -> Schema:
    """Those of a mapping, also where it is one of several forms."""
    found: Schema = next(form["properties"] for form in [part, *part.get("anyOf", [])] if "properties" in form)
    return found


@functools.cache
def expected() -> dict[str, Schema]:
    """The properties of each part of the schema; a stage's own keys apart from those that every stage has."""
    schema = recipe_schema()
    parts = {name: properties(part) for name, part in schema["$defs"].items() if name != "stage"}
    parts["Recipe"] = fields(recipe_keys.Recipe)
    parts["StageKeys"] = fields(keys.StageKeys)
    for name in shipped.names("stages"):
        own = program.load(name, Path()).stage.keys.model_json_schema()["properties"]
        parts[name] = {key: value for key, value in own.items() if key not in parts["StageKeys"]}
    return parts


@pytest.mark.parametrize("name", sorted(expected()))
def test_every_key_of_a_recipe_is_documented_and_no_other(name: str) -> None:
    assert set(tables()[name]) == set(expected()[name])


@pytest.mark.parametrize("name", sorted(expected()))
def test_every_documented_default_is_the_default(name: str) -> None:
    for key, written in tables()[name].items():
        known = expected()[name][key]
        if written in NO_DEFAULT or written.startswith("["):  # a link to the part that says it
            assert isinstance(known.get("default", {}), dict | BaseModel), (
                f"{name}.{key} has the default {known['default']!r}"
            )
        else:
            default = YAML(typ="safe", pure=True).load(written.strip("`"))
            assert default == known.get("default"), f"{name}.{key}"


def test_the_training_defaults_are_as_documented() -> None:
    text = recipes().partition("<!-- defaults: training -->")[2].partition("\n\n")[0]
    written = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", text, re.MULTILINE))
    plan = load.load(ROOT / "recipes" / "sft_lora.yaml", ["stages.sft.training={}"]).stages[0]
    own = plan.program.stage.defaults["adapter"]
    common = {key: value for key, value in plan.training.items() if key not in own}
    assert {key: YAML(typ="safe", pure=True).load(value) for key, value in written.items()} == common


@pytest.mark.parametrize("name", shipped.names("stages"))
def test_the_defaults_of_a_stage_are_as_documented(name: str) -> None:
    """A row of the table: base weights trained, adapters trained, and what holds for either."""
    row = next(line for line in recipes().splitlines() if line.startswith(f"| `{name}` | `lea"))
    read = YAML(typ="safe", pure=True).load
    cells = [{key: read(value) for key, value in re.findall(r"`(\w+): ([^`]+)`", cell)} for cell in row.split("|")[2:5]]
    written = dict(zip(("full", "adapter", "all"), cells, strict=True))
    defaults = program.load(name, Path()).stage.defaults
    assert {family: arguments for family, arguments in written.items() if arguments} == defaults


def test_every_page_about_recipes_is_in_their_index() -> None:
    named = {target.partition("#")[0] for target in re.findall(r"\]\((recipes/[^)]+)\)", RECIPES.read_text("utf-8"))}
    assert named == {f"recipes/{page.name}" for page in SUBJECTS.iterdir()}


def test_all_that_ships_is_named() -> None:
    text = recipes()
    names = [
        *shipped.names("recipes"),
        *shipped.names("pipelines"),
        *shipped.names("stages"),
        *method.files(),
        *FORMATS,
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names that headings have as link targets."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[Path, str]]:
    """Every `align ...` in a block of shell, on a line of its own in a plain block, or between backticks."""
    found = []
    for page in PAGES:
        if page.name in GENERATED:
            continue
        text = page.read_text(encoding="utf-8")
        shell = [block.replace("\\\n", "") for block in blocks(page, "bash", "console")]  # a command may go on below
        lines = [line for block in shell for line in block.splitlines()]
        lines += re.findall(r"^    (align .+)$", text, re.MULTILINE)
        lines += [" ".join(line.split()) for line in re.findall(r"`(align [^`]+)`", FENCE.sub("", text))]
        found += [(page, line.strip()) for line in lines if line.strip().startswith("align ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=id_of)
def test_every_command_line_parses(page: Path, line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    command, name, rest, context = typer.main.get_command(app), "align", words[1:], None
    known = command.commands  # type: ignore[attr-defined]
    if len(words) == 2 or words[2:] in [[inner] for inner in getattr(known.get(words[1]), "commands", ())]:
        assert words[1] in {*known, "--help"}  # a command is mentioned, not shown
        return
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    given = str(context.params.get("recipe") or "")
    if given.startswith(("recipes/", "docs/")) and given != "recipe.yaml":
        loaded = load.load(ROOT / given, context.params["set"])
        ids = [plan.id for plan in loaded.stages]
        assert {context.params.get("from_stage"), context.params.get("only")} <= {None, *ids}


def test_commands_are_found() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_yaml_blocks_are_recipes_or_pipelines(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs" / "examples")  # where ./chosen_answers.py is
    for number, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        read = document.read(path)
        if "description" in read.data:
            validate(read, pipeline.Graph, read.data)
        elif "stages" in read.data:
            load.load(path)
        else:  # a part of one
            path.write_text(
                block + "\nname: x\nmodel: {base: lab}\nstages: {sft: {data: lab/helpdesk}}\n", encoding="utf-8"
            )
            load.load(path)


def test_example_rows_are_of_the_format_above_them() -> None:
    text = (SUBJECTS / "model_and_data.md").read_text(encoding="utf-8").partition("### Formats")[2]
    shown = re.findall(r"^`(\w+)`[^\n]*(?:\n[^\n]+)*:\n\n```json\n(.+)\n```", text, re.MULTILINE)
    assert {name for name, _ in shown} == set(FORMATS)
    for name, row in shown:
        kind = FORMATS[name][1]
        assert normalise(Row(json.loads(row), Place("docs")), "auto").kind == kind
        normalise(Row(json.loads(row), Place("docs")), name)


def test_every_name_of_a_field_and_of_a_mark_is_documented() -> None:
    text = (SUBJECTS / "model_and_data.md").read_text(encoding="utf-8")
    text = text.partition("### Formats")[2].partition("### Evaluation data")[0]
    assert [name for name in sorted(FIELDS | set(MARKS)) if f"`{name}`" not in text] == []


def test_named_training_arguments_exist() -> None:
    text = (SUBJECTS / "stages.md").read_text(encoding="utf-8")
    text = text.partition("## training")[2].partition("A name that TRL")[0]
    names = re.findall(r"`([a-z_]+)`", text)
    assert len(names) > 8
    assert [name for name in names if name not in training_arguments.open_to_users("SFTConfig")] == []


def test_the_example_stage_loads() -> None:
    loaded = load.load(ROOT / "docs" / "examples" / "chosen_answers.yaml")
    plan = loaded.stages[0]
    assert plan.program.name == "./chosen_answers.py"
    assert plan.keys.max_words == 40  # type: ignore[attr-defined]
    declared = next(block for block in blocks(ROOT / "docs" / "stages.md", "python") if block.startswith("STAGE"))
    source = (ROOT / "docs" / "examples" / "chosen_answers.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(declared).body[0]) == ast.dump(ast.parse(source).body[-1])


def rows_below(page: Path, start: str) -> list[list[str]]:
    """The cells of the first table after a text."""
    table = page.read_text(encoding="utf-8").partition(start)[2].partition("\n|")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


def test_every_key_of_ppo_is_explained() -> None:
    own = set(PpoKeys.model_fields) - set(keys.StageKeys.model_fields) - {"kl"}
    explained = [row[0].strip("`") for row in rows_below(PPO, "## Keys")]
    assert sorted(explained) == sorted({*own, *(f"kl.{key}" for key in KlKeys.model_fields)})


def test_the_training_arguments_of_ppo_exist() -> None:
    names = [
        name for row in rows_below(PPO, "<!-- arguments: RLOOConfig -->") for name in re.findall(r"`(\w+)`", row[0])
    ]
    declared = program.load("ppo", Path()).stage
    assert declared.defaults["all"].keys() - {"lr_scheduler_type"} <= set(names)
    known = training_arguments.open_to_users("RLOOConfig", declared.reserved)
    assert [name for name in names if name not in known] == []


def test_every_figure_of_a_rollout_is_explained() -> None:
    named = {name for row in rows_below(PPO, "## Reading a run") for name in re.findall(r"`([\w/]+)`", row[0])}
    kept = {field.name for field in dataclasses.fields(Rollout)} - {"number", "step", "episodes", "alarms"}
    logged = {"kl_coef", "loss/policy", "loss/value", "loss/ptx"}
    assert named == kept | logged


LIMITS = {
    "not_finite": (),
    "kl_explosion": (
        f"{health.KL_EXPLODED:g} x",
        f"{health.KL_LIMIT:g} nats",
        f"{health.KL_NEGATIVE:g} nats",
        f"{health.RATIO_EXPLODED:g}-fold",
    ),
    "reward_hacking": (f"{health.KL_FAR:g} x", f"{health.LENGTH_FAR:g} x", f"than {health.REPETITION_FAR:g} above"),
    "mode_collapse": (f"{health.DISTINCT_LEFT:g} of the start's", f"{health.ENTROPY_LEFT:g} of the start's"),
    "dead_critic": (f"{health.CRITIC_WINDOW} rollouts", f"{health.CRITIC_ROLLOUTS}th"),
    "clipped": (f"{health.CLIPPED:.0%}".replace("%", " %"),),
    "no_end": (f"{health.NEVER_ENDS:.0%}".replace("%", " %"), "surely more than half"),
    "missing_eos": (f"{health.CUT_OFF:.0%}".replace("%", " %"), f"{100 * health.CUT_OFF_RISE:g} points"),
    "flat_reward": ("1e-8", "1e-6"),
}


def test_every_alarm_is_explained_with_its_limits() -> None:
    raised = {row[0].strip("`"): row[1] for row in rows_below(PPO, "<!-- alarms -->")}
    assert list(raised) == list(health.REMEDIES)
    missing = [(name, limit) for name, limits in LIMITS.items() for limit in limits if limit not in raised[name]]
    assert missing == []
    assert (health.FLAT, health.FLAT_SHARE) == (1e-8, 1e-6)
    text = PPO.read_text(encoding="utf-8").partition("## Alarms")[2]
    assert f"first {health.START} rollouts" in text and f"in {health.IN_A_ROW} rollouts in a row" in text
    assert f"more than {health.RISE_ERRORS:g} standard errors" in text


@pytest.mark.parametrize("name", shipped.names("stages"))
def test_the_table_of_stages_is_what_they_declare(name: str) -> None:
    rows = {row[0].partition("`")[2].partition("`")[0]: row[1:] for row in rows_below(STAGES, "<!-- stages -->")}
    assert set(rows) == set(shipped.names("stages"))
    taken, gives, replays, evaluates, own = rows[name]
    declared = program.load(name, Path()).stage
    assert set(re.findall(r"`(\w+)`", taken)) == declared.rows
    assert gives == f"`{declared.gives}`"
    assert (replays, evaluates) == tuple("yes" if flag else "no" for flag in (declared.replays, declared.evaluates))
    assert set(re.findall(r"`(\w+)`", own)) == set(declared.keys.model_fields) - set(keys.StageKeys.model_fields)
