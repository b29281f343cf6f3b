"""One training step of align's trainers against TRL's own, at the same settings, in one process.

    python -m benchmarks.steps sft
    python -m benchmarks.steps dpo
    options: --pairs N, --steps N

Both get the same model with LoRA, the same token ids in the same order and float32; in DPO both computed the
reference's log-probabilities beforehand. Counted are the steps after the first two of each training.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import clock, synthetic

BATCH, WARM_UP, STEPS, PAIRS = 8, 2, 10, 9
TARGET = 1.02


class Trainings:
    """Builds a trainer of either side, trains with it and times its steps."""

    def __init__(self, root: Path, stage: str, steps: int) -> None:
        from transformers import AutoTokenizer

        self.root, self.stage, self.steps = root, stage, steps
        self.model = root / "model"
        synthetic.write_model(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.runs = 0

    def seconds(self, *, ours: bool) -> float:
        """CPU seconds of a step."""
        from transformers import TrainerCallback

        class Timer(TrainerCallback):
            started = ended = 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP:
                    self.started = clock.process_seconds()
                elif state.global_step == state.max_steps:
                    self.ended = clock.process_seconds()

        timer = Timer()
        trainer = self._trainer(ours)
        trainer.add_callback(timer)
        with redirect_stdout(io.StringIO()):  # the logged figures
            trainer.train()
        return (timer.ended - timer.started) / self.steps

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
            columns = tokens.language_modeling(rows, None, self.tokenizer, args, completion_only=True)
            kind = SftTrainer if ours else SFTTrainer
            return kind(args=args, train_dataset=Dataset.from_dict(columns), **common)
        args = DPOConfig(**settings, precompute_ref_log_probs=True)
        pairs = synthetic.preference_rows(BATCH * total)
        if ours:
            data = Dataset.from_dict(tokens.preference(pairs, self.tokenizer, args))
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
        trainings.seconds(ours=True)  # the first training of a process also imports and allocates
        found: dict[bool, list[float]] = {True: [], False: []}
        for pair in range(asked.pairs):
            for ours in (True, False) if pair % 2 == 0 else (False, True):
                found[ours].append(trainings.seconds(ours=ours))
    for ours, seconds in found.items():
        print(f"{'align' if ours else 'TRL':<6} {clock.spread([s * 1000 for s in seconds], 0)} ms a step")
    ratio = median(a / b for a, b in zip(found[True], found[False], strict=True))
    clock.verdict(f"{asked.stage}: align / TRL", ratio, TARGET)


if __name__ == "__main__":
    main()
