"""Gated additions and modulated layer norms of a float32 residual stream, in plain PyTorch.

Nothing is written in place unless asked for, so that autograd can follow.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from toprovar_batch.kernels.layout import TokenLayout

EPS = 1e-6


class Modulation(NamedTuple):
    """What a layer norm without parameters of its own is multiplied with, and what is added then.

    Attributes:
        scale: [R, C], one for each row; or [C], the same for all. AdaLN's 1 + scale holds its 1 already.
        shift: [R, C] or [C], as `scale`.
    """

    scale: Tensor
    shift: Tensor

    @property
    def by_row(self) -> bool:
        """Whether the rows differ."""
        return self.scale.dim() == 2


def modulated_norm(x: Tensor, modulation: Modulation, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
    """LN(x) * scale + shift, where LN(x) = (x - mean) / sqrt(variance + 1e-6) over the channels.

    Args:
        x: [T, C] float32 packed by `layout`.
        modulation: of the rows, in float32; or of all, in any dtype.
        layout: rows of the packed tokens.
        dtype: of the result.

    Returns:
        [T, C] in `dtype`; computed in float32.
    """
    width = x.shape[-1:]
    if not modulation.by_row:
        return layer_norm(x, width, modulation.scale.to(x.dtype), modulation.shift.to(x.dtype), EPS).to(dtype)
    scale, shift = (layout.per_token(each) for each in modulation)
    normed = layer_norm(x, width, eps=EPS)
    return torch.addcmul(shift, layout.by_row(normed), scale).reshape(x.shape).to(dtype)


def gated_add(
    x: Tensor, update: Tensor, gate: Tensor | None, layout: TokenLayout, out: Tensor | None = None
) -> Tensor:
    """X + gate * update in float32.

    Args:
        x: [T, C] float32 packed by `layout`.
        update: [T, C] in any dtype.
        gate: [R, C] float32; None: 1.
        layout: rows of the packed tokens.
        out: takes the result; may be `x`.

    Returns:
        [T, C] float32.
    """
    update = update.to(x.dtype)
    if gate is None:
        added = x + update
    else:
        rows, changes = layout.by_row(x), layout.by_row(update)
        added = torch.addcmul(rows, layout.per_token(gate), changes).reshape(x.shape)
    return added if out is None else out.copy_(added)


def add_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    modulation: Modulation,
    layout: TokenLayout,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gated_add`, and `modulated_norm` of its result.

    Args:
        x: [T, C] float32 packed by `layout`.
        update: [T, C] in any dtype.
        gate: [R, C] float32; None: 1.
        modulation: of the rows, in float32; or of all, in any dtype.
        layout: rows of the packed tokens.
        dtype: of the normed result.
        out: takes the sum; may be `x`.

    Returns:
        The sum [T, C] float32, and its norm [T, C] in `dtype`.
    """
    x = gated_add(x, update, gate, layout, out)
    return x, modulated_norm(x, modulation, layout, dtype)
