"""Small models, tokenizers and tickets for the tests of the training side."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as bpe
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from align.lab import MODEL_DIR, data
from align.merging import into_base
from align.parameterization import method as methods
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Outcome, Policy, Reward, Rows, Ticket
from align.stage import program as programs
from align.stage.job import Job
from align.worker import execute as work

LAB = BaseModelIdentity(name="lab", path=str(MODEL_DIR), identity="0" * 64)
BASE = Policy(base=LAB)

# Roles in plain words, so that tokens can merge over the boundary of a turn.
WORDY = (
    "{{ bos_token }}{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# As Qwen 3 has it: only the last answer is written with an (empty) block of thoughts.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lab_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def merging_tokenizer(template: str | None) -> PreTrainedTokenizerBase:
    """Byte pairs over the whole text: tokens merge across words, and across the end of a prompt."""
    own = Tokenizer(bpe.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    texts = [f"{row['prompt'][0]['content']} {row['chosen'][0]['content']}" for row in preferences(40)]
    texts += ["user: What is it?\nassistant: The answer is 4.", "What is 7 plus 2? It is 9."]
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    own.train_from_iterator(
        texts * 3,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    end = "<|im_end|>" if template == THINKING else "</s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token=end, pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """A random model over the lab's vocabulary, with next to no arithmetic in it."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=800,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=4,
        )
    )


def preferences(n: int) -> list[dict[str, Any]]:
    return data.rows("lab/helpdesk_preferences", n=n)


def settings(method: str, **keys: Any) -> dict[str, Any]:
    """A parameterization with all its defaults, as a ticket holds it."""
    return methods.load(method).Keys.model_validate({"method": method, **keys}).model_dump(mode="json")


LORA = settings("lora", lora={"r": 8, "alpha": 16})
OTHER_LORA = settings("lora", lora={"r": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj"]})
QLORA = settings("qlora", lora={"r": 8, "alpha": 16})
FULL = settings("full")


@dataclass
class Stages:
    """A run folder in which single tickets are executed in this process, with the models kept to look into."""

    run: RunDir
    before: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # every tensor, by stage
    jobs: dict[str, Job] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def rows(self, name: str, rows: list[dict[str, Any]]) -> Rows:
        path = self.run.data / f"{name}.jsonl"
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        return Rows(path=self.run.relative(path), sha256=files.digest(rows), count=len(rows), kinds=[])

    def ticket(
        self,
        id: str,
        program: str,
        policy: Policy,
        method: dict[str, Any],
        *,
        rows: list[dict[str, Any]] | None = None,
        held: list[dict[str, Any]] | None = None,
        keys: dict[str, Any] | None = None,
        dtype: str = "auto",
        rewards: Sequence[Reward] = (),
        replay: list[dict[str, Any]] | None = None,
        fisher: list[dict[str, Any]] | None = None,
        **training: Any,
    ) -> Ticket:
        """What the parent would write for a stage; four steps of four rows where nothing else is said."""
        name = "lab/helpdesk_preferences" if program in ("dpo", "reward") else "lab/helpdesk"
        declared = programs.load(program, Path())
        if rewards:
            keys = {"reward": [reward.name for reward in rewards], **(keys or {})}
        if rows is None:
            rows = data.rows(name, n=16)
        if "prompt" in declared.stage.rows:
            rows = [row if "prompt" in row else {"prompt": row["messages"][:-1]} for row in rows]
        return Ticket(
            stage=id,
            program=program,
            program_path=program,
            gives=declared.stage.gives,
            fingerprint=id,
            seed=3,
            policy=policy,
            rewards=list(rewards),
            model={"base": "lab", "dtype": dtype},
            parameterization=method,
            keys={"data": name, **(keys or {})},
            training={
                "learning_rate": 1e-4 if method == FULL else 2e-3,
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 1,
                "train_sampling_strategy": "group_by_length",
                "save_strategy": "no",
                "logging_steps": 1,
                **training,
            },
            train=self.rows(f"{id}-train", rows),
            evaluation=self.rows(f"{id}-held", held) if held else None,
            replay=self.rows(f"{id}-replay", replay) if replay else None,
            replay_ratio=0.25 if replay else 0.0,
            fisher=self.rows(f"{id}-fisher", fisher) if fisher else None,
            probes="none",
            program_sha256=declared.sha256,
            chat_template=None,
            replays=False,
            probes_sha256="",
            measure_base=False,
            processes=1,
            trackers=[],
            run_name=id,
        )

    def execute(self, ticket: Ticket) -> Policy:
        """Run a ticket to its outcome; returns the policy, or the reward model, that goes on."""
        with self._watched(ticket.stage):
            outcome = work.do(self.run, ticket, lambda: False)
        assert outcome is not None
        found = outcome.policy or outcome.reward
        assert found is not None
        self.outcomes[ticket.stage] = outcome
        return found

    def logged(self, id: str, figure: str) -> list[float]:
        """A figure of metrics.jsonl, in the order of steps."""
        lines = self.run.stage(id).metrics.read_text(encoding="utf-8").splitlines()
        return [entry[figure] for entry in map(json.loads, lines) if figure in entry]

    @contextmanager
    def _watched(self, id: str) -> Iterator[None]:
        build, save = work.Builder.build, work.saving.save_policy

        def built(builder: work.Builder) -> Any:
            model, merge = build(builder)
            self.before[id] = tensors(model)
            return model, merge

        def saved(job: Job, run: RunDir) -> Policy:
            self.jobs[id] = job
            return save(job, run)

        with mock.patch.object(work.Builder, "build", built), mock.patch.object(work.saving, "save_policy", saved):
            yield


def at_strength(strength: float) -> Callable[..., PreTrainedModel]:
    """As `merging.merged`, but with the update of all adapters at another strength."""
    exact = into_base.merged

    def merged(base: Any, adapters: Any, run: Path, dtype: torch.dtype) -> PreTrainedModel:
        whole = exact(copy.deepcopy(base), adapters, run, torch.float32)
        plain = exact(base, [], run, torch.float32).state_dict()
        for name, parameter in whole.named_parameters():
            parameter.data = plain[name] + strength * (parameter.data - plain[name])
        return into_base.cast(whole, dtype)

    return merged


def reference(stages: Stages, id: str, rows: str = "train") -> dict[str, torch.Tensor]:
    """The reference that a stage kept, in the order of its rows: each at its first place, NaN if no step takes it."""
    found = load_file(stages.run.stage(id).root / f"reference-{rows}.safetensors")
    places = found.pop("rows").tolist()
    return {name: values[[places.index(row) for row in sorted(set(places))]] for name, values in found.items()}


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in found}


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """The names of those that are not bit-equal to what they were."""
    after = tensors(model)
    assert before.keys() == after.keys()
    return {name for name, old in before.items() if not torch.equal(old, after[name])}
