"""The residual stream's additions and norms."""

from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels import ops
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, Modulation
from toprovar_batch.kernels.residual_norm import add_and_norm, gated_add, modulated_norm

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_kernel_passes_its_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("residual_norm_cases.py")) > 200


def _inputs(lengths, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    rows, tokens = len(lengths), sum(lengths)
    x, update = torch.randn(2, tokens, width, generator=generator)
    gate, scale, shift = torch.randn(3, rows, width, generator=generator)
    return x, update.to(dtype), gate, Modulation(scale, shift), TokenLayout(lengths, CPU)


@pytest.mark.parametrize("width", [1, 20, 96])
@pytest.mark.parametrize("lengths", [(1,), (63,), (0, 0), (4, 4), (3, 0, 111)])
@pytest.mark.parametrize("gated", [False, True])
def test_agrees_with_a_loop_over_tokens(lengths, width, gated):
    x, update, gate, modulation, layout = _inputs(lengths, width)
    added, normed = add_and_norm(x, update, gate if gated else None, modulation, layout, torch.float32)
    assert added.shape == normed.shape == x.shape
    row_of = [row for row, length in enumerate(lengths) for _ in range(length)]
    for token, row in enumerate(row_of):
        y = x[token].double() + update[token].double() * (gate[row].double() if gated else 1)
        unit = (y - y.mean()) / (y.var(correction=0) + 1e-6).sqrt()
        exact = unit * modulation.scale[row].double() + modulation.shift[row].double()
        assert torch.allclose(added[token].double(), y, rtol=1e-6, atol=1e-6)
        assert torch.allclose(normed[token].double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(added, gated_add(x, update, gate if gated else None, layout))


@pytest.mark.parametrize("lengths", [(4, 4), (3, 0, 2)])
def test_one_modulation_serves_all_rows(lengths):
    x, _, _, _, layout = _inputs(lengths, 20)
    one = torch.randn(2, 20)
    each = Modulation(*one[:, None].expand(2, len(lengths), 20))
    expected = modulated_norm(x, each, layout, torch.float32)
    assert torch.allclose(modulated_norm(x, Modulation(*one), layout, torch.float32), expected, atol=1e-6)


@pytest.mark.parametrize("lengths", [(4, 4), (3, 0, 2)])
def test_the_sum_stays_in_float32_whatever_the_update(lengths):
    x, update, gate, modulation, layout = _inputs(lengths, 96, torch.bfloat16)
    added, normed = add_and_norm(x, update, gate, modulation, layout, torch.bfloat16)
    assert added.dtype == torch.float32
    assert normed.dtype == torch.bfloat16
    assert torch.equal(added, gated_add(x, update.float(), gate, layout))
    assert torch.equal(normed, modulated_norm(added, modulation, layout, torch.float32).bfloat16())


def test_gradients_reach_every_input():
    x, update, gate, modulation, layout = _inputs((3, 0, 2), 8)
    inputs = [each.double().requires_grad_() for each in (x, update, gate, *modulation)]

    def both(x, update, gate, scale, shift):
        return add_and_norm(x, update, gate, Modulation(scale, shift), layout, torch.float64)

    assert torch.autograd.gradcheck(both, inputs)


def test_the_torch_backend_is_the_plain_twin():
    x, update, gate, modulation, layout = _inputs((3, 0, 2), 20)
    rest = (modulation, layout, torch.bfloat16)
    for mine, twin in zip(
        ops.add_and_norm(x, update, gate, *rest, backend=PYTORCH),
        add_and_norm(x, update, gate, *rest),
        strict=True,
    ):
        assert torch.equal(mine, twin)
    assert torch.equal(ops.modulated_norm(x, *rest, backend=PYTORCH), modulated_norm(x, *rest))
    added = ops.gated_add(x, update, gate, layout, backend=PYTORCH)
    assert torch.equal(added, gated_add(x, update, gate, layout))
