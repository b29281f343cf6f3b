"""One training step of align's trainers against TRL's own, at the same settings, in one process.

    python -m benchmarks.steps sft
    python -m benchmarks.steps dpo
    options: --pairs N, --steps N

Both get the same model with LoRA, the same token ids in the same order and float32; in DPO both computed the
reference's log-probabilities beforehand. A pair is one training of each side, step by step in turn, so that whatever
else the machine does hits both alike. Counted is the time from the end of a step to the end of the next, after two;
taken is the median ratio of all steps.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median, quantiles
from threading import Semaphore, Thread
from typing import Any

from benchmarks import clock, synthetic

BATCH, WARM_UP, STEPS, PAIRS = 8, 2, 6, 9
TARGET = 1.02


class Trainings:
    """Builds trainers of both sides, trains with both in turn and times their steps."""

    def __init__(self, root: Path, stage: str, steps: int) -> None:
        from transformers import AutoTokenizer

        self.root, self.stage, self.steps = root, stage, steps
        self.model = root / "model"
        synthetic.write_model(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.runs = 0

    def pair(self, *, ours_first: bool) -> dict[bool, list[float]]:
        """CPU seconds of each step: {True: align's, False: TRL's}."""
        order = (True, False) if ours_first else (False, True)
        trainers = {ours: self._trainer(ours) for ours in order}
        gates = {ours: Semaphore(0) for ours in order}
        spent: dict[bool, list[float]] = {ours: [] for ours in order}
        threads = []
        for ours, trainer in trainers.items():
            trainer.add_callback(_turns(gates[ours], gates[not ours], spent[ours]))
            threads.append(Thread(target=_train, args=(trainer, gates[ours], gates[not ours])))
        with redirect_stdout(io.StringIO()):  # the logged figures
            for thread in threads:
                thread.start()
            gates[ours_first].release()
            for thread in threads:
                thread.join()
        return {ours: found[WARM_UP:] for ours, found in spent.items()}

    def _trainer(self, ours: bool) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        from align.data import tokens
        from align.trainers.dpo import DpoTrainer
        from align.trainers.sft import SftTrainer

        self.runs += 1
        total = WARM_UP + self.steps
        settings: dict[str, Any] = {
            "output_dir": str(self.root / f"run{self.runs}"),
            "max_steps": total,
            "per_device_train_batch_size": BATCH,
            "train_sampling_strategy": "sequential",
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        common: dict[str, Any] = {"model": self._policy(), "processing_class": self.tokenizer}
        if self.stage == "sft":
            args = SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True})
            rows = synthetic.sft_rows(BATCH * total)
            columns = tokens.together(tokens.language_modeling(rows, None, self.tokenizer, args, completion_only=True))
            kind = SftTrainer if ours else SFTTrainer
            return kind(args=args, train_dataset=Dataset.from_dict(columns), **common)
        args = DPOConfig(**settings, precompute_ref_log_probs=True)
        pairs = synthetic.preference_rows(BATCH * total)
        if ours:
            data = Dataset.from_dict(tokens.together(tokens.preference(pairs, self.tokenizer, args)))
            reference = self.root / f"reference{self.runs}.safetensors"
            return DpoTrainer(args=args, train_dataset=data, reference_file=reference, **common)
        return DPOTrainer(args=args, train_dataset=Dataset.from_list(pairs), **common)

    def _policy(self) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def _train(trainer: Any, mine: Semaphore, other: Semaphore) -> None:
    mine.acquire()
    trainer.train()
    other.release()


def _turns(mine: Semaphore, other: Semaphore, spent: list[float]) -> Any:
    """A callback that lets the other side take a step after each of its own, and times its own."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        started = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started = time.thread_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            spent.append(time.thread_time() - self.started)
            if state.global_step < state.max_steps:
                other.release()
                mine.acquire()
                self.started = time.thread_time()

    return Turns()


def main() -> None:
    """Time both sides in turn; every other pair begins with TRL."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stage", choices=("sft", "dpo"))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    clock.heading(f"steps {asked.stage}: a step of batch {BATCH}, {asked.steps} steps a side, {asked.pairs} pairs")
    with tempfile.TemporaryDirectory() as root:
        trainings = Trainings(Path(root), asked.stage, asked.steps)
        found: dict[bool, list[float]] = {True: [], False: []}
        for number in range(asked.pairs):
            for ours, seconds in trainings.pair(ours_first=number % 2 == 0).items():
                found[ours] += seconds
    for ours, each in found.items():
        print(f"{'align' if ours else 'TRL':<6} {clock.spread([s * 1000 for s in each], 0)} ms a step")
    ratios = [a / b for a, b in zip(found[True], found[False], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    print(f"align / TRL, step by step: half of {len(ratios)} ratios lie in {low:.3f}-{high:.3f}")
    clock.verdict(f"{asked.stage}: align / TRL", median(ratios), TARGET)


if __name__ == "__main__":
    main()
