"""Peak memory and tokens/s of a training step of 7B- and 70B-shaped Llamas on one CUDA GPU, and latency of generating.

    python -m benchmarks.gpu.memory --out memory.json   # all cases; one that fails is a row with its error
    python -m benchmarks.gpu.memory --dry               # the same code with tiny shapes on the CPU
    options: --cases NAME...

Each case is a process of its own. Weights are random and made on the GPU, matrix by matrix and quantised at once where
the case asks for 4 bits, so that building needs the model and one matrix. What is trained is chosen by
align.parameterization; the step is that of align's SFT on a GPU: bfloat16 autocast, activation checkpointing, TRL's
fused head (no logits are kept), gradients clipped. Batch 1, 2,048 tokens. Spectrum's layers are named, not scanned;
the lowest layer is among them. Where weights are trained they are bfloat16, which saves memory and rounds small updates
away: align's own default there is float32.

Peaks are those of the whole process, building included, in GB of 10^9 bytes. Memory outside PyTorch's allocator (the
CUDA context, about half a GB) is not in them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
FUSED, EIGHT_BIT = "AdamW, fused", "AdamW, 8-bit"
NEW_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 32000


@dataclass(frozen=True)
class Scale:
    """How much is measured: tokens of a row and of a prompt, steps that are not timed and steps that are."""

    shapes: dict[str, Shape]
    tokens: int
    prompt: int
    warm_up: int
    steps: int


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        shape: a key of `Scale.shapes`.
        keys: the recipe's `parameterization`.
        target: upper bound of the peak in GB, where there is one.
        generates: latency of generating is measured instead of a step.
    """

    title: str
    shape: str
    keys: dict[str, Any]
    optimizer: str = FUSED
    target: float | None = None
    generates: bool = False


REAL = Scale(
    {"7B": Shape(4096, 32, 11008, 32, 32), "70B": Shape(8192, 80, 28672, 64, 8)},
    tokens=2048,
    prompt=128,
    warm_up=2,
    steps=5,
)
TINY = Scale(
    {"7B": Shape(64, 8, 128, 4, 4, 256), "70B": Shape(128, 8, 192, 4, 2, 256)}, tokens=32, prompt=8, warm_up=1, steps=2
)
LORA = {"method": "lora", "lora": {"r": 16, "alpha": 32}}
QLORA = {"method": "qlora", "lora": {"r": 16, "alpha": 32}}
SPECTRUM = {"method": "spectrum", "spectrum": {"snr_threshold": 0.75}}
CASES = {
    "qlora-7b": Case("QLoRA r16, nf4", "7B", QLORA, target=6.5),
    "lora-7b": Case("LoRA r16", "7B", LORA, target=16),
    "adapter-7b": Case("adapter r64", "7B", {"method": "adapter", "adapter": {"r": 64}}),
    "spectrum-7b": Case("Spectrum 25 %", "7B", SPECTRUM),
    "full-7b": Case("full", "7B", {"method": "full"}, target=56),
    "full-7b-8bit": Case("full", "7B", {"method": "full"}, EIGHT_BIT, target=56),
    "qlora-70b": Case("QLoRA r16, nf4", "70B", QLORA, EIGHT_BIT, target=46),
    "generate-7b": Case(f"LoRA r16, {NEW_TOKENS} tokens", "7B", LORA, generates=True),
}

Row = dict[str, Any]


def build(shape: Shape, quantization: dict[str, Any] | None, device: torch.device) -> PreTrainedModel:
    """A Llama with random bfloat16 weights, its linear layers but the head quantised where asked.

    Args:
        quantization: arguments of BitsAndBytesConfig, 4 bits.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    from align.policy import load as models

    config = LlamaConfig(**asdict(shape), max_position_embeddings=4096, bos_token_id=None, eos_token_id=None)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if quantization:
        replace_with_bnb_linear(model, ["lm_head"], BitsAndBytesConfig(**quantization))
        model.is_loaded_in_4bit = True  # which PEFT asks for
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, _weight(module, parameter, device))
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    models.pin_4bit_layout(model)
    found: PreTrainedModel = model.eval()
    return found


def _weight(module: torch.nn.Module, meta: torch.nn.Parameter, device: torch.device) -> torch.nn.Parameter:
    """A weight in place of one without memory: random, of a norm ones, in 4 bits where it shall be."""
    import torch
    from bitsandbytes.nn import Params4bit

    values = torch.empty(meta.shape, dtype=torch.bfloat16, device=device)
    values = values.normal_(std=0.02) if meta.ndim > 1 else values.fill_(1)
    if not isinstance(meta, Params4bit):
        return torch.nn.Parameter(values)
    settings = {name: getattr(meta, name) for name in ("compress_statistics", "quant_type", "quant_storage")}
    packed: torch.nn.Parameter = Params4bit(values, requires_grad=False, module=module, **settings).to(device)
    return packed


def apply(case: Case, scale: Scale, device: torch.device) -> Any:
    """The model with what the case trains, as align's worker has it."""
    from align.parameterization import method as methods
    from align.policy import stack

    method = methods.load(case.keys["method"])
    settings = dict(case.keys)
    shape = scale.shapes[case.shape]
    if "spectrum" in settings:  # as many layers as the threshold leaves, without a scan
        step = round(1 / (1 - settings["spectrum"]["snr_threshold"]))
        layers = list(range(0, shape.num_hidden_layers, step))
        settings["spectrum"] = {**settings["spectrum"], "layers_to_finetune": layers}
    keys = method.Keys.model_validate(settings)
    return method.apply(build(shape, method.quantization(keys), device), keys, stack.TRAINED)


class Training:
    """Steps of a model on random tokens, as SFTTrainer takes them."""

    def __init__(self, model: Any, optimizer: str, tokens: int) -> None:
        import torch
        from peft import PeftModel
        from trl.trainer.utils import add_fused_lm_head

        base = model.get_base_model() if isinstance(model, PeftModel) else model
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if isinstance(model, PeftModel):
            model.enable_input_require_grads()
        self.model = model.train()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer: Any
        if optimizer == EIGHT_BIT:
            from bitsandbytes.optim import AdamW8bit

            self.optimizer = AdamW8bit(self.trained, lr=1e-5)
        else:
            self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        self.ids = torch.randint(base.config.vocab_size, (1, tokens), device=model.device)

    def step(self) -> float:
        """Forward, backward, clipping, optimizer; returns the loss."""
        import torch

        with torch.autocast(self.ids.device.type, dtype=torch.bfloat16):
            found = self.model(input_ids=self.ids, labels=self.ids, use_cache=False, fused_lm_head=True)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(found.loss.item())


def timed(action: Callable[[], Any], warm_up: int, times: int) -> list[float]:
    """Wall seconds of each time, the GPU's work included."""
    import torch

    spent = []
    for _ in range(warm_up + times):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return spent[warm_up:]


def train(case: Case, scale: Scale, model: Any) -> Row:
    """Memory and speed of a training step."""
    from align.policy import load as models

    parameters = models.counts(model)
    training = Training(model, case.optimizer, scale.tokens)
    losses: list[float] = []
    seconds = timed(lambda: losses.append(training.step()), scale.warm_up, scale.steps)
    return {
        "parameters": parameters,
        "losses": losses,
        "step_seconds": seconds,
        "tokens_per_second": scale.tokens / median(seconds),
    }


def generate(scale: Scale, model: Any) -> Row:
    """Seconds of greedy generation with the adapter, and with the adapter merged."""
    import torch

    ids = torch.randint(model.config.vocab_size, (1, scale.prompt), device=model.device)

    def answer() -> None:
        given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
        with torch.inference_mode():
            found = model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, use_cache=True, **given)
        assert found.shape[1] == scale.prompt + NEW_TOKENS

    as_adapter = timed(answer, scale.warm_up, scale.steps)
    model = model.merge_and_unload(safe_merge=True)  # as align.merging.merge does
    return {"adapter_seconds": as_adapter, "merged_seconds": timed(answer, scale.warm_up, scale.steps)}


def measure(name: str, dry: bool) -> Row:
    """One case in this process. Without CUDA there are no figures of memory."""
    import torch

    case, scale = CASES[name], TINY if dry else REAL
    torch.manual_seed(0)
    model = apply(case, scale, torch.device("cpu" if dry else "cuda"))
    held = torch.cuda.memory_allocated()  # 0 where nothing is on a GPU
    found = generate(scale, model) if case.generates else train(case, scale, model)
    if not dry:
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        found |= {"model_gb": held / 1e9, "peak_gb": peak / 1e9, "reserved_gb": reserved / 1e9}
    return found


def in_process(name: str, dry: bool) -> Row:
    """One case in a process of its own; its error where it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu.memory", "--case", name, *(["--dry"] if dry else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {"case": name, **json.loads(done.stdout.splitlines()[-1])}
    lines = done.stderr.strip().splitlines() if done.returncode > 0 else []  # a killed one has no last word
    return {"case": name, "error": lines[-1][:300] if lines else f"ended with code {done.returncode}"}


def line(row: Row) -> str:
    """A row as Markdown; without CUDA figures of memory are empty."""
    case = CASES[row["case"]]
    title = f"{case.title}, {case.shape}"
    if "error" in row:
        return f"| {title} | failed: {row['error'].replace('|', '/')} | | | | | | |"
    memory = [f"{row[key]:.2f}" if key in row else "" for key in ("model_gb", "peak_gb", "reserved_gb")]
    if case.generates:
        ways = (f"{way} {median(row[f'{way}_seconds']) * 1000:.0f} ms" for way in ("adapter", "merged"))
        return f"| {title} | {', '.join(ways)} | | {' | '.join(memory)} | | |"
    counted = row["parameters"]
    share = f"{counted['trainable'] / 1e6:,.1f} of {counted['total'] / 1e6:,.0f} M"
    target = "" if case.target is None else f"{case.target:g}"
    if case.target is not None and "peak_gb" in row:
        target += ", met" if row["peak_gb"] <= case.target else ", NOT met"
    return (
        f"| {title} | {share} | {case.optimizer} | {' | '.join(memory)} | {row['tokens_per_second']:,.0f} | {target} |"
    )


def _gpu() -> str:
    """Name and driver of the GPU, without touching it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit("there is no CUDA GPU; --dry runs tiny shapes on the CPU") from error


def main() -> None:
    """All cases in turn, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU: whether it works, not a figure")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(asked.case, asked.dry)))
        return
    about: Row = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": "none, dry run with tiny shapes" if asked.dry else _gpu(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    print(f"{about['date']}, {about['gpu']}, {', '.join(f'{n} {v}' for n, v in about['versions'].items())}\n")
    print("| case | trained | optimizer | model GB | peak GB | reserved GB | tokens/s | target GB |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in asked.cases:
        rows.append(in_process(name, asked.dry))
        print(line(rows[-1]), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps({**about, "cases": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
