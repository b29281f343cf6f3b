"""Notes on what is seldom meant: rates, preferences before answers, and no held-out rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from align import api
from align.lab import MODEL_DIR

RECIPE = """\
name: x
model: {base: BASE, chat_template: plain}
parameterization: {method: METHOD}
stages: {STAGE: {data: rows.jsonl, EVAL training: {learning_rate: RATE, max_steps: 4}}}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's model under another name, without a chat template."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL_DIR, "model")
    for file in Path("model").glob("chat_template*"):
        file.unlink()
    config = Path("model/tokenizer_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))
    return Path("model")


def notes(base: str, stage: str, method: str, rate: float, *, rows: int = 250, held: bool = False) -> list[str]:
    pair = {"chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}
    talk = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]}
    made = [
        {"prompt": [{"role": "user", "content": f"is it {i}?"}], **pair}
        if stage in ("dpo", "reward")
        else {"messages": [{"role": "user", "content": f"is it {i}?"}, talk["messages"][1]]}
        for i in range(rows)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    text = RECIPE.replace("BASE", base).replace("METHOD", method).replace("STAGE", stage).replace("RATE", f"{rate:.1e}")
    Path("x.yaml").write_text(text.replace("EVAL", "eval_data: 0.1," if held else ""))
    return [
        note for note in api.check("x.yaml").notes if "default for" in note or "held out" in note or "before" in note
    ]


@pytest.mark.parametrize(
    ("stage", "method", "rate", "said"),
    [
        ("sft", "lora", 2e-2, "stage sft: the learning rate 0.02 is 100 times the default for lora, 0.0002"),
        ("sft", "lora", 1e-6, "stage sft: the learning rate 1e-06 is 1/200 of the default for lora, 0.0002"),
        ("sft", "full", 1e-3, "stage sft: the learning rate 0.001 is 50 times the default for full, 2e-05"),
        ("reward", "full", 1e-3, "stage reward: the learning rate 0.001 is 100 times the default for full, 1e-05"),
        ("sft", "lora", 1e-3, None),
        ("sft", "full", 5e-6, None),
    ],
)
def test_rates_far_from_the_usual(base: Path, stage: str, method: str, rate: float, said: str | None) -> None:
    assert notes("./model", stage, method, rate, held=True) == ([said] if said else [])


def test_preferences_on_a_base_that_may_not_answer(base: Path) -> None:
    [note] = notes("./model", "dpo", "lora", 1e-5, held=True)
    assert note.startswith("stage dpo: it starts from a base without a chat template")
    assert note.endswith("put an sft stage before dpo")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert notes("./model", "dpo", "lora", 1e-5, held=True) == []


@pytest.mark.parametrize(("rows", "held", "said"), [(250, False, True), (250, True, False), (100, False, False)])
def test_held_out_rows(base: Path, rows: int, held: bool, said: bool) -> None:
    found = notes("./model", "sft", "lora", 2e-4, rows=rows, held=held)
    expected = "stage sft: no rows are held out, so that overfitting would not be seen: `eval_data: 0.05`"
    assert found == ([expected] if said else [])


def test_nothing_is_said_of_the_lab(base: Path) -> None:
    assert notes("lab", "sft", "lora", 2e-2) == []
