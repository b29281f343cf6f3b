"""What fits on which GPU, computed from a model's shape; the table of docs/scale.md. Nothing is run.

    python -m benchmarks.scale            # print the table
    python -m benchmarks.scale --write    # and put it into docs/scale.md

A GPU holds weights, gradients and AdamW's two moments, as align holds them: what is trained in float32, a frozen base
in bfloat16 or NF4. DDP has all of it in every process. FSDP2 shares all of it out among N processes (Zhao et al. 2023,
arXiv 2304.11277), but for a layer at work and the embeddings, which are whole in bfloat16 with a float32 gradient; and
for the time before and after training, when each process holds the whole model beside its part. ZeRO-2 shares gradients
and moments out (Rajbhandari et al. 2020, arXiv 1910.02054, P_os+g). NF4 with double quantization takes 4.127 bits a
weight (Dettmers et al. 2023, arXiv 2305.14314). Beside that the activations of one row of 2,048 tokens with
checkpointing in 16 bits: the input of each layer and one layer at work, 2 s b h L + 34 s b h bytes (Korthikanti et al.
2022, arXiv 2205.05198, without the attention map, which fused attention does not keep). A fifth of the memory is left
for CUDA, buffers and fragments.
"""

from __future__ import annotations

import argparse

from benchmarks import page
from benchmarks.gpu.memory import ROOT, Shape
from benchmarks.gpu.ppo import GRADIENT_AND_ADAM, NF4, RANK, lora, weights

PAGE = ROOT / "docs" / "scale.md"
MARK = "<!-- table: scale -->"
SHAPES = {  # TinyLlama, OpenLLaMA 3B, Llama 2 7B and 13B, LLaMA 33B, Llama 2 70B
    "1.1B": Shape(2048, 22, 5632, 32, 4),
    "3.4B": Shape(3200, 26, 8640, 32, 32),
    "7B": Shape(4096, 32, 11008, 32, 32),
    "13B": Shape(5120, 40, 13824, 40, 40),
    "33B": Shape(6656, 60, 17920, 52, 52),
    "70B": Shape(8192, 80, 28672, 64, 8),
}
GPUS = (24, 48, 80, 141)  # GB
SHARED = (2, 4, 8, 16)  # processes of FSDP2
AT_WORK = 2 + 4  # bytes of a weight that is whole: in bfloat16, with its gradient in float32
USED = 0.8
TOKENS = 2048


def state(shape: Shape, method: str, sharing: int = 1) -> float:
    """Bytes of weights, gradients and moments in each process.

    Args:
        method: `full`, `lora` or `qlora`; the last two of rank 16 on all linear layers.
        sharing: processes that share gradients and moments out; 1 with DDP, however many there are.
    """
    matrices, rest, head = weights(shape)
    whole, adapter = matrices + rest + head, lora(shape)
    frozen = {"full": 0.0, "lora": 2.0 * whole, "qlora": NF4 * matrices + 2 * (rest + head)}[method]
    trained = whole if method == "full" else adapter
    return frozen + (4 + GRADIENT_AND_ADAM / sharing) * trained


def fully_sharded(shape: Shape, processes: int) -> float:
    """Bytes of weights, gradients and moments that each process of FSDP2 holds at most; every weight is trained."""
    matrices, rest, head = weights(shape)
    whole = matrices + rest + head
    training = state(shape, "full") / processes + AT_WORK * (matrices / shape.num_hidden_layers + rest + head)
    before_and_after = 4 * whole + 4 * whole / processes
    return max(training, before_and_after)


def activations(shape: Shape, tokens: int = TOKENS) -> int:
    """Bytes for one row of so many tokens."""
    return (2 * shape.num_hidden_layers + 34) * tokens * shape.hidden_size


def choice(shape: Shape, gigabytes: float) -> str:
    """What trains most of the weights there: on one GPU or, with DDP, on several; and what sharing allows."""

    def fits(held: float) -> bool:
        return held + activations(shape) <= USED * gigabytes * 1e9

    method = next((method for method in ("full", "lora", "qlora") if fits(state(shape, method))), None)
    if method == "full":
        return "`full`"
    several = next((number for number in SHARED if fits(fully_sharded(shape, number))), None)
    found = [f"`{method}`"] if method else []
    found += [f"`full` with FSDP2 on {several}"] if several else []
    return "; ".join(found) or "none"


def table() -> str:
    """The Markdown table."""
    columns = [f"{gigabytes} GB" for gigabytes in GPUS]
    lines = [f"| model | full GB | LoRA r{RANK} GB | QLoRA r{RANK} GB | a row GB | {' | '.join(columns)} |"]
    lines.append("|---" * (5 + len(GPUS)) + "|")
    for name, shape in SHAPES.items():
        held = [f"{state(shape, method) / 1e9:.1f}" for method in ("full", "lora", "qlora")]
        cells = [*held, f"{activations(shape) / 1e9:.1f}", *(choice(shape, gigabytes) for gigabytes in GPUS)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into docs/scale.md")
    asked = parser.parse_args()
    print(table())
    if asked.write:
        page.fill(PAGE, MARK, table())


if __name__ == "__main__":
    main()
