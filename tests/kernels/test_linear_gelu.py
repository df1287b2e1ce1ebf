"""A linear layer and its GELU in one product."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear

from toprovar_batch.kernels.linear_gelu import fuses_tanh_form
from toprovar_batch.kernels.ops import PYTORCH, Backend, linear_gelu

CPU = torch.device("cpu")
TRITON = Backend("triton", "for this test")


@pytest.fixture(autouse=True)
def measure_anew():
    fuses_tanh_form.cache_clear()
    yield
    fuses_tanh_form.cache_clear()


def _fused_in(form):
    return lambda bias, x, weight, use_gelu: gelu(linear(x, weight.t(), bias), approximate=form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "is_tanh"), [("tanh", True), ("none", False)])
def test_the_form_of_gelu_is_measured(monkeypatch, dtype, form, is_tanh):
    monkeypatch.setattr(torch, "_addmm_activation", _fused_in(form))
    assert fuses_tanh_form(CPU, dtype) is is_tanh


@pytest.mark.parametrize("backend", [PYTORCH, TRITON], ids=lambda backend: backend.name)
def test_the_tanh_form_comes_out_whatever_pytorch_fuses(backend):
    layer, x = nn.Linear(24, 40), torch.randn(5, 24) * 3
    expected = gelu(layer(x), approximate="tanh")
    assert torch.allclose(linear_gelu(layer, x, backend=backend), expected, atol=1e-6)


def test_one_product_serves_where_it_is_the_tanh_form(monkeypatch):
    layer, x = nn.Linear(24, 40), torch.randn(5, 24)
    monkeypatch.setattr(torch, "_addmm_activation", _fused_in("tanh"))
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    linear_gelu(layer, x, backend=PYTORCH)
    assert calls == [1]
    assert torch.allclose(
        linear_gelu(layer, x, backend=TRITON), gelu(linear(x, layer.weight, layer.bias), approximate="tanh")
    )
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_gradient_and_without_it_is_the_same_to_the_bit(dtype):
    layer, x = nn.Linear(48, 80, dtype=dtype), torch.randn(111, 48, dtype=dtype)
    with_gradient = linear_gelu(layer, x, backend=PYTORCH)
    with torch.no_grad():
        assert torch.equal(linear_gelu(layer, x, backend=PYTORCH), with_gradient)
    before = x.clone()
    with_gradient.sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(x, before)
