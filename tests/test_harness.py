"""Tasks of lm-evaluation-harness as probes: item by item what the harness itself says of the same model."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import models
from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.bench import Bench
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measure import measure
from align.forgetting.own import measuring
from align.forgetting.own.kinds import Task
from align.lab import probes as lab

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytestmark = pytest.mark.slow

N = 14  # documents of a task
LIMIT = 12
CHOICE = """\
task: lab_facts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl, train: FOLDER/shots.jsonl}}
test_split: test
training_split: train
fewshot_split: train
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """\
task: lab_words
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
doc_to_text: "{{q}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with their documents."""
    made = tmp_path_factory.mktemp("tasks")
    asked = lab.items("facts", "report")[: N + 4]
    answers = sorted({item.answer for item in asked})
    rows = []
    for n, item in enumerate(asked):
        choices = [one for one in answers if one != item.answer][:2]
        choices.insert(n % 3, item.answer)
        rows.append({"q": item.prompt, "choices": choices, "label": n % 3, "answer": item.answer})
    for name, part in (("docs", rows[:N]), ("shots", rows[N:])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    for name, task in (("choice", CHOICE), ("written", WRITTEN)):
        (made / name).mkdir()
        (made / name / f"{name}.yaml").write_text(task.replace("FOLDER", str(made)), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return models.lab_tokenizer()


def load(folder: Path, keys: dict[str, Any], name: str = "own") -> Task:
    (found,) = probes.load(ForgettingKeys.model_validate({"probes": {name: keys}}, strict=True), folder)
    assert isinstance(found, Task)
    measuring.prepare([found])
    return found


def scores(task: Task, tokenizer: PreTrainedTokenizerBase, out: Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By id, as items.jsonl has them."""
    measure(Bench(models.tiny_llama(seed), tokenizer, autocast=False), [task], out, base=None)
    lines = read(out)
    assert all(line["probe"] == "own" for line in lines)
    return {line["id"]: line for line in lines}


def read(folder: Path, name: str = "items") -> list[dict[str, Any]]:
    """The lines of a file of a measurement."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def itself(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the harness says of the same model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(folder / "choice"), str(folder / "written")], include_defaults=False)
    wrapped = HFLM(pretrained=models.tiny_llama(), tokenizer=tokenizer, batch_size=1)
    names = ["lab_facts", "lab_words"]
    found: dict[str, Any] = simple_evaluate(wrapped, tasks=names, task_manager=manager, limit=LIMIT)
    return found


@pytest.mark.parametrize("metric", [None, "acc", "acc_norm"])
def test_choices_are_scored_as_the_harness_scores_them(
    metric: str | None, folder: Path, tokenizer: PreTrainedTokenizerBase, itself: dict[str, Any], tmp_path: Path
) -> None:
    found = scores(load(folder, {"task": "./choice", "limit": LIMIT, "field": metric}), tokenizer, tmp_path)
    metric = metric or "acc"
    of_harness = {f"own-{sample['doc_id']}": sample[metric] for sample in itself["samples"]["lab_facts"]}
    assert {id: line["score"] for id, line in found.items()} == of_harness
    assert len(found) == LIMIT and 0 < sum(of_harness.values()) < LIMIT
    mean = sum(line["score"] for line in found.values()) / LIMIT
    assert mean == pytest.approx(itself["results"]["lab_facts"][f"{metric},none"])
    assert {id: line["split"] for id, line in found.items()} == {
        f"own-{n}": ("gate", "report")[n % 2] for n in range(LIMIT)
    }


@pytest.mark.parametrize("field", [None, "exact_match", "exact_match,whole", "exact_match,word"])
def test_written_answers_are_scored_as_the_harness_scores_them(
    field: str | None, folder: Path, tokenizer: PreTrainedTokenizerBase, itself: dict[str, Any], tmp_path: Path
) -> None:
    file = "./written/written.yaml"
    found = scores(load(folder, {"task": file, "limit": LIMIT, "field": field}), tokenizer, tmp_path)
    used = "word" if field == "exact_match,word" else "whole"
    samples = [sample for sample in itself["samples"]["lab_words"] if sample["filter"] == used]
    assert {id: line["score"] for id, line in found.items()} == {
        f"own-{sample['doc_id']}": sample["exact_match"] for sample in samples
    }
    assert len(found) == LIMIT


def test_the_same_items_are_asked_before_and_after(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """With the same examples before them: a second measurement of one model says the same."""
    task = load(folder, {"task": "./choice"})
    one, again, other = (scores(task, tokenizer, tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1)))
    assert one == again and len(one) == N
    assert one.keys() == other.keys() and one != other
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    assert summary["probes"]["own"]["chance"] == pytest.approx(1 / 3)


def test_training_goes_on_as_if_nothing_had_been_measured(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The harness seeds every generator, and ties the embeddings of a model that it is given."""
    task, model = load(folder, {"task": "./choice", "limit": 2}), models.tiny_llama()
    model.config.tie_word_embeddings = True  # and yet the two are trained apart
    head = model.lm_head.weight
    before = (torch.get_rng_state(), random.getstate())
    measure(Bench(model, tokenizer, autocast=False), [task], tmp_path, base=None)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert model.lm_head.weight is head and model.lm_head.weight is not model.model.embed_tokens.weight
    assert "tie_weights" not in vars(model)


def test_a_group_is_one_probe_over_its_tasks(
    folder: Path, tokenizer: PreTrainedTokenizerBase, itself: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        text = (folder / "choice" / "choice.yaml").read_text().replace("lab_facts", f"lab_{name}")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "both.yaml").write_text("group: lab_both\ntask: [lab_one, lab_two]\n", encoding="utf-8")
    with pytest.raises(AlignError) as raised:
        load(tmp_path.parent, {"task": f"./{tmp_path.name}"})
    assert raised.value.remedy == "name one file: both.yaml, one.yaml, two.yaml"
    found = scores(load(tmp_path, {"task": "./both.yaml", "limit": LIMIT}), tokenizer, tmp_path / "out")
    of_one = [sample["acc"] for sample in itself["samples"]["lab_facts"]]
    assert [found[f"own-lab_one-{n}"]["score"] for n in range(LIMIT)] == of_one
    assert [found[f"own-lab_two-{n}"]["score"] for n in range(LIMIT)] == of_one
    assert len(found) == 2 * LIMIT


def test_answers_that_broke_and_were_mended_are_shown(
    folder: Path, tokenizer: PreTrainedTokenizerBase, itself: dict[str, Any], tmp_path: Path
) -> None:
    """Of choices and of written answers, with what is asked, what is right, and what both models say."""
    tasks = [load(folder, {"task": f"./{name}", "limit": LIMIT}, name) for name in ("choice", "written")]
    for out, seed, base in (("base", 0, None), ("after", 1, tmp_path / "base"), ("back", 0, tmp_path / "after")):
        bench = Bench(models.tiny_llama(seed), tokenizer, autocast=False)
        measure(bench, tasks, tmp_path / out, base=base)
    docs = [json.loads(line) for line in (folder / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
    base, after = ({(line["probe"], line["id"]): line for line in read(tmp_path / out)} for out in ("base", "after"))
    broken = {(line["probe"], line["id"]): line for line in read(tmp_path / "after", "broken")}
    mended = {(line["probe"], line["id"]): line for line in read(tmp_path / "after", "mended")}
    for of, found in ((1, broken), (0, mended)):
        keys = [
            key
            for key in after
            if base[key]["split"] == "report" and (base[key]["score"], after[key]["score"]) == (of, 1 - of)
        ]
        assert set(found) == set(keys) and len(keys) <= 8
    assert {probe for probe, _ in broken | mended} >= {"choice"}
    for key, line in (broken | mended).items():
        doc = docs[int(line["id"].split("-")[1])]
        assert line["prompt"] == doc["q"].strip()
        assert (line["before"], line["after"]) == (base[key]["said"], after[key]["said"])
        right = doc["answer"]
        assert ((line["before"], line["after"]).index(right), line.get("answer", right)) == (key in mended, right)
        assert line["before"] != line["after"]
    back = read(tmp_path / "back", "mended")
    assert [(line["probe"], line["id"]) for line in back] == list(broken), "what broke is mended by the base's weights"
    logged = itself["samples"]["lab_facts"]
    for sample in logged:
        likelihoods = torch.tensor([one[0] for one in sample["filtered_resps"]], dtype=torch.float64)
        line = base["choice", f"choice-{sample['doc_id']}"]
        assert line["p"] == pytest.approx(likelihoods.softmax(0)[docs[sample["doc_id"]]["label"]].item(), abs=1e-5)
        assert line["said"] == docs[sample["doc_id"]]["choices"][int(likelihoods.argmax())]
    for sample in itself["samples"]["lab_words"]:
        assert base["written", f"written-{sample['doc_id']}"]["said"] == sample["resps"][0][0].strip()


def test_an_unknown_metric_is_refused_before_any_weights_are_loaded(folder: Path) -> None:
    with pytest.raises(AlignError) as raised:
        load(folder, {"task": "./choice", "field": "f1"})
    assert str(raised.value) == "the task 'lab_facts' has no metric 'f1'\n  -> choose one of: acc, acc_norm"


def test_an_unknown_filter_is_refused(folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    task = load(folder, {"task": "./written", "limit": 2, "field": "exact_match,words"})
    with pytest.raises(AlignError) as raised:
        scores(task, tokenizer, tmp_path)
    assert str(raised.value) == "the task 'lab_words' has no filter 'words'\n  -> choose one of: whole, word"


def test_data_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text(CHOICE.replace("FOLDER", str(tmp_path)).replace("lab_facts", "lab_gone"))
    with pytest.raises(AlignError) as raised:
        load(tmp_path, {"task": "./gone.yaml"})
    pattern = r"lm-evaluation-harness cannot run the task 'lab_gone': FileNotFoundError: .*docs\.jsonl.*"
    assert re.fullmatch(pattern, raised.value.what)


def test_another_task_is_another_probe(folder: Path, tmp_path: Path) -> None:
    asked = [{"task": "./choice"}, {"task": "./choice", "limit": 4}, {"task": "./choice", "field": "acc_norm"}]
    found = [json.dumps(probes.identity(load(folder, keys))) for keys in asked]
    (tmp_path / "choice.yaml").write_text((folder / "choice" / "choice.yaml").read_text() + "# changed\n")
    found.append(json.dumps(probes.identity(load(tmp_path, {"task": "./choice.yaml"}))))
    assert len(set(found)) == 4


def test_a_task_of_the_harness_is_found_by_name_without_importing_it() -> None:
    from align.forgetting.own import tasks

    assert tasks._shipped("hellaswag").name == "hellaswag.yaml"
    assert tasks._shipped("mmlu").parent.name in ("default", "mmlu")
    with pytest.raises(AlignError, match="did you mean 'hellaswag'"):
        tasks._shipped("helaswag")
