"""The group norm's plain twin, what chooses its kernels, and how these deal out an image."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import group_norm, silu

from toprovar_batch.kernels import ops
from toprovar_batch.kernels.group_norm_swish.naive import by_reductions
from toprovar_batch.kernels.ops import PYTORCH, Backend

EPS = 1e-6
TRITON = Backend("triton", "for this test")


@pytest.mark.slow
def test_the_kernels_pass_their_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("group_norm_swish_cases.py")) > 80


def _inputs(shape=(2, 64, 9, 5), dtype=torch.float32, memory_format=torch.channels_last):
    generator = torch.Generator().manual_seed(sum(shape))
    x = (torch.randn(shape, generator=generator) * 3 + 5).to(dtype).to(memory_format=memory_format)
    return x, *torch.randn(2, shape[1], generator=generator).to(dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 64, 63, 5), (3, 64, 1, 3), (2, 96, 16, 16)])
@pytest.mark.parametrize("swish", [True, False])
def test_all_forms_of_the_twin_agree_with_float64(swish, shape, dtype, tolerance, memory_format):
    x, weight, bias = _inputs(shape, dtype, memory_format)
    before = x.clone()
    exact = group_norm(x.double(), 32, weight.double(), bias.double(), EPS)
    exact = silu(exact) if swish else exact
    reduced = by_reductions(x, weight.float(), bias.float(), 32, EPS, swish=swish)
    plain = ops.group_norm_swish(x, weight, bias, 32, EPS, swish=swish, backend=PYTORCH)
    with torch.no_grad():
        without_gradient = ops.group_norm_swish(x, weight, bias, 32, EPS, swish=swish, backend=PYTORCH)
    assert torch.equal(x, before)  # the residual connection still needs it
    for out in (reduced, plain, without_gradient):
        assert out.dtype == dtype
        assert torch.allclose(out.double(), exact, atol=tolerance * (1 + exact.abs().max().item()))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_large_map_keeps_its_digits_on_any_number_of_threads(num_threads):
    x, weight, bias = _inputs((1, 32, 320, 256))
    exact = silu(group_norm(x.double(), 32, weight.double(), bias.double(), EPS))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.no_grad():
            out = ops.group_norm_swish(x, weight, bias, 32, EPS, backend=PYTORCH)
    finally:
        torch.set_num_threads(before)
    assert (out - exact).abs().max() < 2e-5


def test_the_twin_has_a_gradient():
    x, weight, bias = (tensor.double().requires_grad_() for tensor in _inputs((1, 32, 3, 2)))
    added = torch.randn(32, dtype=torch.float64, requires_grad=True)

    def both(x, weight, bias, added):
        total, _ = ops.residual_add(x, added, x, 32, backend=PYTORCH)
        return ops.group_norm_swish(total, weight, bias, 32, EPS, input_bias=added, backend=PYTORCH)

    assert torch.autograd.gradcheck(both, (x, weight, bias, added))


def test_the_kernels_take_channels_last_maps_and_the_twin_all_others_by_name(monkeypatch):
    launch = pytest.importorskip("toprovar_batch.kernels.group_norm_swish.launch")
    calls = []
    monkeypatch.setattr(launch, "group_norm_swish", lambda x, *_rest, **_options: calls.append("norm") or x)
    monkeypatch.setattr(launch, "residual_add", lambda x, *_rest: calls.append("add") or (x, None))
    x, weight, bias = _inputs()
    ops.group_norm_swish(x, weight, bias, 32, EPS, backend=TRITON)
    ops.residual_add(x, bias, x, 32, backend=TRITON)
    assert calls == ["norm", "add"]
    for other, reason in (
        (x.contiguous(), r"\(2, 64, 9, 5\) with strides \(2880, 45, 5, 1\) are not channels-last"),
        (x.double(), "float64"),
        (x.clone().requires_grad_(), "no gradient"),
    ):
        vectors = weight.to(other.dtype), bias.to(other.dtype)
        named = rf"a group norm runs in PyTorch, not in Triton: .*{reason}"
        with pytest.warns(UserWarning, match=named):
            out = ops.group_norm_swish(other, *vectors, 32, EPS, backend=TRITON)
        assert torch.equal(out, ops.group_norm_swish(other, *vectors, 32, EPS, backend=PYTORCH))
        with pytest.warns(UserWarning, match=named):
            total, statistics = ops.residual_add(other, vectors[1], other, 32, backend=TRITON)
        assert torch.equal(total, other + vectors[1][:, None, None] + other)
        assert statistics is None
    assert len(calls) == 2


@pytest.mark.parametrize("width", [32, 128, 256, 512, 1024, 8192])
@pytest.mark.parametrize("num_pixels", [1, 63, 64 * 64, 1000 * 1024, 1024 * 1024, 2048 * 2048])
def test_chunks_hold_every_pixel_once(width, num_pixels):
    launch = pytest.importorskip("toprovar_batch.kernels.group_norm_swish.launch")
    chunks = launch.Chunks.of(width, num_pixels)
    pixels = chunks.block * chunks.steps
    assert pixels * (chunks.count - 1) < num_pixels <= pixels * chunks.count
    assert chunks.count <= 2048
    assert chunks.block.bit_count() == 1  # what Triton can hold
