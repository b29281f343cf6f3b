"""PPO with trl.experimental.ppo, which left TRL after 1.12: the other side of benchmarks/ppo.py.

    python trl_ppo.py SETTINGS.json RESULT.json      in an environment with trl 1.11, which benchmarks/ppo.py makes

The settings name folders of a policy and a reward model, a file of prompts, and arguments of PPOConfig. The result is
what the trainer logged of each rollout, the CPU seconds of `train()` alone, and the parameters that were held.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    """Train once, as the settings say."""
    settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(settings["policy"], padding_side="left")
    rows = [json.loads(line)["prompt"] for line in Path(settings["prompts"]).read_text(encoding="utf-8").splitlines()]

    def scoring() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(settings["reward"], num_labels=1, dtype="float32")

    reward, value = scoring(), scoring()
    policy = AutoModelForCausalLM.from_pretrained(settings["policy"], dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(settings["policy"], dtype="float32")
    trainer = PPOTrainer(
        args=PPOConfig(output_dir="out", **settings["arguments"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in rows]}),
    )
    models = (policy, reference, reward, value)
    held = {p.data_ptr(): p.numel() for model in models for p in model.parameters()}
    begun = time.process_time()
    trainer.train()
    seconds = time.process_time() - begun
    logged = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    result = {
        "seconds": seconds,
        "held": sum(held.values()),
        "rollouts": [
            {
                "score": entry["objective/scores"],
                "kl": entry["objective/kl"],
                "value_loss": entry["loss/value_avg"],
                "clip_fraction": entry["policy/clipfrac_avg"],
                "ratio_var": entry["val/ratio_var"],
            }
            for entry in logged
        ],
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
