"""The head against a loop over tokens in float64, and its kernel."""

from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.bit_head import bit_logits
from toprovar_batch.kernels.layout import TokenLayout

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_kernel_passes_its_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("bit_head_cases.py")) > 70


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1,), (63,), (0,), (4, 4), (3, 0, 111)])
def test_agrees_with_a_loop_over_tokens(lengths, dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(lengths), 24, generator=generator).to(dtype)
    modulation = torch.randn(len(lengths), 48, generator=generator)
    weight, bias = torch.randn(6, 24, generator=generator), torch.randn(6, generator=generator)
    out = bit_logits(x, modulation, weight, bias, TokenLayout(lengths, CPU))
    assert out.shape == (sum(lengths), 6)
    assert out.dtype == torch.float32
    rows = [row for row, length in enumerate(lengths) for _ in range(length)]
    for token, row in enumerate(rows):
        state = x[token].double()
        normed = (state - state.mean()) / (state.var(correction=0) + 1e-6).sqrt()
        scale, shift = modulation[row].double().chunk(2)
        expected = weight.double() @ (normed * (1 + scale) + shift) + bias.double()
        torch.testing.assert_close(out[token].double(), expected, rtol=1e-5, atol=2e-5)
