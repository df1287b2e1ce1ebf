"""The VAE's norm in its two forms, and the pixels it gives."""

import pytest
import torch

from toprovar_batch.worker.infinity.vae import NormSwish, to_uint8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 64, 63, 5), (3, 64, 1, 3), (2, 96, 16, 16)])
def test_both_forms_of_the_norm_agree_with_float64(shape, dtype, tolerance, memory_format):
    norm = NormSwish(shape[1])
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(shape) * 3 + 5).to(dtype).to(memory_format=memory_format)
    before = x.clone()
    exact = torch.nn.functional.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    exact = torch.nn.functional.silu(exact)
    with torch.no_grad():
        reduced = norm.by_reductions(x)
        plain = norm.to(dtype)(x)
    assert torch.equal(x, before)  # the residual connection still needs it
    for out in (reduced, plain):
        assert out.dtype == dtype
        assert torch.allclose(out.double(), exact, atol=tolerance * (1 + exact.abs().max().item()))


def test_pixels_are_truncated_not_rounded():
    pixels = torch.tensor([-1.0, 0.0, 0.9999, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(pixels)[0, ..., 0].flatten().tolist() == [0, 127, 254, 255]
