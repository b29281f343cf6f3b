"""NF4, the 4-bit numbers of QLoRA, for one tensor in plain torch (Dettmers et al. 2023, arXiv 2305.14314).

Each block of weights is divided by its largest magnitude, and each quotient becomes the nearest of 16 levels, which are
quantiles of a normal distribution. This is bitsandbytes' format without double quantisation, and gives the same bits;
it is for looking into, and no faster than bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from align.errors import AlignError

# Appendix E of the paper, to the digits of float32.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_SMALLEST = 1e-38  # what a block is divided by at least, so that a block of zeros stays zeros
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Quantized:
    """A tensor in NF4.

    Attributes:
        codes: (ceil(n / 2),) uint8, two of the n codes in a byte, the earlier in the upper half; row by row.
        absmax: (ceil(n / block_size),) float32, the largest magnitude of each block; the last may be shorter.
        shape: of the tensor.
        dtype: of the tensor, and of what `dequantize` gives back.
        block_size: weights that share one absmax.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    block_size: int

    @property
    def bits_per_weight(self) -> float:
        """All that is stored, for one weight: 4 + 32 / block_size where the blocks are full."""
        stored = self.codes.numel() * 8 + self.absmax.numel() * 32
        return stored / max(self.shape.numel(), 1)


@torch.no_grad()
def quantize(tensor: torch.Tensor, block_size: int = 64) -> Quantized:
    """The nearest level for each weight; a weight exactly between two takes the lower one.

    Args:
        tensor: any shape; float32, bfloat16 or float16.
        block_size: at least 1. bitsandbytes takes powers of two from 32 to 4096.

    Raises:
        AlignError: another type, a weight that is not finite, or a block size below 1.
    """
    if block_size < 1:
        raise AlignError(f"a block of NF4 holds at least 1 weight, not {block_size}", "64 is usual")
    if tensor.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise AlignError(f"NF4 takes {known}, not {str(tensor.dtype).removeprefix('torch.')}", "convert the tensor")
    flat = tensor.detach().reshape(-1).float()
    bad = int((~flat.isfinite()).sum())
    if bad:
        raise AlignError(
            f"{bad} of {flat.numel()} weights are not finite, and NF4 has no number for them", "fix the tensor"
        )
    full = flat.numel() // block_size * block_size
    blocks, rest = flat[:full].view(-1, block_size), flat[full:]
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=_SMALLEST))[:, None]).reshape(-1)
    if rest.numel():  # bitsandbytes multiplies whole blocks by the reciprocal, and divides the shorter one
        last = rest.abs().amax().clamp(min=_SMALLEST)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, rest / last])
    codes = torch.bucketize(scaled.clamp(-1, 1), _middles(flat.device)).to(torch.uint8)
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_tensor([LEVELS.index(0.0)])])
    return Quantized(codes[::2] << 4 | codes[1::2], absmax, tensor.shape, tensor.dtype, block_size)


@torch.no_grad()
def dequantize(quantized: Quantized) -> torch.Tensor:
    """The level of each weight times its block's absmax: multiplied in float32, rounded to `dtype` at the end.

    Returns:
        A tensor of the shape and type that was quantised.
    """
    codes, count = quantized.codes, quantized.shape.numel()
    levels = torch.tensor(LEVELS, device=codes.device)
    values = levels[torch.stack([codes >> 4, codes & 15], 1).reshape(-1)[:count].int()]
    scales = quantized.absmax.repeat_interleave(quantized.block_size)[:count]
    return (values * scales).to(quantized.dtype).reshape(quantized.shape)


def _middles(device: torch.device) -> torch.Tensor:
    """(15,): between each level and the next."""
    levels = torch.tensor(LEVELS, device=device)
    return (levels[:-1] + levels[1:]) / 2
