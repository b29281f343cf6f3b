"""NF4 of one tensor, beside bitsandbytes and a search over the levels."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import pytest
import torch

from align.errors import AlignError
from align.policy import nf4

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDE = [(64,), (7,), (1,), (1000,), (3, 128), (33, 65), (5, 3), (2, 3, 64), (128, 192)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return (torch.randn(shape) * scale).to(dtype)


def theirs(tensor: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bitsandbytes' codes and absmax, and its weights from them as from one row: see the test of rows below."""
    codes, state = bnb.quantize_4bit(tensor, blocksize=block_size, quant_type="nf4")
    count = tensor.numel()
    state.shape = torch.Size([count + count % 2])  # an odd row would be compiled, which takes ten seconds
    return codes.reshape(-1), state.absmax, bnb.dequantize_4bit(codes, state).reshape(-1)[:count].view_as(tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_codes_scales_and_weights_are_the_bits_of_bitsandbytes(dtype: torch.dtype, block_size: int) -> None:
    for shape in WIDE:
        for scale in (1.0, 1e-5, 1e3):
            tensor = drawn(shape, dtype, scale)
            own = nf4.quantize(tensor, block_size)
            codes, absmax, weights = theirs(tensor, block_size)
            assert torch.equal(own.codes, codes) and torch.equal(own.absmax, absmax), (shape, scale)
            found = nf4.dequantize(own)
            assert found.dtype == dtype and torch.equal(found, weights), (shape, scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_round_trip_is_bitsandbytes_own_where_rows_are_whole_blocks(dtype: torch.dtype) -> None:
    for shape in [(3, 64), (128, 192), (2, 3, 64)]:
        tensor = drawn(shape, dtype)
        expected = bnb.dequantize_4bit(*bnb.quantize_4bit(tensor, quant_type="nf4"))
        assert torch.equal(nf4.dequantize(nf4.quantize(tensor)), expected)


def test_rows_that_are_not_whole_blocks_come_back_wrong_from_bitsandbytes_on_a_cpu() -> None:
    """Skipped where it takes another kernel. Its codes and scales are the same; it takes the scale of another
    block, so that weights are off by far more than half the widest gap between two levels."""
    tensor = drawn((128, 96))
    codes, state = bnb.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
    own = nf4.quantize(tensor)
    assert torch.equal(own.codes, codes.reshape(-1)) and torch.equal(own.absmax, state.absmax)
    bound = own.absmax.repeat_interleave(64).view_as(tensor) * (1 - 0.6961928009986877) / 2 * 1.0001
    assert ((nf4.dequantize(own) - tensor).abs() <= bound).all()
    assert torch.equal(theirs(tensor, 64)[2], nf4.dequantize(own)), "read as one row it is right"
    if ((bnb.dequantize_4bit(codes, state) - tensor).abs() <= bound).all():
        pytest.skip("bitsandbytes takes another kernel on this processor, which reads them right")


@pytest.mark.parametrize("block_size", [1, 5, 64, 100])
def test_each_weight_takes_the_nearest_level_of_its_block(block_size: int) -> None:
    """By search over all 16; also for block sizes that bitsandbytes does not take, and a shorter last block."""
    tensor = drawn((11, 13))
    found = nf4.dequantize(nf4.quantize(tensor, block_size)).reshape(-1)
    levels = torch.tensor(nf4.LEVELS, dtype=torch.float64)
    for start in range(0, tensor.numel(), block_size):
        block = tensor.reshape(-1)[start : start + block_size].double()
        choices = levels * block.abs().max()
        nearest = (block[:, None] - choices).abs().amin(1)
        error = (found[start : start + block_size].double() - block).abs()
        torch.testing.assert_close(error, nearest, rtol=1e-5, atol=1e-7)


def test_the_levels_are_the_quantiles_that_the_paper_says() -> None:
    """8 levels below and 9 above 0 out of the normal distribution, evenly spaced in probability from 1 - 0.9677083;
    Appendix E of arXiv 2305.14314 prints them."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    above = normal.icdf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)]) / above.max()
    torch.testing.assert_close(torch.tensor(nf4.LEVELS, dtype=torch.float64), expected, rtol=0, atol=2e-6)


def test_every_level_is_its_own_code() -> None:
    levels = torch.tensor(nf4.LEVELS)
    for scale in (1.0, 0.25, 8.0):
        quantized = nf4.quantize(levels * scale, 16)
        assert quantized.absmax.tolist() == [scale]
        assert torch.stack([quantized.codes >> 4, quantized.codes & 15], 1).reshape(-1).tolist() == list(range(16))
        assert torch.equal(nf4.dequantize(quantized), levels * scale)


def test_zeros_stay_zeros() -> None:
    tensor = torch.cat([torch.zeros(64), drawn((64,)), torch.zeros(9)])
    found = nf4.dequantize(nf4.quantize(tensor))
    assert not found[:64].any() and not found[128:].any() and found[64:128].any()


def test_what_it_costs() -> None:
    assert nf4.quantize(drawn((128, 64))).bits_per_weight == 4 + 32 / 64
    assert nf4.quantize(drawn((128, 64)), 128).bits_per_weight == 4 + 32 / 128
    assert nf4.quantize(drawn((3,))).bits_per_weight == (2 * 8 + 32) / 3, "two bytes and one scale"


@pytest.mark.parametrize(
    ("tensor", "block_size", "said"),
    [
        (
            torch.tensor([1.0, float("nan"), float("-inf")]),
            64,
            "2 of 3 weights are not finite, and NF4 has no number for them\n  -> fix the tensor",
        ),
        (torch.ones(3), 0, "a block of NF4 holds at least 1 weight, not 0\n  -> 64 is usual"),
        (
            torch.ones(3, dtype=torch.float64),
            64,
            "NF4 takes float32, bfloat16, float16, not float64\n  -> convert the tensor",
        ),
    ],
)
def test_refusals(tensor: torch.Tensor, block_size: int, said: str) -> None:
    with pytest.raises(AlignError) as caught:
        nf4.quantize(tensor, block_size)
    assert str(caught.value) == said
