"""Values, names and paths that no recipe should have: a sentence with their place, quickly, and never a traceback."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from align import lab
from align.errors import AlignError, Faults
from align.recipe import document
from align.recipe.load import load, locate
from align.runner.lines import line

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 2020-13-45", "r.yaml:1:4: this value cannot be read"),
        ("a: 2020-01-01T25:61:61Z", "r.yaml:1:4: this value cannot be read"),
        ("a: !!int x", "r.yaml:1:4: this value cannot be read"),
        ('a: !!int ""', "r.yaml:1:4: this value cannot be read"),
        ("a: !!float x", "r.yaml:1:4: this value cannot be read"),
        ("a: !!bool x", "r.yaml:1:4: this value cannot be read"),
        ("a: " + "9" * 5000, "r.yaml:1:4: this value cannot be read"),
        ("{!!int key: 1}", "r.yaml:1:2: this value cannot be read"),
        ('a: "\\U00110000"', "r.yaml: a value cannot be read"),
        ("a: !!set x", "r.yaml:1:4: the tag !!set has no place in a recipe"),
        ("a: !foo x", "r.yaml:1:4: the tag !foo has no place in a recipe"),
        ("a: !!omap x", "r.yaml:1:4: the tag !!omap has no place in a recipe"),
        ("a: {!!pairs [a: 1]: 0.1}", "r.yaml:1:5: a key must be text"),
        ("b: 1\n{[{}]: x}: 2", "r.yaml:2:1: a key must be text"),
        ("a: 1" + "0" * 400, "r.yaml:1:4: this number is too large"),
        ("a: 10000000000000000000000", "r.yaml:1:4: this number is too large"),
        ("a: 0x" + "f" * 6000, "r.yaml:1:4: this number is too large"),
        ('a: "\\e[31m"', "r.yaml:1:4: this text contains a control character"),
        ('a: "\\ud800"', "r.yaml:1:4: this text contains a control character or half of a character"),
        (BOMB, "r.yaml:5:17: there are more than 50,000 values up to here"),
        ("a: " + "[" * 20000, "r.yaml:1:53: there are more than 50 mappings and lists within each other"),
        ("- " * 3000, "r.yaml:1:101: there are more than 50 mappings and lists within each other"),
        ("a: &x [*x]", "r.yaml:1:8: an anchor contains itself"),
        ("a: " + "x" * 10_000_000, "r.yaml: the file is longer than 1,000,000 characters"),
    ],
)
def test_yaml_that_no_recipe_should_have(text: str, says: str) -> None:
    began = time.process_time()
    with pytest.raises(AlignError) as error:
        document.parse(text, "r.yaml")
    assert str(error.value).startswith(says) and error.value.remedy
    assert time.process_time() - began < 5
    if text[0] != "{" and len(text) < 20 and "\n" not in text and ": " in text:
        with pytest.raises(AlignError) as error:
            document.Document("r.yaml", {}).set(text.replace(": ", "=", 1))
        assert str(error.value).startswith("--set ")


def test_aliases_and_merge_keys_are_read_as_ever() -> None:
    text = "a: &x {b: 1, c: [2, 3]}\nd: {<<: *x, b: 4}\ne: *x\nf: 2020-01-01\ng: !!str 5\n"
    found = document.parse(text, "r.yaml").data
    assert found["d"] == {"b": 4, "c": [2, 3]} and found["e"] == found["a"]
    assert (found["f"], found["g"]) == ("2020-01-01", "5")


LONG = "l" * 300
PLACES = [
    "model.base=./{}",
    "model.chat_template={}.jinja",
    "pipeline=./{}.yaml",
    "stages.sft.stage=./{}.py",
    "stages.sft.data={}",
    "stages.sft.data={}.jsonl",
    "stages.sft.data={}/*.jsonl",
    "stages.sft.eval_data={}.jsonl",
    "replay={{data: {}.jsonl, ratio: 0.1}}",
    "notify.command=./{}",
]


def told(folder: Path, *changes: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text("name: odd\nmodel: {base: lab}\nstages:\n  sft: {data: lab/helpdesk}\n", encoding="utf-8")
    from align.preflight.check import prepare

    try:
        prepare(load(path, changes))
    except (AlignError, Faults) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [LONG, "~nosuchuser/x"])
def test_a_path_that_no_file_can_have_is_one_that_is_not_there(place: str, name: str, tmp_path: Path) -> None:
    said = told(tmp_path, place.format(name))
    assert "there is no" in said or "no file matches" in said or "notify" in place


def test_a_recipe_or_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="there is no recipe"):
        locate(LONG)
    recipe = runs.write(tmp_path)
    said = runs.align("run", str(recipe), "--run-dir", str(tmp_path / LONG), code=4).stderr
    assert "cannot be opened: File name too long" in " ".join(said.split())
    said = runs.align("merge", str(tmp_path / "out"), LONG, "~nosuchuser/x", code=4).stderr
    assert "Traceback" not in said


def test_a_template_or_a_stage_that_is_no_text_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "odd.jinja").write_bytes(b"{{ messages }}\n\xff\xfe")
    assert "odd.jinja:2: the byte 0xff is not UTF-8" in told(tmp_path, "model.chat_template=odd.jinja")
    (tmp_path / "odd.py").write_bytes(b"# \xff")
    assert "odd.py:1: the byte 0xff is not UTF-8" in told(tmp_path, "stages.sft.stage=./odd.py")
    (tmp_path / "large.jinja").write_bytes(b"x" * 10_000_001)
    assert "the file is larger than 10 MB" in told(tmp_path, "model.chat_template=large.jinja")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc")
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.jinja").symlink_to("/proc/self/mem")
    assert "odd.jinja: the file or folder cannot be read: Input/output error" in told(
        tmp_path, "model.chat_template=odd.jinja"
    )


def test_a_pattern_over_the_whole_disk_is_refused(tmp_path: Path) -> None:
    assert "the pattern '/**/*.zzz' would search the whole disk" in told(tmp_path, "stages.sft.data=/**/*.zzz")


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder, given by mistake, would be walked through for a minute."""
    monkeypatch.setattr("align.data.sources.MOST", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").touch()
    assert "holds more than 3 files" in told(tmp_path, f"stages.sft.data={tmp_path}")


@pytest.mark.parametrize("name", ["odd.txt", "odd.csv", "odd.jsonl", "odd.json"])
def test_text_of_another_encoding_is_refused(name: str, tmp_path: Path) -> None:
    """Without a mark at its beginning UTF-16 is valid UTF-8, full of NULs."""
    text = "first\n" if name.endswith("txt") else '{"text": "a"}\n'
    (tmp_path / name).write_bytes(text.encode("utf-16-le"))
    assert f"{name}:1: the line contains NUL characters" in told(tmp_path, f"stages.sft.data={tmp_path / name}")


def lab_but(folder: Path, change: Callable[[Path], Any]) -> str:
    """What is said of the lab's model with one of its files changed."""
    base = folder / "base"
    shutil.copytree(lab.MODEL_DIR, base)
    change(base)
    return told(folder, "model.base=./base")


def changed(name: str, **keys: Any) -> Callable[[Path], Any]:
    """A JSON file with some keys changed."""

    def change(base: Path) -> None:
        path = base / name
        found = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**found, **keys}))

    return change


def linked(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("gone")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda base: (base / "chat_template.jinja").write_bytes(b"\xff"), "the chat_template.jinja of the model"),
        (linked, "the model.safetensors of the model './base' is a link to nothing"),
        (lambda base: (base / "generation_config.json").write_text(""), "the generation_config.json of the model"),
        (changed("config.json", rope_parameters=1.5), "has a rope_parameters that is not a mapping, but 1.5"),
        (changed("config.json", text_config=[1]), "has a text_config that is not a mapping, but a list"),
        (lambda base: (base / "config.json").write_text("[" * 100_000), "the config.json of the model"),
        (lambda base: (base / "config.json").write_text(f'{{"a": {"9" * 5000}}}'), "the config.json of the model"),
    ],
)
def test_a_damaged_model_is_told(change: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    assert says in lab_but(tmp_path, change)


@pytest.mark.parametrize(
    "change",
    [
        changed("tokenizer_config.json", extra_special_tokens=256),
        changed("tokenizer.json", added_tokens=[{"id": 3}, {"id": 4, "content": ["a"]}, {"id": [], "content": "a"}, 5]),
        changed("tokenizer.json", model={"vocab": 3}),
    ],
)
def test_odd_tokens_do_not_trace_back(change: Callable[[Path], Any], tmp_path: Path) -> None:
    lab_but(tmp_path, change)


def test_what_a_terminal_obeys_is_shown(tmp_path: Path) -> None:
    assert line("a\x1b]0;title\x07\n\tb\x9b", "note").plain == "note a\\x1b]0;title\\x07\n\tb\\x9b"


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    import subprocess

    recipe = runs.write(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    words = [runs.ALIGN[0], "-P", *runs.ALIGN[1:], "check", str(recipe)]
    script = f"cd {gone}; rmdir {gone}; exec {' '.join(words)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the current folder was deleted" in done.stderr and "Traceback" not in done.stderr
