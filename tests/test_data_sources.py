"""Where rows come from, and that every fault names its true line."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from align.data.layout import Wanted, by_name, by_readme, glob_pattern, split_of
from align.data.sources import DataSource, identity, read, scan
from align.errors import AlignError

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file under the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows_of(source: str, **keys: Any) -> list[tuple[str, Any]]:
    """Place and value of each row."""
    found = read(DataSource(source=source, **keys), root=Path.cwd())
    return [(str(row.place), row.value) for row in found]


def faults_of(source: str, **keys: Any) -> list[str]:
    found = scan(DataSource(source=source, **keys), root=Path.cwd())
    return [str(each) for each in found if isinstance(each, AlignError)]


def test_jsonl_keeps_its_line_numbers_over_blank_lines_and_odd_separators(write: Write) -> None:
    write("a.jsonl", '\ufeff{"text": "one\u2028still one"}\r\n\n  \n{"text": "two"}')
    assert rows_of("a.jsonl") == [("a.jsonl:1", {"text": "one\u2028still one"}), ("a.jsonl:4", {"text": "two"})]


def test_every_broken_line_is_reported_with_its_own_line_and_column(write: Write) -> None:
    lines = [b'{"text": "fine"}', b'{"text": }', b'{"text": "a" "b"}', b"[1, 2]", b'{"text": "caf\xe9"}', b'{"a": 1} x']
    write("a.jsonl", b"\n".join([*lines, b'{"text": "cut of']))
    assert faults_of("a.jsonl") == [
        "a.jsonl:2:10: malformed JSON: expected a value\n  -> correct the file there",
        "a.jsonl:3:14: malformed JSON: expected a comma or the closing bracket\n  -> correct the file there",
        'a.jsonl:4: the row is a list, not an object\n  -> write each row as an object: {"field": ...}',
        "a.jsonl:5: the byte 0xe9 is not UTF-8\n  -> save the file as UTF-8",
        "a.jsonl:6:10: malformed JSON: expected the end of the line, but there is more\n  -> correct the file there",
        "a.jsonl:7:10: malformed JSON: the string that starts here has no closing quote\n  -> correct the file there",
    ]
    assert len(list(scan(DataSource(source="a.jsonl"), root=Path.cwd()))) == 7


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a": 1, "a": 2}', "the row has the field 'a' twice\n  -> keep one of the two"),
        (
            '{"a": "\\ud83d"}',
            "the row contains half of a surrogate pair, which is not a valid character\n"
            "  -> write the complete character",
        ),
        ('{"a": %s}' % ("9" * 5000), "a value of the row is nested too deeply or has too many digits\n  -> shorten it"),
        ("[" * 90_000, "a value of the row is nested too deeply or has too many digits\n  -> shorten it"),
    ],
)
def test_json_that_python_would_take_or_choke_on_is_refused(write: Write, line: str, fault: str) -> None:
    write("a.jsonl", '{"a": "\\ud83d\\ude00"}\n' + line)
    assert faults_of("a.jsonl") == [f"a.jsonl:2: {fault}"]


def test_rows_of_a_json_array_stand_where_they_begin(write: Write) -> None:
    value = [{"text": "one\ntwo", "deep": {"list": [1, {"x": 2}]}}, {"text": "]"}, {"text": "{"}]
    text = "\n\n" + json.dumps(value, indent=3)
    write("a.json", text)
    begins = [number for number, line in enumerate(text.split("\n"), start=1) if line == "   {"]
    assert rows_of("a.json") == [(f"a.json:{line}", each) for line, each in zip(begins, value, strict=True)]


def test_a_json_object_around_one_list_gives_the_rows_of_the_list(write: Write) -> None:
    write("a.json", '{"version": {"n": [1]},\n "data": [\n{"text": "one"},\n{"text": "two"}], "by": "us"}')
    assert rows_of("a.json") == [("a.json:3", {"text": "one"}), ("a.json:4", {"text": "two"})]
    write("b.json", '{"messages": [{"role": "user", "content": "x"}]}')
    assert rows_of("b.json") == [("b.json:1", {"messages": [{"role": "user", "content": "x"}]})]
    write("c.json", '{"good": [], "bad": []}')
    assert faults_of("c.json") == [
        "c.json:1: the file is one object with 2 lists, and it is unclear which of them has the rows\n"
        "  -> write an array of objects, or one object per line"
    ]


def test_json_files_that_hold_lines_and_lines_files_that_hold_an_array(write: Write) -> None:
    write("a.json", '{"text": "one"}\n{"text": "two"}\n')
    assert rows_of("a.json") == [("a.json:1", {"text": "one"}), ("a.json:2", {"text": "two"})]
    write("b.json", '{"text": "one",}\n{"text": "two"}\n')
    assert [fault.split(":")[1] for fault in faults_of("b.json")] == ["1"]
    write("c.jsonl", '[\n{"text": "one"},\n{"text": "two"}\n]')
    assert rows_of("c.jsonl") == [("c.jsonl:2", {"text": "one"}), ("c.jsonl:3", {"text": "two"})]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[{"a": 1},\n {"a": 2}', "2:10: malformed JSON: expected a comma or the closing bracket ]"),
        ('[{"a": 1},\n]', "1:10: malformed JSON: there is an extra comma before ]"),
        ('[{"a": 1}]\n{', "2:1: malformed JSON: expected the end of the file, but there is more"),
        ('[{"a": 1},\n {"a" 2}]', "2:7: malformed JSON: expected a colon after the field name"),
        ('[{"a": 1},\n {a: 2}]', "2:3: malformed JSON: expected a field name in double quotes"),
    ],
)
def test_a_malformed_array_names_line_and_column(write: Write, text: str, fault: str) -> None:
    write("a.json", text)
    assert faults_of("a.json") == [f"a.json:{fault}\n  -> correct the file there"]


def test_csv_names_the_physical_line_of_a_record(write: Write) -> None:
    write("a.csv", 'prompt,completion\r\n"two\nlines, ""quoted""",yes\r\n\r\nshort\r\nlast,"x\n\ny"\r\nend,z\r\n')
    assert faults_of("a.csv") == [
        "a.csv:5: the record has 1 cell, but the header has 2 columns\n"
        "  -> quote values that contain the separator or a line break"
    ]
    found = scan(DataSource(source="a.csv"), root=Path.cwd())
    assert [(str(each.place), each.value) for each in found if not isinstance(each, AlignError)] == [
        ("a.csv:2", {"prompt": 'two\nlines, "quoted"', "completion": "yes"}),
        ("a.csv:6", {"prompt": "last", "completion": "x\n\ny"}),
        ("a.csv:9", {"prompt": "end", "completion": "z"}),
    ]


def test_csv_with_a_forgotten_quote_or_a_repeated_column(write: Write) -> None:
    write("a.csv", 'text\nfine\n"never closed\nmore\n')
    assert faults_of("a.csv") == [
        "a.csv:3: the record is not well-formed: unexpected end of data\n"
        '  -> put values in double quotes, and write a double quote inside a value as ""'
    ]
    write("b.tsv", "text\ttext\nx\ty\n")
    assert faults_of("b.tsv") == ["b.tsv:1: the header has the column 'text' twice\n  -> rename one of the two"]


def test_text_parquet_and_gzip(write: Write, tmp_path: Path) -> None:
    write("a.txt", "one passage\n\n  another \n")
    assert rows_of("a.txt") == [("a.txt:1", {"text": "one passage"}), ("a.txt:3", {"text": "  another "})]
    write("b.jsonl.gz", gzip.compress(b'{"text": "x"}\n'))
    assert rows_of("b.jsonl.gz") == [("b.jsonl.gz:1", {"text": "x"})]
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "turns": [[{"a": "b"}], None]}), tmp_path / "c.parquet")
    assert rows_of("c.parquet") == [
        ("c.parquet: row 1", {"text": "x", "turns": [{"a": "b"}]}),
        ("c.parquet: row 2", {"text": "y", "turns": None}),
    ]
    write("d.txt.gz", gzip.compress(b"x" * 1000)[:20])
    assert faults_of("d.txt.gz") == ["d.txt.gz: the gzip file is incomplete or damaged\n  -> copy or compress it again"]
    write("e.parquet", "no parquet at all")
    assert len(faults_of("e.parquet")) == 1
    assert faults_of("e.parquet")[0].startswith("e.parquet: the file is not readable Parquet: ")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", "", "the file is empty\n  -> add rows, or remove the file from the recipe"),
        ("a.jsonl", "\n \n", "the file has no rows\n  -> add rows, or remove the file from the recipe"),
        ("a.json", "[]", "the file has no rows\n  -> add rows, or remove the file from the recipe"),
        ("a.csv", "a,b\n", "the file has no rows\n  -> add rows, or remove the file from the recipe"),
        ("a.txt", "x".encode("utf-16"), "the file is UTF-16, not UTF-8\n  -> save the file as UTF-8"),
        (
            "a.xlsx",
            "x",
            "the file extension '.xlsx' is not supported\n"
            "  -> supported are .jsonl, .ndjson, .json, .parquet, .csv, .tsv, "
            ".txt; all but .parquet may be followed by .gz or .zst",
        ),
    ],
)
def test_files_without_rows(write: Write, name: str, content: str | bytes, fault: str) -> None:
    write(name, content)
    assert faults_of(name) == [f"{name}: {fault}"]


def test_the_line_of_a_byte_that_is_not_utf8_in_a_whole_file(write: Write) -> None:
    write("a.json", b'[\n{"text": "fine"},\n{"text": "caf\xe9"}]')
    assert faults_of("a.json") == ["a.json:3: the byte 0xe9 is not UTF-8\n  -> save the file as UTF-8"]


def test_folders_patterns_and_the_recipes_folder(write: Write, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden/d.jsonl", ".e.jsonl", "README.txt", "f.png"):
        write(f"recipe/data/{name}", json.dumps({"text": name}))
    root = tmp_path / "recipe"
    source = DataSource(source="data")
    assert [row.value["text"] for row in read(source, root=root)] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert identity(source, root=root) == [root / "data" / name for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl")]
    deep = DataSource(source="data/**/[bc].jsonl", limit=1)
    assert [row.value["text"] for row in read(deep, root=root)] == ["b.jsonl"]
    write("data/a.jsonl", '{"text": "nearer"}')
    assert [row.value["text"] for row in read(source, root=root)] == ["nearer"]


def test_a_folder_that_names_its_splits_gives_only_the_one_asked_for(write: Write) -> None:
    for name in ("train", "test", "more"):
        write(f"data/{name}.jsonl", json.dumps({"text": name}))
    assert [value["text"] for _, value in rows_of("data")] == ["more", "train"]
    assert [value["text"] for _, value in rows_of("data", split="test")] == ["more", "test"]


def test_missing_sources(write: Write) -> None:
    write("data/train.jsonl", "{}")
    assert faults_of("data/trian.jsonl") == [
        "there is no file or folder 'data/trian.jsonl'\n  -> did you mean 'data/train.jsonl'?"
    ]
    assert faults_of("imdb") == [
        "there is no file or folder 'imdb'\n"
        "  -> paths are resolved from the current folder, then from the recipe's; a Hub dataset is written org/name"
    ]
    assert faults_of("data/*.csv") == [
        "no file matches 'data/*.csv'\n  -> check the pattern; ** crosses folders, * does not"
    ]
    assert faults_of("lab/helpdesc") == ["the lab has no dataset 'lab/helpdesc'\n  -> did you mean lab/helpdesk?"]


def test_lab_rows_and_limit() -> None:
    found = rows_of("lab/helpdesk", limit=3)
    assert [place for place, _ in found] == [f"lab/helpdesk: row {n}" for n in (1, 2, 3)]
    assert all(list(value) == ["messages"] for _, value in found)
    assert identity(DataSource(source="lab/helpdesk"), root=Path.cwd()) == []


def test_columns_rename_and_may_swap(write: Write) -> None:
    write("a.jsonl", '{"prompt": "answer!", "q": "question?", "id": 7}')
    assert rows_of("a.jsonl", columns={"prompt": "q", "completion": "prompt"}) == [
        ("a.jsonl:1", {"id": 7, "prompt": "question?", "completion": "answer!"})
    ]
    assert faults_of("a.jsonl", columns={"prompt": "promt"}) == [
        "a.jsonl:1: `columns` names 'promt', but the row only has 'prompt', 'q', 'id'\n  -> did you mean 'prompt'?"
    ]


def test_a_source_may_be_a_string_and_refuses_what_it_does_not_know() -> None:
    assert DataSource.model_validate("lab/general") == DataSource(source="lab/general")
    with pytest.raises(ValidationError, match=r"'promt' is not a field of any known format; did you mean 'prompt'\?"):
        DataSource(source="x", columns={"promt": "q"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        DataSource.model_validate({"source": "x", "sorce": 1})


# The Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into the cached snapshot of the dataset org/set; the Hub itself is out of reach."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    def unreachable(*args: object, **keys: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    write("hub/datasets--org--set/refs/main", "c0ffee")

    def cache(name: str, content: str | bytes) -> Path:
        return write(f"hub/datasets--org--set/snapshots/c0ffee/{name}", content)

    return cache


def test_a_cached_data_set_is_read_without_a_network(cached: Write) -> None:
    train = cached("data/train-00000-of-00001.jsonl", '{"text": "train"}')
    cached("data/test-00000-of-00001.jsonl", '{"text": "test"}')
    assert rows_of("org/set") == [("org/set/data/train-00000-of-00001.jsonl:1", {"text": "train"})]
    assert [value["text"] for _, value in rows_of("org/set", split="test")] == ["test"]
    assert identity(DataSource(source="org/set"), root=Path.cwd()) == [train]
    assert faults_of("org/set", split="tran") == [
        "org/set has no split 'tran'; it has 'test', 'train'\n  -> did you mean 'train'?"
    ]


def test_the_readme_says_which_files_belong_to_a_subset(cached: Write) -> None:
    cached(
        "README.md",
        "---\nlicense: mit\nconfigs:\n- config_name: easy\n  data_files:\n  - split: train\n    path: easy/*.jsonl\n"
        "- config_name: hard\n  data_dir: h\n  data_files: {train: part-*.jsonl, dev: dev.jsonl}\n---\n# A set\n",
    )
    for name in ("easy/a.jsonl", "easy/deep/b.jsonl", "h/part-1.jsonl", "h/part-2.jsonl", "h/dev.jsonl"):
        cached(name, json.dumps({"text": name}))
    assert [value["text"] for _, value in rows_of("org/set", subset="easy")] == ["easy/a.jsonl"]
    assert [value["text"] for _, value in rows_of("org/set", subset="hard")] == ["h/part-1.jsonl", "h/part-2.jsonl"]
    assert [value["text"] for _, value in rows_of("org/set", subset="hard", split="dev")] == ["h/dev.jsonl"]
    assert faults_of("org/set") == ["org/set has 2 subsets: 'easy', 'hard'\n  -> choose one with the key subset"]
    assert faults_of("org/set", subset="heard") == [
        "org/set has no subset 'heard'; it has 'easy', 'hard'\n  -> did you mean 'hard'?"
    ]


def test_the_converted_branch_is_the_way_out_for_a_script(cached: Write, write: Write, tmp_path: Path) -> None:
    cached("set.py", "raise SystemExit('never run')")
    write("hub/datasets--org--set/refs/refs/convert/parquet", "beef")
    write("hub/datasets--org--set/snapshots/beef/default/train/x", "")
    folder = tmp_path / "hub/datasets--org--set/snapshots/beef/default/train"
    parquet.write_table(pyarrow.table({"text": ["converted"]}), folder / "0000.parquet")
    assert rows_of("org/set") == [("org/set/default/train/0000.parquet: row 1", {"text": "converted"})]


def test_a_cache_that_holds_only_some_of_the_files_is_not_trusted(cached: Write) -> None:
    cached("data/train-00001-of-00003.jsonl", '{"text": "x"}')
    assert faults_of("org/set") == [
        "only 1 of the 3 files of org/set are present\n"
        "  -> download it completely: hf download --repo-type dataset org/set"
    ]


def test_not_cached_and_no_network(cached: Write) -> None:
    assert faults_of("org/other") == [
        "the dataset org/other is not in the local cache, and the Hub cannot be reached\n"
        "  -> connect to the network, or download it elsewhere: hf download --repo-type dataset org/other"
    ]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (
            "RepositoryNotFoundError",
            "there is no file or folder 'org/set', and no dataset of this name on the Hub that you can access\n"
            "  -> check the spelling; for a private dataset, run: hf auth login",
        ),
        (
            "GatedRepoError",
            "the dataset org/set is gated\n"
            "  -> accept the terms on https://huggingface.co/datasets/org/set and run: hf auth login",
        ),
        (
            "RevisionNotFoundError",
            "the dataset org/set has no revision 'v9'\n  -> see https://huggingface.co/datasets/org/set/tree/main",
        ),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(
    cached: Write, monkeypatch: pytest.MonkeyPatch, error: str, fault: str
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    cached("train.jsonl", '{"text": "in the cache, but the Hub has answered"}')
    kind: Any = getattr(errors, error)

    def refuse(*args: object, **keys: object) -> None:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    assert faults_of("org/set", revision="v9") == [fault]


def test_files_are_downloaded_at_the_commit_that_was_listed(
    cached: Write, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    served = write("served.jsonl", '{"text": "fetched"}')
    asked = []

    def info(self: object, name: str, *, revision: str) -> SimpleNamespace:
        names = [SimpleNamespace(rfilename="train.jsonl"), SimpleNamespace(rfilename="test.jsonl")]
        return SimpleNamespace(sha="abc123", siblings=names)

    def download(name: str, file: str, **keys: str) -> str:
        asked.append((name, file, keys))
        return str(served)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert rows_of("org/set") == [("org/set/train.jsonl:1", {"text": "fetched"})]
    assert asked == [("org/set", "train.jsonl", {"repo_type": "dataset", "revision": "abc123"})]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002-abcdef.parquet", "train"),
        ("data/train_sft-00000-of-00002.parquet", "train_sft"),
        ("harmless-base/test.jsonl.gz", "test"),
        ("train/part1.jsonl", "train"),
        ("my_dev_set.csv", "validation"),
        ("training.txt", "train"),
        ("contest.jsonl", None),
        ("strain.jsonl", None),
    ],
)
def test_split_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_layouts_by_name() -> None:
    names = ["README.md", "LICENSE.txt", "helpful/train.jsonl.gz", "helpful/test.jsonl.gz", "red/train.jsonl.gz"]
    assert by_name(names, Wanted("x", "train", "helpful")) == ["helpful/train.jsonl.gz"]
    assert by_name(names, Wanted("x", "train", None)) == ["helpful/train.jsonl.gz", "red/train.jsonl.gz"]
    assert by_name(["all.csv", "notes.txt"], Wanted("x", "train", None)) == ["all.csv"]
    assert by_name(["x.py"], Wanted("x", "train", None)) == []
    assert by_readme(
        ["a.csv", "b.csv"], [{"config_name": "default", "data_files": "b.csv"}], Wanted("x", "train", None)
    )
    with pytest.raises(AlignError) as error:
        by_name(["all.csv"], Wanted("the set", "test", None))
    assert str(error.value) == (
        "the set has no split 'test'; it has 'train'\n  -> choose one of these with the key split"
    )


def test_patterns_stay_within_a_folder_unless_they_say_otherwise() -> None:
    assert glob_pattern("data/*.json").fullmatch("data/a.json")
    assert not glob_pattern("data/*.json").fullmatch("data/b/a.json")
    assert not glob_pattern("data/*.json").fullmatch("data/axjson")
    assert glob_pattern("data/**/a.json").fullmatch("data/a.json")
    assert glob_pattern("**/a[0-9].json").fullmatch("x/y/a7.json")


def test_reading_needs_no_training_stack(write: Write) -> None:
    import subprocess

    write("a.jsonl", '{"text": "x"}')
    code = (
        "import sys; from pathlib import Path; import align.data.checks, align.data.mixing, align.data.template\n"
        "light = {'pyarrow', 'huggingface_hub', 'tokenizers', 'jinja2'} & set(sys.modules)\n"
        "from align.data.sources import DataSource, read; list(read(DataSource(source='a.jsonl'), root=Path.cwd()))\n"
        "print(sorted(light), sorted({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules)))"
    )
    repository = Path(__file__).resolve().parent.parent
    environment = {"PYTHONPATH": str(repository), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[] []\n"
