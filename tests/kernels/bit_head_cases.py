"""The head's kernel against float64: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name; see `flash_attention_cases`. On a GPU: `python -m pytest tests/kernels/bit_head_cases.py`.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

from toprovar_batch.kernels.bit_head import launch, naive
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import Backend, bit_logits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Allowed beyond twice PyTorch's error of logits around 1: a GPU makes a float32 product of three tf32 ones.
ROUNDING = 2e-6 if torch.cuda.is_available() else 0.0
TRITON = Backend("triton", "for this test")
SIZES = [(320, 64), (200, 12), (64, 260)]  # width, outputs
if DEVICE.type == "cuda":  # the interpreter takes minutes for these, and has one below
    SIZES += [(2048, 64), (3584, 112)]
LENGTHS = [(1,), (63,), (111,), (0,), (0, 0), (40, 40), (63, 0, 1, 111)]


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch):
    """Whatever a kernel does not write stands out."""
    real = torch.empty

    def filled(*args, **kwargs):
        empty = real(*args, **kwargs)
        return empty.fill_(math.nan) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def products_in_one_order(monkeypatch):
    """The interpreter multiplies by NumPy, whose BLAS adds a row in an order that may follow its place in the block."""

    def matmul(left, right, dtype):
        total = np.zeros((left.shape[0], right.shape[1]), dtype)
        for column, row in zip(left.T, right, strict=True):
            total += column[:, None] * row
        return total

    if DEVICE.type != "cuda":
        monkeypatch.setattr(np, "matmul", matmul)


def _inputs(width, outputs, lengths, mean=0.0, std=1.0):
    generator = torch.Generator().manual_seed(width + sum(lengths))
    x = torch.randn(sum(lengths), width, generator=generator) * std + mean
    modulation = torch.randn(len(lengths), 2 * width, generator=generator) * 0.3
    weight = torch.randn(outputs, width, generator=generator) * width**-0.5
    bias = torch.randn(outputs, generator=generator)
    layout = TokenLayout(lengths, DEVICE)
    return (*(each.to(DEVICE) for each in (x, modulation, weight, bias)), layout)


def _exact(x, modulation, weight, bias, layout):
    scale, shift = modulation.double()[layout.row_ids].chunk(2, dim=-1)
    normed = layer_norm(x.double(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return normed @ weight.double().T + bias.double()


def _assert_near(inputs):
    out = launch.bit_logits(*inputs)
    assert out.dtype == torch.float32
    if not len(out):
        assert out.shape == (0, len(inputs[2]))
        return
    exact = _exact(*inputs)
    of_pytorch = naive.bit_logits(*inputs) - exact
    error = out - exact
    assert error.abs().max() <= 2 * of_pytorch.abs().max() + ROUNDING
    assert error.square().mean().sqrt() <= 2 * of_pytorch.square().mean().sqrt() + ROUNDING / 4


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("width", "outputs"), SIZES)
@pytest.mark.parametrize("mean", [0.0, 300.0, -3e4])
def test_errors_are_at_most_twice_those_of_pytorch(mean, width, outputs, lengths):
    _assert_near(_inputs(width, outputs, lengths, mean))


@pytest.mark.parametrize("std", [1e-3, 1e3])
def test_states_of_any_size_are_as_exact(std):
    _assert_near(_inputs(2048, 64, (63, 40), mean=3 * std, std=std))


@pytest.mark.parametrize("mean", [300.0, 1e4])
def test_a_large_mean_costs_no_exactness(mean):
    """Float32 holds a mean of 300 to 2e-5; the product would show an error of that size in every logit."""
    inputs = _inputs(2048, 64, (63, 48), mean)
    inputs[2].copy_(inputs[2].abs())  # outputs add up what all channels share
    exact = _exact(*inputs)
    assert (launch.bit_logits(*inputs) - exact).abs().max() < 3e-6 * exact.abs().max()


def test_channels_that_stand_out_by_far_are_as_exact():
    inputs = _inputs(2048, 64, (33, 33))
    inputs[0][:, [0, 777]] = torch.tensor([4000.0, -900.0], device=DEVICE)
    _assert_near(inputs)


def _agree(given, expected):
    """Compiled for another dtype or other strides, a kernel may add in another order."""
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5 if DEVICE.type == "cuda" else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_states_are_widened(dtype):
    x, *rest = _inputs(320, 64, (63, 7))
    x = x.to(dtype)
    _agree(launch.bit_logits(x, *rest), launch.bit_logits(x.float(), *rest))


@pytest.mark.parametrize(("width", "outputs"), SIZES)
def test_a_token_is_the_same_alone_and_in_any_batch(width, outputs, products_in_one_order):
    lengths = (63, 0, 5, 130, 1)
    x, modulation, weight, bias, layout = _inputs(width, outputs, lengths)
    together = launch.bit_logits(x, modulation, weight, bias, layout)
    for row, part in enumerate(layout.row_slices):
        alone = TokenLayout((lengths[row],), DEVICE)
        assert torch.equal(
            launch.bit_logits(x[part], modulation[row : row + 1], weight, bias, alone), together[part]
        )
    for token in (0, 37, 62):
        alone = launch.bit_logits(
            x[token : token + 1], modulation[:1], weight, bias, TokenLayout((1,), DEVICE)
        )
        assert torch.equal(alone[0], together[token])


def test_any_strides_are_taken():
    x, modulation, weight, bias, layout = _inputs(320, 64, (40, 2))
    expected = launch.bit_logits(x, modulation, weight, bias, layout)
    wide = torch.full((42, 700), math.nan, device=DEVICE)
    wide[:, :320] = x
    by_channel = [each.t().contiguous().t() for each in (x, modulation, weight)]
    _agree(bit_logits(wide[:, :320], modulation, weight, bias, layout, backend=TRITON), expected)
    _agree(launch.bit_logits(*by_channel, bias, layout), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 8)}, "4 states"),
        ({"modulation": torch.zeros(2, 16)}, "modulation"),
        ({"weight": torch.zeros(6, 9)}, "weight"),
        ({"bias": torch.zeros(6, dtype=torch.float64)}, "float32"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(change, message):
    given = {
        "x": torch.zeros(3, 8),
        "modulation": torch.zeros(1, 16),
        "weight": torch.zeros(6, 8),
        "bias": torch.zeros(6),
    } | change
    with pytest.raises(ValueError, match=message):
        launch.bit_logits(*(each.to(DEVICE) for each in given.values()), TokenLayout((3,), DEVICE))
