"""What a real model forgets: LoRA and full fine-tuning at a sane rate, at ten times it, there with replay, and far off.

    python -m benchmarks.real_forgetting MODEL DATA REPLAY --runs FOLDER     # e.g. instructions, and texts to replay
    options: --steps 30 --items 50 --table (of what is there) --questions FILE (the battery's items, as text)

Every stage starts from the base and is measured by the general battery. Texts to replay are cut into passages of 600
characters, about as long as an instruction with its answer: a step with replay is then no slower. The table has every
skill with the paired 95 % interval of its change. `--questions` writes what was asked of the model, for
benchmarks/plain_items.py, which asks it again with plain transformers and none of this package's code.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import clock

RATES = {"lora": 2e-4, "full": 2e-5}
CASES = {  # times the rate, share of replay
    "": (1.0, 0.0),
    "_x10": (10.0, 0.0),
    "_x10_replay": (10.0, 0.2),
    "_x50": (50.0, 0.0),
    "_x150": (150.0, 0.0),
}
PASSAGE = 600  # characters


def recipe(method: str, model: str, data: str, replay: str, steps: int, items: int) -> dict[str, Any]:
    """One stage for each case, each from the base."""
    stages: dict[str, Any] = {}
    for name, (times, share) in CASES.items():
        training = {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": RATES[method] * times}
        stages[f"{method}{name}"] = {
            "stage": "sft",
            "policy": "base",
            "data": data,
            "training": training,
            "replay": {"data": replay, "ratio": share} if share else None,
        }
    return {
        "name": f"real_{method}",
        "model": {"base": model},
        "parameterization": {"method": method},
        "forgetting": {"probes": "general", "items": items},
        "stages": stages,
    }


def passages(text: Path) -> Iterator[str]:
    """The lines of a JSONL file: every line of a text in pieces that end with a word."""
    for line in text.read_text(encoding="utf-8").splitlines():
        for piece in textwrap.wrap(line, PASSAGE):
            yield json.dumps({"text": piece}, ensure_ascii=False) + "\n"


def table(folders: list[Path]) -> Iterator[str]:
    """The lines of a Markdown table: skills down, stages across."""
    found = [json.loads((folder / "forgetting.json").read_text(encoding="utf-8")) for folder in folders]
    stages = [(one, stage) for one in found for stage in one["stages"] if stage != "base"]
    yield "| skill | " + " | ".join(stage for _, stage in stages) + " |"
    yield "|---|" + "---|" * len(stages)
    for probe in dict.fromkeys(name for one in found for name in one["probes"]):
        cells = [_cell(one["matrix"]["base"].get(probe), one["matrix"][stage].get(probe)) for one, stage in stages]
        yield f"| {probe} | " + " | ".join(cells) + " |"
    means = [_cell(one["mean"]["base"]["all"], one["mean"][stage]["all"]) for one, stage in stages]
    yield "| **mean of the skills** | " + " | ".join(means) + " |"
    distances = [one.get("task_kl", {}).get(stage) for one, stage in stages]
    told = [f"{one['own_answers']['kl']:.3f}" if one and one.get("own_answers") else "" for one in distances]
    yield "| KL to the base, nats per token | " + " | ".join(told) + " |"


def _cell(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if not before or not after:
        return ""
    low, high = after["ci95"]
    verdict = f" {after['verdict']}" if after.get("verdict") else ""
    change = f"x{after['ratio']:.2f}" if after.get("ratio") is not None else f"{after['delta']:+.2f}"
    return f"{before['score']:.2f} -> {after['score']:.2f}, {change} [{low:.2f}, {high:.2f}]{verdict}"


def questions(model: str, items: int) -> Iterator[dict[str, Any]]:
    """What the battery asks a model: the text up to the answer, the choices, the right one."""
    from align.data.tokenizer import TextTokenizer
    from align.forgetting import probes
    from align.forgetting.battery import asking
    from align.forgetting.keys import ForgettingKeys
    from align.policy.load import load_tokenizer

    text = TextTokenizer.of(load_tokenizer(model, None, {}))
    between = " " if text.template is None else ""
    for probe in probes.load(ForgettingKeys(probes="general", items=items), Path()):
        if isinstance(probe, probes.Battery) and probe.skill.scorer == "choice":
            for split, half in probe.items.items():
                for id, item in half.items():
                    asked = asking.question(item, probe.skill.shots, text) + between
                    yield {
                        "probe": probe.name,
                        "split": split,
                        "id": id,
                        "asked": asked,
                        "choices": list(item.choices),
                        "answer": item.answer,
                        "per_token": probe.skill.per_token,
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("replay", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--only", choices=list(RATES), help="one of the two methods")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--questions", type=Path)
    given = parser.parse_args()
    if given.questions:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in questions(given.model, given.items)]
        given.questions.write_text("".join(lines), encoding="utf-8")
        return
    folders = [given.runs / method for method in RATES]
    for method, folder in zip(RATES, folders, strict=True):
        if given.table or given.only not in (None, method):
            continue
        given.runs.mkdir(parents=True, exist_ok=True)
        replay = given.runs / "replay.jsonl"
        replay.write_text("".join(passages(given.replay)), encoding="utf-8")
        file = given.runs / f"{method}.yaml"  # JSON is YAML
        file.write_text(
            json.dumps(recipe(method, given.model, given.data, str(replay), given.steps, given.items)), "utf-8"
        )
        command = [sys.executable, "-m", "align", "run", str(file), "--run-dir", str(folder)]
        spent = clock.cpu_seconds(command, given.runs, {"PYTHONPATH": str(Path(__file__).parents[1])})
        print(f"{method}: {spent:.0f} CPU s", flush=True)
    print("\n".join(table([folder for folder in folders if (folder / "forgetting.json").is_file()])))


if __name__ == "__main__":
    main()
