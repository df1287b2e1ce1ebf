"""Unit-length queries and keys, turned by their 2-D position, in plain PyTorch.

The backend of the CPU and of training, and the twin of the Triton kernel.
"""

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout

_EPS = 1e-12


def qk_norm_rope(
    qkv: Tensor, q_scale: Tensor, rotation: Tensor, layout: TokenLayout
) -> tuple[Tensor, Tensor]:
    """L2-normalise q and k over a head, scale q per head, and rotate both.

    Pairs are neighbours: (x0, x1) becomes (x0 cos - x1 sin, x0 sin + x1 cos), which is a complex product.

    Args:
        qkv: [T, 3, H, D] packed by `layout`.
        q_scale: [H] float32, the learned factor on the queries.
        rotation: [N, D / 2] complex64, one turn for each place of the scale's token map.
        layout: rows of the packed tokens.

    Returns:
        q and k, each [T, H, D] in the dtype of `qkv`; computed in float32.
    """
    qk = qkv[:, :2].float()  # [T, 2, H, D]
    norm = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min(_EPS)
    factor = torch.stack((q_scale, torch.ones_like(q_scale)))[..., None]  # [2, H, 1]
    pairs = torch.view_as_complex((qk * (factor / norm)).unflatten(-1, (-1, 2)))  # [T, 2, H, D / 2]
    if layout.token_indices is None:
        turned = layout.by_row(pairs) * rotation[:, None, None]
    else:
        turned = pairs * rotation[layout.token_indices][:, None, None]
    q, k = torch.view_as_real(turned).reshape(qk.shape).to(qkv.dtype).unbind(1)
    return q, k


def qk_norm_rope_append(
    qkv: Tensor,
    q_scale: Tensor,
    rotation: Tensor,
    layout: TokenLayout,
    starts: tuple[int, ...],
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Do `qk_norm_rope` and write the keys and values into a layer's cache.

    The tokens of row r take the slots from `starts[r]` on, in their packed order. No other slot is touched.

    Args:
        qkv: [T, 3, H, D] packed by `layout`.
        q_scale: [H] float32, the learned factor on the queries.
        rotation: [N, D / 2] complex64, one turn for each place of the scale's token map.
        layout: rows of the packed tokens.
        starts: the slot of each row's first token.
        keys: [R, H, S, D] of the dtype of `qkv`, with any strides.
        values: [R, H, S, D] likewise.

    Returns:
        q, [T, H, D] in the dtype of `qkv`; computed in float32.
    """
    q, k = qk_norm_rope(qkv, q_scale, rotation, layout)
    for cache, new in ((keys, k), (values, qkv[:, 2])):
        _append(cache, new, layout, starts)
    return q


def _append(cache: Tensor, new: Tensor, layout: TokenLayout, starts: tuple[int, ...]) -> None:
    length = layout.uniform_length
    if length is not None and len(set(starts)) == 1:
        cache[:, :, starts[0] : starts[0] + length] = layout.by_row(new).transpose(1, 2)
    else:
        cache[layout.row_ids, :, layout.slots(starts)] = new
