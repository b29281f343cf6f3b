"""TRL's DPO from the adapter of its SFT, the way TRL documents it: load the adapter trainable, give it to the trainer.

The script behind `trl dpo` gives the trainer a model's name, never an adapter to go on with, so it is repeated here but
for that line.
"""

from __future__ import annotations

from datasets import load_dataset
from peft import AutoPeftModelForCausalLM
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser


def main() -> None:
    """Train; the flags are those of `trl dpo`, with an adapter's folder as `--model_name_or_path`."""
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config()
    trainer = DPOTrainer(
        model=AutoPeftModelForCausalLM.from_pretrained(model.model_name_or_path, is_trainable=True),
        args=args,
        train_dataset=load_dataset(script.dataset_name)[script.dataset_train_split],
    )
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
