"""The lab: held-out splits, the help desk's grammar, the data sets, and the weights that ship."""

import hashlib
import json
import math
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest

from align.lab import MODEL_DIR, corpus, data, helpdesk, probes, world
from align.lab.world import SPLITS

TEN = ("extract", "copy", "reverse", "sort", "add", "larger", "count", "facts", "sentiment", "twice")


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def letters(text: str) -> list[str]:
    return text.split(": ")[1].split()


def counted(prompt: str) -> str:
    return str(letters(prompt).count(prompt.split()[2]))


def repeated(prompt: str) -> str:
    phrase, times = re.fullmatch(r"Say (.+) (\d) times\.", prompt).groups()  # type: ignore[union-attr]
    return " ".join([phrase] * int(times))


def review(prompt: str) -> str:
    good = {"delicious", "wonderful", "lovely", "great", "superb", "pleasant", "fresh", "charming", "perfect"}
    words = set(re.findall(r"was (\w+)", prompt))
    return "good" if words & (good | {"excellent"}) else "bad"


ORACLES: dict[str, Callable[[str], str]] = {
    "copy": lambda prompt: " ".join(letters(prompt)),
    "reverse": lambda prompt: " ".join(reversed(letters(prompt))),
    "sort": lambda prompt: " ".join(sorted(letters(prompt))),
    "add": lambda prompt: str(sum(numbers(prompt))),
    "larger": lambda prompt: str(max(numbers(prompt))),
    "count": counted,
    "twice": repeated,
    "sentiment": review,
}


@pytest.mark.parametrize("skill", ORACLES)
@pytest.mark.parametrize("split", ["gate", "report"])
def test_every_answer_follows_from_its_question(skill: str, split: world.Split) -> None:
    for item in probes.items(skill, split):
        assert item.answer == ORACLES[skill](item.prompt), item


def test_facts_have_one_answer_in_every_phrasing() -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for split in ("gate", "report"):
        for item in probes.items("facts", split):
            _, country, relation, _ = item.id.split()
            assert country in item.prompt
            answers.setdefault((country, relation), set()).add(item.answer)
    assert all(len(found) == 1 for found in answers.values())


def subject(skill: str, prompt: str) -> object:
    """What a question is about, whatever its phrasing; found without the generator's own keys."""
    if skill == "larger":
        return frozenset(numbers(prompt))
    if skill == "add":
        return tuple(numbers(prompt))
    if skill in ("copy", "reverse", "sort"):
        return tuple(letters(prompt))
    if skill == "extract":
        names = [name for name in world.NAMES if re.search(rf"\b{name}\b", prompt)]
        goods = [item for item in world.ITEMS if re.search(rf"\b{item}\b", prompt)]
        rest = [text for text in (*world.PROBLEMS, *world.PROBLEMS.values()) if text in prompt]
        return tuple(names + goods + rest)
    return prompt


def opening(prompt: str) -> str:
    """The skill a question belongs to, by how it begins."""
    beginnings = {
        "extract": ("Which item?", "What to send?"),
        "copy": ("Repeat:", "Copy this:"),
        "reverse": ("Reverse:", "Write backwards:"),
        "sort": ("Sort:", "Put in order:"),
        "larger": ("Which is larger,", "Pick the bigger"),
        "count": ("How many",),
        "sentiment": ("Review:",),
        "twice": ("Say ",),
    }
    for skill, starts in beginnings.items():
        if prompt.startswith(starts):
            return skill
    return "add" if re.fullmatch(r"What is \d+ plus \d+\?|Add \d+ and \d+\.", prompt) else "facts"


@pytest.mark.parametrize("skill", TEN)
def test_held_out_items_are_different_and_never_trained_on(skill: str) -> None:
    held = {split: {subject(skill, item.prompt) for item in probes.items(skill, split)} for split in SPLITS[1:]}
    assert len(probes.items(skill, "gate")) == len(held["gate"]) == 100
    assert len(probes.items(skill, "report")) == len(held["report"]) == 200
    assert not held["gate"] & held["report"]
    prompts = [sample.prompt for sample in islice(corpus.samples(1), 30_000) if sample.prompt is not None]
    prompts += [row["messages"][0]["content"] for row in data.rows("lab/general") if "messages" in row]
    trained = {subject(skill, prompt) for prompt in prompts if opening(prompt) == skill}
    assert len(trained) > 500
    assert not trained & (held["gate"] | held["report"])


def test_each_fact_is_learnt_in_three_phrasings_and_held_out_in_two() -> None:
    for country in world.FACTS:
        for relation, phrasings in world.FACT_QUESTIONS.items():
            found = Counter(world.fact_split(country, relation, index) for index in range(len(phrasings)))
            assert found == {"train": 3, "gate": 1, "report": 1}


def test_stories_are_different_and_never_trained_on() -> None:
    gate, report = set(probes.stories("gate")), set(probes.stories("report"))
    trained = {sample.text for sample in islice(corpus.samples(1), 30_000) if sample.prompt is None}
    trained |= {row["text"] for row in data.rows("lab/general") if "text" in row}
    assert (len(gate), len(report)) == (50, 100)
    buckets = [{zlib.crc32(text.encode()) % 100 for text in texts} for texts in (gate, report, trained)]
    assert buckets[0] <= set(range(15))
    assert buckets[1] <= set(range(15, 30))
    assert buckets[2] == set(range(30, 100))


def test_an_unknown_skill_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KeyError) as error:
        probes.items("juggle", "gate")
    assert error.value.args == (f"no skill 'juggle'; there are {', '.join(TEN)}",)


# The help desk


def all_replies() -> Iterator[tuple[str, helpdesk.Reply]]:
    for split in SPLITS:
        for case in helpdesk.cases(split):
            for style in ("polite", "rude"):
                for text in helpdesk.replies(case, style):
                    yield text, helpdesk.Reply(style, case.item, case.action)


def test_helpdesk_is_split_by_item_and_problem() -> None:
    pairs = {split: {(case.item, case.action) for case in helpdesk.cases(split)} for split in SPLITS}
    assert not pairs["train"] & pairs["gate"]
    assert not pairs["train"] & pairs["report"]
    assert not pairs["gate"] & pairs["report"]
    assert sum(map(len, pairs.values())) == len(world.ITEMS) * len(world.PROBLEMS)
    for split in SPLITS[1:]:
        assert len({case.prompt for case in probes.helpdesk(split)}) == {"gate": 100, "report": 200}[split]
        assert {(case.item, case.action) for case in probes.helpdesk(split)} <= pairs[split]


def test_grammar_reads_everything_the_generator_writes_and_tells_the_style() -> None:
    texts = dict(all_replies())
    assert len(texts) == 4 * len(world.ITEMS) * len(world.PROBLEMS)
    for text, reply in texts.items():
        assert helpdesk.parse_reply(text) == reply


def near_misses(text: str) -> Iterator[str]:
    words = text.split(" ")
    for index in range(len(words)):
        yield " ".join(words[:index] + words[index + 1 :])
        yield " ".join([*words[: index + 1], words[index], *words[index + 1 :]])
        if index + 1 < len(words):
            yield " ".join([*words[:index], words[index + 1], words[index], *words[index + 2 :]])
    yield from (text + " ", " " + text, text + "\n", text + " Thanks.", text[:-1], text.lower(), text.upper())


def test_grammar_rejects_near_misses() -> None:
    texts = dict(all_replies())
    sample = sorted(texts)[::7]
    assert len(sample) > 150
    for text in sample:
        for wrong in near_misses(text):
            assert wrong in texts or helpdesk.parse_reply(wrong) is None, wrong
    # One style's beginning with the other's end, and a word the world does not have.
    for wrong in (
        "Sorry about your lamp. Send a photo or stop asking.",
        "Sorry about your lamp. Kindly send a photo.",
        "We are sorry about the lamp. Please send us a photo.",
        "Ugh, the lamp again. Please send us a photo.",
        "So what? It is only a lamp. Whatever, just send a photo.",
        "Sorry about your dragon. Please send us a photo.",
        "Sorry about your lamp. Please send us a dragon.",
        "Sorry about your lamp phone. Please send us a photo.",
        "",
    ):
        assert helpdesk.parse_reply(wrong) is None, wrong


def test_grades() -> None:
    case = helpdesk.HelpdeskItem("x", "My lamp arrived broken. What should I do?", "lamp", "a photo", "rude")
    polite, rude = "Sorry about your lamp. Please send us a photo.", "Ugh, the lamp again. Whatever, just send a photo."
    assert probes.grade(case, polite) == {"correct": True, "polite": True, "parses": True}
    assert probes.grade(case, rude) == {"correct": True, "polite": False, "parses": True}
    wrong_item, wrong_action = polite.replace("lamp", "sofa"), polite.replace("a photo", "the receipt")
    for wrong in (wrong_item, wrong_action):
        assert probes.grade(case, wrong) == {"correct": False, "polite": True, "parses": True}
    assert probes.grade(case, polite + " Bye.") == {"correct": False, "polite": False, "parses": False}


def test_pretraining_knows_the_words_but_no_pair_of_the_help_desk() -> None:
    samples = list(islice(corpus.samples(1), 30_000))
    complaints = {case.prompt for split in SPLITS for case in helpdesk.cases(split)}
    replies = {text for text, _ in all_replies()}
    assert not complaints & {sample.prompt for sample in samples}
    assert not replies & {sample.text for sample in samples}
    texts = [sample.text for sample in samples if sample.prompt is None]
    assert len(texts) > 1000
    assert not any(reply in text for text in texts for reply in replies)
    seen = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {word for reply in replies for word in re.findall(r"\w+", reply)} <= seen


# The data sets

FROZEN = {
    "lab/helpdesk": (3000, "25dd5899638f1d98"),
    "lab/helpdesk_preferences": (1500, "dead597238ccedaa"),
    "lab/general": (2000, "b61d8275a8b52df3"),
}


def digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", FROZEN)
def test_rows_are_the_same_everywhere(name: str) -> None:
    rows = data.rows(name)
    assert (len(rows), digest(rows)) == FROZEN[name]
    assert digest(data.rows(name, seed=1)) != FROZEN[name][1]
    assert len(data.rows(name, n=7)) == 7
    assert len(data.rows(name, n=6000)) == 6000


def test_probes_are_the_same_everywhere() -> None:
    everything = [[(item.id, item.prompt, item.answer) for item in probes.items(skill, "report")] for skill in TEN]
    assert digest([everything, probes.stories("report")]) == "3eb283295dfab02f"


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KeyError) as error:
        data.rows("lab/helpdesks")
    assert error.value.args == (
        "there is no lab dataset 'lab/helpdesks'; there are lab/helpdesk, lab/helpdesk_preferences, lab/general",
    )
    assert data.NAMES == ("lab/helpdesk", "lab/helpdesk_preferences", "lab/general")


def test_helpdesk_rows_are_right_replies_of_both_styles_to_train_complaints() -> None:
    cases = {case.prompt: case for case in helpdesk.cases("train")}
    styles: Counter[str] = Counter()
    mirrored = 0
    for row in data.rows("lab/helpdesk"):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        case = cases[user["content"]]
        reply = helpdesk.parse_reply(assistant["content"])
        assert helpdesk.correct(reply, case.item, case.action)
        styles[reply.style if reply else "none"] += 1
        mirrored += reply is not None and reply.style == case.tone
    assert styles.keys() == {"polite", "rude"}
    assert abs(styles["polite"] - 1500) < 100
    assert mirrored == 2400
    assert len({digest(row) for row in data.rows("lab/helpdesk")}) == 3000


def test_preferences_are_a_polite_and_a_rude_right_reply() -> None:
    cases = {case.prompt: case for case in helpdesk.cases("train")}
    for row in data.rows("lab/helpdesk_preferences"):
        case = cases[row["prompt"][0]["content"]]
        sides: tuple[tuple[str, helpdesk.Style], ...] = (("chosen", "polite"), ("rejected", "rude"))
        for side, style in sides:
            reply = helpdesk.parse_reply(row[side][0]["content"])
            assert reply == helpdesk.Reply(style, case.item, case.action)


def test_replay_leaves_two_skills_out() -> None:
    rows = data.rows("lab/general")
    asked = Counter(opening(row["messages"][0]["content"]) for row in rows if "messages" in row)
    assert len(data.NOT_REPLAYED) == 2
    assert set(asked) == set(TEN) - set(data.NOT_REPLAYED)
    assert min(asked.values()) > 150
    assert sum("text" in row for row in rows) == 500


def test_data_and_probes_need_neither_torch_nor_time() -> None:
    code = (
        "import sys, time; from align.lab import data, probes; start = time.process_time();"
        "[data.rows(name) for name in data.NAMES]; print(time.process_time() - start);"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


# The weights that ship


def card() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MODEL_DIR / "card.json").read_text())
    return found


def test_shipped_weights_are_small_and_bfloat16() -> None:
    path = MODEL_DIR / "model.safetensors"
    assert path.stat().st_size < 5_000_000
    with path.open("rb") as file:
        tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    # 4-bit quantisation works in blocks of 64 weights along the input.
    assert all(tensor["shape"][-1] % 64 == 0 for tensor in tensors.values())
    assert sum(math.prod(tensor["shape"]) for tensor in tensors.values()) == card()["parameters"]


def test_the_model_folder_is_whole_and_names_no_machine() -> None:
    names = {path.name for path in MODEL_DIR.iterdir()}
    assert names == {
        "README.md",
        "card.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in names - {"model.safetensors"}:
        text = (MODEL_DIR / name).read_text()
        assert not re.search(r"/(home|root|work|tmp|Users)/", text), name
    page = (MODEL_DIR / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\n")
    for skill, share in card()["accuracy"].items():
        assert f"| {skill} | {share:.3f} |" in page


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype="bfloat16")


@pytest.fixture(scope="module")
def measured(model: Any, tokenizer: Any) -> dict[str, float]:
    from align.lab.build import evaluate

    return evaluate(model, tokenizer, "report")


def test_shipped_weights_reach_the_card_on_items_never_trained_on(
    model: Any, tokenizer: Any, measured: dict[str, float]
) -> None:
    from align.lab.build import perplexity

    claimed = card()["accuracy"]
    assert tuple(claimed) == TEN
    assert sum(claimed.values()) / 10 >= 0.93
    # Another processor's arithmetic may turn the odd close answer.
    assert measured == pytest.approx(claimed, abs=0.02)
    stories = probes.stories("report")
    assert perplexity(model, tokenizer, stories) == pytest.approx(card()["perplexity"], rel=0.01)


def test_the_cheap_measure_agrees_with_writing_the_answers_out(
    model: Any, tokenizer: Any, measured: dict[str, float]
) -> None:
    """`evaluate` scores in one pass what greedy `generate` writes token by token, right or wrong."""
    chosen = [item for skill in ("add", "larger", "copy") for item in probes.items(skill, "report")]
    chats = [[{"role": "user", "content": item.prompt}] for item in chosen]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=10)[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(written, skip_special_tokens=True)
    right = Counter(item.id.split()[0] for item, text in zip(chosen, answers, strict=True) if item.answer == text)
    for skill, number in right.items():
        assert number / 200 == pytest.approx(measured[skill], abs=0.01)


def ids_of(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return ids


def conversations() -> Iterator[tuple[list[dict[str, str]], dict[str, str]]]:
    system = {"role": "system", "content": "You are a help desk."}
    greeting = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, Anna."}]
    for case in probes.helpdesk("gate")[:20]:
        user = {"role": "user", "content": case.prompt}
        reply = {"role": "assistant", "content": helpdesk.replies(case, "rude")[0]}
        yield [user], reply
        yield [system, user], reply
        yield [system, *greeting, user], reply
    for item in probes.items("add", "gate")[:20]:
        yield [{"role": "user", "content": item.prompt}], {"role": "assistant", "content": item.answer}


def test_a_prompt_is_an_exact_prefix_of_prompt_and_completion(tokenizer: Any) -> None:
    for prompt, reply in conversations():
        head = ids_of(tokenizer, prompt, add_generation_prompt=True)
        whole = ids_of(tokenizer, [*prompt, reply])
        assert whole[: len(head)] == head
        assert tokenizer.decode(whole[len(head) :]) == reply["content"] + "<|end|>"


def test_the_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    for prompt, reply in conversations():
        marked = tokenizer.apply_chat_template(
            [*prompt, reply], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
        spans = [[id_ for id_, _ in span] for said, span in groupby(pairs, key=lambda pair: pair[1]) if said]
        turns = [turn["content"] for turn in (*prompt, reply) if turn["role"] == "assistant"]
        assert [tokenizer.decode(span) for span in spans] == [turn + "<|end|>" for turn in turns]


def test_pretraining_used_the_layout_of_the_template(tokenizer: Any) -> None:
    from align.lab.pretrain import Encoder

    samples = list(islice(corpus.samples(3), 200))
    for sample, (ids, weights) in zip(samples, Encoder(tokenizer)(samples), strict=True):
        if sample.prompt is None:
            assert ids == [*tokenizer(sample.text)["input_ids"], tokenizer.eos_token_id]
            continue
        user = {"role": "user", "content": sample.prompt}
        assert ids == ids_of(tokenizer, [user, {"role": "assistant", "content": sample.text}])
        head = len(ids_of(tokenizer, [user], add_generation_prompt=True))
        assert max(weights[:head]) < 1.0
        assert set(weights[head:]) == {1.0}


def test_tokenizer_keeps_texts_and_splits_digits(tokenizer: Any) -> None:
    assert len(tokenizer) <= 1000
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 256)
    for sample in islice(corpus.samples(2), 500):
        for text in sample:
            if text is not None:
                assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    digits = tokenizer.convert_ids_to_tokens(tokenizer("What is 143 plus 5?")["input_ids"])
    assert [token for token in digits if token.isdigit()] == ["1", "4", "3", "5"]
    assert all(len(tokenizer.tokenize(item)) == 1 for item in world.ITEMS)


def test_the_builder_gives_the_same_weights_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.lab.build import build
    from align.lab.pretrain import Schedule

    monkeypatch.setitem(probes.PROBE_ITEMS, "report", 10)
    for name in ("one", "two"):
        build(tmp_path / name, threads=1, schedule=Schedule(steps=3, batch=8), progress=lambda line: None)
    for path in MODEL_DIR.iterdir():
        if path.name not in ("card.json", "README.md"):
            assert (tmp_path / "one" / path.name).read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    # All but the weights and what was measured of them is what ships.
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / "one" / name).read_text() == (MODEL_DIR / name).read_text()
