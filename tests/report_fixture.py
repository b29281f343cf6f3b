"""A run folder as `align run` leaves it, written by hand: SFT, then DPO from it, and a reward model that failed."""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INJECTION = "<script>alert('owned')</script><img src=x onerror=alert(1)>"
JSON = dict[str, Any]

# probe -> kind, replayed, scores after base, sft, dpo
SCORES: dict[str, tuple[str, bool | None, tuple[float, float, float]]] = {
    "helpdesk": ("task", None, (0.015, 0.93, 0.88)),
    "helpdesk_polite": ("task", None, (0.21, 0.55, 0.98)),
    "copy": ("skill", True, (0.85, 0.835, 0.81)),
    "reverse": ("skill", True, (0.995, 0.985, 0.96)),
    "sort": ("skill", True, (0.99, 0.99, 0.975)),
    "facts": ("skill", True, (1.0, 0.92, 0.765)),
    "sentiment": ("skill", False, (1.0, 0.99, 0.985)),
    "add": ("skill", False, (0.375, 0.14, 0.05)),
    "larger": ("skill", False, (0.75, 0.66, 0.595)),
    "größer_als_$x$": ("skill", False, (0.61, 0.63, 0.64)),
}
N = 200
PERPLEXITY = (1.75, 3.12, 4.06)
STAGES = ("base", "sft", "dpo")


def effect(before: float, after: float, lost_share: float = 0.05) -> JSON:
    """The change between two accuracies over N items, with a normal interval and a p-value of about the right size."""
    delta = after - before
    spread = math.sqrt(max(abs(delta) + 2 * lost_share - delta**2, 1e-4) / N)
    p = math.erfc(abs(delta) / spread / math.sqrt(2))
    return {"delta": delta, "ci95": [delta - 1.96 * spread, delta + 1.96 * spread], "p_value": p}


def cell(scores: tuple[float, ...], at: int, max_drop: float = 0.2) -> JSON:
    """One entry of the matrix."""
    entry: JSON = {"score": scores[at], "n": N}
    if not at:
        return entry
    entry |= effect(scores[0], scores[at])
    low, high = entry["ci95"]
    entry["verdict"] = "FORGOT" if high < -max_drop else "OK" if low > -max_drop else "UNCLEAR"
    fall = round(max(0.0, scores[0] - scores[at]) * N)
    entry |= {"lost": fall + 4, "gained": 4 + round(max(0.0, scores[at] - scores[0]) * N)}
    entry["items_to_decide"] = 840 if entry["verdict"] == "UNCLEAR" else None
    entry["since_parent"] = effect(scores[at - 1], scores[at])
    return entry


def forgetting(stages: tuple[str, ...] = STAGES) -> JSON:
    """forgetting.json of the run."""
    matrix: JSON = {s: {name: cell(row[2], at) for name, row in SCORES.items()} for at, s in enumerate(stages)}
    for at, stage in enumerate(stages):
        ratio = PERPLEXITY[at] / PERPLEXITY[0]
        matrix[stage]["stories"] = {"score": PERPLEXITY[at], "n": 100}
        if at:
            low, high = ratio * 0.95, ratio * 1.05
            matrix[stage]["stories"] |= {"ratio": ratio, "ci95": [low, high], "p_value": 0.0, "verdict": None}
    probes = {
        name: {
            "metric": "accuracy",
            "higher_is_better": True,
            "kind": kind,
            "replayed": replayed,
            "n": N,
            "limit": 0.2,
        }
        for name, (kind, replayed, _) in SCORES.items()
    }
    probes["stories"] = {
        "metric": "perplexity", "higher_is_better": False, "kind": "text", "replayed": None, "n": 100,
        "limit": None,
    }  # fmt: skip
    return {
        "format": 1,
        "split": "report",
        "stages": list(stages),
        "parent": {"sft": "base", "dpo": "sft"},
        "left_out": {"math": "it has no report items"},
        "no_row": {"reward": "a reward model has no policy to measure"},
        "probes": probes,
        "matrix": matrix,
        "mean": {stage: means(at) for at, stage in enumerate(stages)},
        "backward_transfer": {
            "base": {"undefined": "nothing was trained before this row"},
            "sft": {"undefined": "no task was learnt before sft"},
            "dpo": -0.05,
        }
        if len(stages) > 1
        else {},
        "average_forgetting": {"sft": 0.065, "dpo": 0.1375} if len(stages) > 1 else {},
        "thresholds": {"max_drop": 0.2, "max_mean_drop": 0.1, "max_perplexity_ratio": None, "on_violation": "warn"},
        "advice": [
            "add fell by 0.325 and no replay row rehearses it: add such rows with `replay: {data: lab/general, "
            "ratio: 0.2}`",
            "half of the drop came with dpo: try `--set stages.dpo.training.learning_rate=1e-4`",
        ]
        if len(stages) > 1
        else [],
    }


def means(at: int) -> JSON:
    """The mean rows of one stage, over all skills, the replayed ones and the others."""
    found: JSON = {}
    for key, wanted in (("all", (True, False)), ("replayed", (True,)), ("not_replayed", (False,))):
        rows = [row for kind, replayed, row in SCORES.values() if kind == "skill" and replayed in wanted]
        scores = tuple(sum(row[i] for row in rows) / len(rows) for i in range(3))
        found[key] = cell(scores, at, max_drop=0.1)
        found[key]["n"] = N * len(rows)
        if at and key != "all":  # which alone has a limit
            found[key] |= {"verdict": None, "items_to_decide": None}
    return found


def write_json(path: Path, value: object) -> None:
    """Write JSON as the engine does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Write JSONL as the engine does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sft_metrics(steps: int = 240) -> list[JSON]:
    """An SFT that overfits: the eval loss rises from step 120 on while the train loss goes on falling."""
    rng = random.Random(1)
    rows: list[JSON] = []
    for step in range(2, steps + 1, 2):
        loss = 2.6 * math.exp(-step / 45) + 0.42 - 0.0006 * step + rng.gauss(0, 0.035)
        rate = 4e-3 * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        row = {"step": step, "max_steps": steps, "epoch": step / 100, "time": 1.79e9 + step * 0.2, "loss": loss}
        rows.append(row | {"learning_rate": rate, "grad_norm": 1.0, "tokens_per_second": 5200.0})
        if step % 30 == 0:
            value = 2.6 * math.exp(-step / 45) + 0.47 + max(0, step - 120) * 0.0011
            rows.append({"step": step, "max_steps": steps, "time": 1.79e9 + step * 0.2, "eval_loss": value})
    return rows


def dpo_metrics(steps: int = 40) -> list[JSON]:
    """A DPO whose margins grow."""
    rng = random.Random(2)
    return [
        {
            "step": step,
            "max_steps": steps,
            "epoch": step / 60,
            "time": 1.79e9 + 100 + step,
            "loss": 0.693 * math.exp(-step / 14) + 0.05 + rng.gauss(0, 0.012),
            "learning_rate": 4e-4 * (1 - step / steps),
            "rewards/margins": 3.2 * (1 - math.exp(-step / 15)) + rng.gauss(0, 0.15),
            "rewards/accuracies": min(1.0, 0.5 + 0.5 * (1 - math.exp(-step / 6))),
        }
        for step in range(1, steps + 1)
    ]


def outcome(stage: str, steps: int) -> JSON:
    """outcome.json of a finished stage."""
    return {
        "stage": stage,
        "program": stage,
        "status": "done",
        "fingerprint": f"{stage}-1f0c",
        "seconds": 74.2,
        "cpu_seconds": 101.0,
        "world_size": 2,
        "distributed_type": "MULTI_CPU",
        "global_batch_size": 32,
        "steps": steps,
        "parameters": {"total": 2_055_168, "trainable": 135_168},
        "parameterization": {
            "method": "qlora",
            "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "auto"},
            "quantization": {"bits": 4, "bnb_4bit_quant_type": "nf4"},
        },
        "metrics": {"train_loss": 0.4712, "eval_loss": 0.602},
        "policy": {
            "base": {"name": "lab", "path": "/secret/place/lab", "identity": "9f2c", "revision": None},
            "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "adapters": [{"name": "sft", "path": "/secret/place/sft", "method": "qlora", "settings": {}}],
            "weights": None,
        },
        "data": {"rows": 2400, "replay_rows": 480, "replay_ratio": 0.2, "eval_rows": 200},
        "measure_seconds": 9.1,
        "measure_cpu_seconds": 10.4,
        "measured": "77ab",
        "peak_memory_bytes": 812 * 2**20,
        "warnings": ["learning_rate 4e-3 is far above the usual 1e-4 to 3e-4 of qlora"] if stage == "sft" else [],
        "artifacts": {"model/adapter_model.safetensors": {"sha256": "00", "bytes": 541_000}},
    }


def broken() -> list[JSON]:
    """Answers that were right in the base and are wrong now; one of them attacks the page."""
    rows: list[JSON] = [
        {
            "probe": "add", "id": f"add 3 {k}", "split": "report", "prompt": f"What is 3 plus {k}?",
            "answer": str(3 + k), "before": str(3 + k), "after": f"We are sorry. We will send {k} | refunds.",
        }
        for k in range(9)
    ]  # fmt: skip
    rows.append(
        {
            "probe": "facts", "id": "evil", "split": "report", "prompt": "Wo liegt Größenwahn? 日本 \u202e\x00\ud800",
            "answer": "`a``b`", "before": "`a``b`", "after": INJECTION,
        }
    )  # fmt: skip
    return rows


def samples(stage: str) -> list[JSON]:
    """Answers to the task."""
    rude = "You broke it yourself." if stage == "sft" else "We are sorry, Mia. We will send a new lamp at once."
    return [
        {
            "probe": "helpdesk", "id": f"mia {k}", "split": "report", "correct": k % 3 > 0, "polite": stage == "dpo",
            "prompt": f"Hello, this is Mia. My lamp number {k} does not light up any more. What now?", "output": rude,
        }
        for k in range(8)
    ] + [{"probe": "helpdesk", "id": "attack", "prompt": "a & b < c", "output": INJECTION}]  # fmt: skip


RECIPE = """# yaml-language-server: $schema=recipe.schema.json
name: dpo_qlora
seed: 7
model: {base: lab, dtype: bfloat16}
pipeline: sft_dpo
stages:
  sft: {data: lab/helpdesk, training: {learning_rate: 4.0e-3, max_steps: 240}}
  dpo: {data: lab/helpdesk_preferences, beta: 0.1, training: {max_steps: 40}}
"""


ABOUT = {"sft": "supervised fine-tuning on answers", "dpo": "direct preference optimization"}


def entry(stage: str, status: str, parent: str = "base") -> JSON:
    """One stage in run.json."""
    return {
        "stage": stage, "about": ABOUT.get(stage),
        "inputs": {"policy": parent}, "status": status, "fingerprint": f"{stage}-1f0c",
        "started": "2026-09-22T13:33:20+00:00", "ended": "2026-09-22T13:34:43+00:00", "seconds": 83.3,
        "resumed_from": None,
    }  # fmt: skip


def write_run(folder: Path) -> Path:
    """A whole run: sft and dpo done, reward failed, ppo never started."""
    stages = {
        "sft": entry("sft", "done") | {"resumed_from": "checkpoint-120"},
        "dpo": entry("dpo", "done", "sft"),
        "reward": entry("reward", "failed", "sft"),
        "ppo": {"stage": "ppo", "inputs": {"policy": "sft", "reward": "reward"}, "status": "pending"},
    }
    run = {
        "format": 1,
        "name": "dpo_qlora",
        "align": "0.1.0",
        "pipeline": "dpo_and_rlhf",
        "created": "2026-09-22T13:33:20+00:00",
    }
    write_json(folder / "run.json", run | {"order": list(stages), "stages": stages})
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_json(folder / "forgetting.json", forgetting())
    for stage, metrics in (("sft", sft_metrics()), ("dpo", dpo_metrics())):
        home = folder / "stages" / stage
        write_json(home / "outcome.json", outcome(stage, metrics[-1]["max_steps"]))
        write_rows(home / "metrics.jsonl", metrics)
        write_rows(home / "measurements" / "samples.jsonl", samples(stage))
        decision: JSON = {
            "stage": stage,
            "action": "continue",
            "policy": "as_trained",
            "reasons": [],
            "violations": [],
            "thresholds": {},
        }
        write_json(home / "decision.json", decision | {"unclear": [], "split": "gate"})
    dpo = folder / "stages" / "dpo"
    write_rows(dpo / "measurements" / "broken.jsonl", broken())
    breach = {
        "probe": "add",
        "metric": "accuracy",
        "before": 0.38,
        "after": 0.06,
        "delta": -0.32,
        "low": -0.39,
        "high": -0.25,
        "limit": 0.2,
    }
    reason = "add: 0.38 -> 0.06 (-0.320, 95 % interval -0.390 to -0.250, 200 items) is beyond the limit"
    decision |= {"stage": "dpo", "violations": [breach], "unclear": ["larger"], "reasons": [reason]}
    write_json(dpo / "decision.json", decision | {"split": "gate"})
    log = "loading\r10%\r\x1b[31m100%\x1b[0m\nCUDA out of memory: tried to allocate 2.1 GiB <b>now</b>\n"
    error = {"what": "stage 'reward' ran out of memory", "remedy": "halve its batch", "exit": 1, "traceback": None}
    write_json(folder / "stages" / "reward" / "error.json", error)
    (folder / "stages" / "reward" / "log.txt").write_text(log, encoding="utf-8")
    return folder


def write_base_only(folder: Path) -> Path:
    """A run of which only the base has been measured."""
    run: JSON = {"format": 1, "name": "fresh", "order": ["sft"], "stages": {"sft": {"stage": "sft"}}}
    write_json(folder / "run.json", run)
    write_json(folder / "forgetting.json", forgetting(("base",)))
    return folder


ALARM: JSON = {
    "name": "reward_hacking",
    "rollout": 13,
    "figure": "KL 6.4 nats, more than 2 times the target 3, for 3 rollouts while the score rose from 0.25 to 1.45",
    "remedy": "read the samples: if the score praises what you would not, mend `reward`; raise `kl.coef`",
}


def rollout(number: int) -> JSON:
    """One line of rollouts.jsonl: the score rises by 0.1 and the KL by 0.5 with each, the coefficient doubles."""
    samples = [
        {
            "prompt": f"Where is my lamp {number}.{k}?", "completion": f"We | are sorry {number}.{k}. {INJECTION}",
            "score": number + k / 10, "kl": k / 4,
        }
        for k in range(4)
    ]  # fmt: skip
    return {
        "number": number, "step": 4 * (number - 1), "episodes": 64, "score": 0.05 + 0.1 * number, "score_std": 0.5,
        "rewards": {"helpful": 0.1 * number, "polite": 0.05}, "kl": 0.5 * (number - 1), "coef": 0.01 * 2**number,
        "length": 12.0 + number, "entropy": 1.5 / number, "distinct_2": 0.4, "repetition": 0.1, "missing_eos": 0.0,
        "explained_variance": 1 - 3 / number, "approx_kl": 0.01, "clip_fraction": 0.02, "ratio_max": 1.4,
        "policy_loss": -0.01, "value_loss": 0.2, "stopped": 0.0, "samples": samples,
        "alarms": [ALARM] if number == ALARM["rollout"] else [],
    }  # fmt: skip


def rlhf_outcome(stage: str, metrics: JSON) -> JSON:
    """outcome.json of a stage of `write_rlhf_run`; a reward model gives no policy."""
    made = outcome(stage, 60) | {"metrics": {"train_loss": 0.3, **metrics}, "warnings": []}
    given = made["policy"] | {
        "adapters": [{"name": stage, "path": f"stages/{stage}/model", "method": "qlora", "settings": {}}]
    }
    sides = ("reward", "policy") if stage == "reward" else ("policy", "reward")
    return made | dict(zip(sides, (given, None), strict=True)) | {"cpu_seconds": {"reward": 10.0}.get(stage, 101.0)}


def write_rlhf_run(folder: Path) -> Path:
    """A run with two branches: sft, then dpo, and a reward model and ppo; ppo made 15 rollouts and raised an alarm."""
    stages = {
        "sft": entry("sft", "done"),
        "dpo": entry("dpo", "done", "sft"),
        "reward": entry("reward", "done", "sft"),
        "ppo": entry("ppo", "done", "sft") | {"inputs": {"policy": "sft", "reward": ["reward"]}},
    }
    run = {
        "format": 1,
        "name": "rlhf",
        "align": "0.1.0",
        "pipeline": "dpo_and_rlhf",
        "created": "2026-09-22T13:33:20+00:00",
    }
    write_json(folder / "run.json", run | {"order": list(stages), "stages": stages})
    matrix = forgetting()
    matrix["stages"].append("ppo")
    matrix["parent"]["ppo"] = "sft"
    for table in (matrix["matrix"], matrix["mean"]):
        table["ppo"] = {name: one | {"since_parent": effect(1.0, 1.0)} for name, one in table["sft"].items()}
    matrix["matrix"]["ppo"]["stories"]["since_parent"] = {"ratio": 1.0, "ci95": [0.99, 1.01], "p_value": 1.0}
    matrix["matrix"]["ppo"]["helpdesk"] |= {"score": 0.97, "since_parent": effect(0.93, 0.97)}
    write_json(folder / "forgetting.json", matrix)
    histogram = {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0], "chosen": [0, 3, 0, 97], "rejected": [88, 12, 0, 0]}
    bins = [{"predicted": 0.62, "observed": 0.55, "count": 20}, {"predicted": 0.97, "observed": 0.9625, "count": 80}]
    pairs: JSON = {
        "pair_accuracy": 0.88,
        "pair_accuracy_ci95": [0.802, 0.930],
        "pair_margin": 1.7,
        "calibration_error": 0.021,
    }
    target = {"kl": 5.8, "kl_target": 3.0, "alarms": ["reward_hacking"]}
    for stage, metrics in (
        ("sft", {}), ("dpo", {}), ("reward", pairs | {"calibration": bins, "score_histogram": histogram}),
        ("ppo", target),
    ):  # fmt: skip
        write_json(folder / "stages" / stage / "outcome.json", rlhf_outcome(stage, metrics))
    steps = [{"step": 4 * n, "loss": 0.1, "reward": 0.05 + 0.1 * n, "kl": 0.5 * n} for n in range(1, 16)]
    write_rows(folder / "stages" / "ppo" / "metrics.jsonl", steps)
    write_rows(folder / "stages" / "ppo" / "rollouts.jsonl", map(rollout, range(1, 16)))
    return folder


def comparison() -> JSON:
    """comparison.json of `write_rlhf_run`."""
    return {
        "format": 1, "key": "77", "parent": "sft", "reward": "reward", "cpu_seconds": 4.0,
        "prompts": {"of": "reward", "held_out": True, "count": 155},
        "stages": {
            "sft": {"score": 0.25, "kl": 0.0, "length": 12.5},
            "dpo": {"score": 1.125, "kl": 9.75, "length": 14.0},
            "ppo": {"score": 1.625, "kl": 6.5, "length": 26.5},
        },
    }  # fmt: skip
