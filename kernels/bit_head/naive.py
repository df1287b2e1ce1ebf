"""Modulated LayerNorm and the product with the head's weight, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from toprovar_batch.kernels.layout import TokenLayout

EPS = 1e-6


def bit_logits(x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, layout: TokenLayout) -> Tensor:
    """(LN(x) * (1 + scale) + shift) @ weight.T + bias, in float32.

    Args:
        x: [T, C] hidden states packed by `layout`, of any dtype.
        modulation: [R, 2C] float32: scale, then shift, of each row.
        weight: [N, C] float32.
        bias: [N] float32.
        layout: rows of the tokens.

    Returns:
        [T, N] float32.
    """
    scale, shift = modulation.chunk(2, dim=-1)
    normed = layout.by_row(layer_norm(x.float(), x.shape[-1:], eps=EPS))
    modulated = torch.addcmul(layout.per_token(shift), normed, layout.per_token(scale + 1))
    return linear(modulated.reshape(x.shape), weight, bias)
