"""What align's parameterizations cost above the bare PEFT methods, QLoRA's guard, and switching an adapter.

    python -m benchmarks.parameterizations      options: --pairs N, --steps N

lora, adapter: a training step (forward, backward, AdamW) of the Llama of benchmarks/synthetic.py in float32. One side
is loaded and given its adapter as the worker does, the other by transformers and `get_peft_model` with the same
settings.
guard: the same Llama in 4 bits under LoRA, as the worker computes it, with pin_4bit_layout of align/policy/load.py and
without;
nothing was evaluated before, for without the guard gradients would be wrong afterwards.
A pair is a new model of each side; both take each batch, in turn. The losses of both sides show that the work is the
same. Taken is the median ratio of all steps, after two.
switch: from one LoRA adapter to another on the lab model in memory, in wall time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import clock, synthetic

BATCH, WARM_UP, STEPS, PAIRS = 8, 2, 6, 9
STEP_TARGET, GUARD_TARGET, SWITCH_TARGET = 1.03, 1.02, 50
SWITCHES = 20
LORA = {"r": 16, "alpha": 32}

Batch = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Two ways to make the model that is trained.

    Attributes:
        name: of the first side; `peer` is that of the other.
        make: the model of either side, given whether it is the first.
        autocast: whether steps compute in bfloat16 where the processor has it, as the worker's do.
        target: of the ratio of their step times.
    """

    name: str
    peer: str
    make: Callable[[bool], Any]
    autocast: bool
    target: float


class Side:
    """A model in training."""

    def __init__(self, model: Any, autocast: bool) -> None:
        import torch

        from align.policy import load as models

        self.model = model.train()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.autocast = autocast and models.native_bf16()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def gradients(self, batch: Batch) -> None:
        """One forward and one backward pass; the gradients stay on the parameters."""
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16) if self.autocast else nullcontext():
            loss = self.model(**batch, use_cache=False).loss
        loss.backward()
        self.losses.append(loss.item())

    def step(self, batch: Batch) -> None:
        """One training step, timed."""
        start = clock.process_seconds()
        self.optimizer.zero_grad()
        self.gradients(batch)
        self.optimizer.step()
        self.seconds.append(clock.process_seconds() - start)


class Bench:
    """The synthetic Llama on disk, and batches for it."""

    def __init__(self, root: Path, steps: int) -> None:
        self.folder = root / "model"
        synthetic.write_model(self.folder, intermediate_size=704)  # whole blocks of 64 in 4 bits
        self.batches = self._batches(WARM_UP + steps)

    def _batches(self, count: int) -> list[Batch]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        rows = [row["prompt"] + row["completion"] for row in synthetic.sft_rows(BATCH * count)]
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        found = []
        for first in range(0, len(texts), BATCH):
            batch = dict(tokenizer(texts[first : first + BATCH], return_tensors="pt", padding=True))
            batch.pop("token_type_ids", None)
            found.append(batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)})
        return found

    def lora(self, ours: bool) -> Any:
        """LoRA on every linear layer."""
        import torch
        from peft import LoraConfig, get_peft_model

        from align.parameterization.methods import lora

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = self._loaded(ours)
        torch.manual_seed(0)
        if ours:
            return lora.apply(model, lora.Keys(lora=lora.LoraKeys(**LORA)), "default")
        bare = LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=targets, task_type="CAUSAL_LM")
        return get_peft_model(model, bare)

    def adapter(self, ours: bool) -> Any:
        """Bottleneck adapters of width 64 behind the MLPs."""
        import torch
        from peft import get_peft_model

        from align.bottleneck.config import BottleneckConfig
        from align.parameterization.methods import adapter

        model = self._loaded(ours)
        torch.manual_seed(0)
        if ours:
            return adapter.apply(model, adapter.Keys(), "default")
        return get_peft_model(model, BottleneckConfig(task_type="CAUSAL_LM"))

    def qlora(self, guarded: bool) -> Any:
        """LoRA on the model in 4 bits, its layout pinned or as bitsandbytes has it."""
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        from align.parameterization.methods import qlora
        from align.policy import load as models

        keys = qlora.Keys.model_validate({"lora": LORA})
        four_bits = keys.quantization.arguments()
        if guarded:
            model: Any = models.load_weights(str(self.folder), {}, torch.bfloat16, four_bits)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=torch.bfloat16,
                quantization_config=BitsAndBytesConfig(**four_bits),
                device_map={"": "cpu"},
            )
        torch.manual_seed(0)
        return qlora.apply(model, keys, "default")

    def _loaded(self, ours: bool) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from align.policy import load as models

        if ours:
            return models.load_weights(str(self.folder), {}, torch.float32, None)
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)


def compare(comparison: Comparison, batches: list[Batch], pairs: int) -> None:
    """Train both sides in turn; each side begins every other step, and the first one every other pair."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    apart = 0.0
    for number in range(pairs):
        sides = {first: Side(comparison.make(first), comparison.autocast) for first in (True, False)}
        for step, batch in enumerate(batches):
            order = (True, False) if (number + step) % 2 == 0 else (False, True)
            for first in order:
                sides[first].step(batch)
        for first, side in sides.items():
            spent[first] += side.seconds[WARM_UP:]
        apart = max(apart, *(abs(a - b) for a, b in zip(sides[True].losses, sides[False].losses, strict=True)))
    for first, name in ((True, comparison.name), (False, comparison.peer)):
        print(f"{name:<22} {clock.spread([s * 1000 for s in spent[first]], 0)} ms a step")
    ratios = [a / b for a, b in zip(spent[True], spent[False], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    what = f"{comparison.name} / {comparison.peer}"
    print(f"half of {len(ratios)} ratios lie in {low:.3f}-{high:.3f}; largest difference of a loss {apart:.1e}")
    clock.verdict(what, median(ratios), comparison.target)


def same_gradients(bench: Bench) -> None:
    """The guard changes no gradient of a model that was never evaluated."""
    import torch

    found: list[dict[str, torch.Tensor]] = []
    for guarded in (True, False):
        side = Side(bench.qlora(guarded), autocast=True)
        with torch.no_grad():
            for name, parameter in side.model.named_parameters():
                if "lora_B" in name:  # zero at first, which would leave A without a gradient
                    parameter.fill_(0.01)
        side.gradients(bench.batches[0])
        found.append({n: p.grad for n, p in side.model.named_parameters() if p.grad is not None})
    one, two = found
    assert one.keys() == two.keys()
    apart = [name for name in one if not torch.equal(one[name], two[name])]
    zero = sum(not tensor.any() for tensor in one.values())
    print(f"{len(one) - len(apart)} of {len(one)} gradients are equal bit for bit; {zero} are zero")
    clock.verdict("gradients that differ", len(apart), 0)


def switch() -> None:
    """Switch between two adapters of the lab model, both in memory."""
    import torch

    from align.lab import MODEL_DIR
    from align.parameterization.methods import lora
    from align.policy import load as models
    from align.policy import stack

    model: Any = models.load_weights(str(MODEL_DIR), {}, torch.bfloat16, None)
    keys = lora.Keys(lora=lora.LoraKeys(**LORA))
    names = ("one", "two")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = lora.apply(model, keys, name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ids = torch.arange(5, 25)[None]
    before = _storage(stack.base_weights(model))
    answers: dict[str, torch.Tensor] = {}
    spent = []
    for number in range(SWITCHES):
        name = names[number % 2]
        start = time.perf_counter()
        stack.activate(model, [name])
        spent.append((time.perf_counter() - start) * 1000)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(logits, answers.setdefault(name, logits)), f"adapter {name!r} gives another answer"
    assert not torch.equal(answers["one"], answers["two"]), "the adapters give the same answer"
    assert before == _storage(stack.base_weights(model)), "weights of the base moved"
    print(f"switch of an adapter   {clock.spread(spent, 2)} ms; {len(before)} base weights stayed where they were")
    clock.verdict("milliseconds of a switch", median(spent), SWITCH_TARGET)


def _storage(weights: dict[str, Any]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in weights.items()}


def main() -> None:
    """The two methods, the guard, the switch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    clock.heading(f"parameterizations: steps of batch {BATCH}, {asked.steps} a side, {asked.pairs} pairs")
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), asked.steps)
        for comparison in (
            Comparison("align's lora", "PEFT's LoRA", bench.lora, False, STEP_TARGET),
            Comparison("align's adapter", "bare bottleneck", bench.adapter, False, STEP_TARGET),
            Comparison("qlora with the guard", "qlora without it", bench.qlora, True, GUARD_TARGET),
        ):
            compare(comparison, bench.batches, asked.pairs)
        same_gradients(bench)
    switch()


if __name__ == "__main__":
    main()
