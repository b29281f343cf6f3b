"""The toy of `benchmarks.ppo` and `benchmarks.kl_jumps`: random Llamas, prompts and pairs, and `align run` on them."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import clock

EPISODES, ROLLOUT, MINIBATCH, PASSES = 2048, 64, 16, 4
RATE, COEF, NEW_TOKENS = 1e-3, 0.05, 24
WORDS = 125  # and three special tokens

# A stage file: the shipped stage, which writes beside its results what its trainer needed.
MEASURED = """\
import dataclasses, gc, json, resource, sys, time
from pathlib import Path
from align import stage

SHIPPED = stage.load("ppo", Path()).stage
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if "torch" in sys.modules:  # the process that trains, before it loads a model
    import align.rl.parts, align.trainers.ppo
    IMPORTED = peak()

def held(trainer):
    others = [*trainer.scorers, trainer.reference]
    models = [trainer.model, *(part for o in others for part in (getattr(o, "model", None), getattr(o, "head", None)))]
    found = {p.data_ptr(): p.numel() for model in models if model is not None for p in model.parameters()}
    return sum(found.values()) + sum(kept.numel() for _, kept in getattr(trainer.reference, "kept", ()))

def train(job):
    fit = job.fit
    def measured(trainer):
        found = {"held": held(trainer)}
        sample = trainer._generate_and_score_completions
        def sampled(inputs):
            out = sample(inputs)
            found.setdefault("sampled", peak() - IMPORTED)
            return out
        trainer._generate_and_score_completions = sampled
        begun = time.process_time()
        metrics = fit(trainer)
        found |= {"seconds": time.process_time() - begun, "peak": peak() - IMPORTED}
        (job.dir.root / "measured.json").write_text(json.dumps(found), encoding="utf-8")
        return metrics
    job.fit = measured
    return SHIPPED.train(job)

STAGE = dataclasses.replace(SHIPPED, train=train)
"""


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int


TOY = Shape(vocabulary=WORDS + 3, hidden=96, intermediate=288, layers=4, heads=4)
LARGE = Shape(vocabulary=32000, hidden=768, intermediate=2688, layers=12, heads=12)


def write_model(folder: Path, shape: Shape) -> None:
    """A random Llama and a tokenizer of one token a word: w0, w1, ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    entries = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(shape.vocabulary - 3))]
    raw = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def words(rng: random.Random, count: int, better: float = 0.5) -> str:
    """Random words, that share of them from the better half of the vocabulary."""
    half = WORDS // 2
    drawn = (rng.randrange(half) if rng.random() < better else rng.randrange(half, WORDS) for _ in range(count))
    return " ".join(f"w{i}" for i in drawn)


def prompt_rows(count: int) -> list[dict[str, str]]:
    """Prompts of 4 to 12 words."""
    rng = random.Random(1)
    return [{"prompt": words(rng, rng.randint(4, 12))} for _ in range(count)]


def pair_rows(count: int) -> list[dict[str, str]]:
    """Pairs of answers, of which the chosen one has more of the better words."""
    rng, rows = random.Random(2), []
    for _ in range(count):
        worse, better = sorted((rng.random(), rng.random()))
        answers = [" " + words(rng, rng.randint(4, NEW_TOKENS), share) for share in (better, worse)]
        rows.append({"prompt": words(rng, rng.randint(4, 12)), "chosen": answers[0], "rejected": answers[1]})
    return rows


class Bench:
    """A model and rows in a folder, and `align run` there."""

    def __init__(self, root: Path, shape: Shape, prompts: int, pairs: int) -> None:
        self.root = root
        self.model, self.stage = root / "model", root / "measured_ppo.py"
        if not self.model.is_dir():
            write_model(self.model, shape)
        self.prompts = write_rows(root / "prompts.jsonl", prompt_rows(prompts))
        self.pairs = write_rows(root / "pairs.jsonl", pair_rows(pairs))
        self.stage.write_text(MEASURED, encoding="utf-8")

    def run(self, name: str, stages: dict[str, Any], seed: int, method: dict[str, Any]) -> Path:
        """The folder of the stages of one run, which is not repeated where it is finished."""
        here = self.root / name
        here.mkdir(exist_ok=True)
        recipe = {
            "name": name,
            "seed": seed,
            "model": {"base": str(self.model), "dtype": "float32"},
            "parameterization": method,
            "forgetting": {"probes": "none"},
            "stages": stages,
        }
        (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        clock.cpu_seconds([sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"], here)
        return here / "run/stages"

    def reward(self, method: dict[str, Any], **training: Any) -> Path:
        """The folder of a trained reward stage."""
        stage = {
            "policy": "base",
            "data": str(self.pairs),
            "training": {"bf16": False, "save_strategy": "no", "per_device_train_batch_size": 16, **training},
        }
        return self.run("reward", {"reward": stage}, 0, method) / "reward"
