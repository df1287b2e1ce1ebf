"""A linear layer and GELU (tanh form), in one product where PyTorch has it."""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of a linear layer: [T, C] to [T, F] in the dtype of `x`."""
    hidden: Tensor = layer(x)
    if hidden.requires_grad:
        return gelu(hidden, approximate="tanh")
    # In its place: it is the widest tensor of a layer, and only a gradient needs what it was.
    result: Tensor = torch.ops.aten.gelu_(hidden, approximate="tanh")
    return result


def fused_linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """The same with GELU in the product's epilogue, before its result is rounded; without gradients."""
    # The public form of this epilogue is what torch.compile makes of the two calls.
    return torch._addmm_activation(layer.bias, x, layer.weight.t(), use_gelu=True)  # noqa: SLF001


@functools.cache
def fuses_tanh_form(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused form is GELU's tanh form here, measured at -3, where the exact form is a tenth larger.

    On GPUs with cuBLASLt it is the tanh form, on CPUs the exact one.
    """
    layer = nn.Linear(16, 16, device=device, dtype=dtype).requires_grad_(False)
    layer.weight.zero_()
    layer.bias.fill_(-3.0)
    value = fused_linear_gelu(layer, torch.zeros(16, 16, device=device, dtype=dtype))
    expected = -1.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (-3 + 0.044715 * -27)))
    return bool(((value - expected).abs() < 0.02 * abs(expected)).all())
