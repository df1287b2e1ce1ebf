"""Host side of the Triton kernel: checks and the launch."""

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import PackedRows

from .triton_kernel import qk_norm_rope_append_kernel

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_NUM_WARPS = 4
# Channels of a tile: each of 128 threads holds 8 of q, k and v, which is 16 bytes of a 16-bit dtype.
_TILE = 1024
_HEADS_PER_PROGRAM = 4


def qk_norm_rope_append(
    qkv: Tensor,
    q_scale: Tensor,
    rotation: Tensor,
    layout: PackedRows,
    starts: tuple[int, ...],
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Do what `naive.qk_norm_rope_append` does, in one kernel, which writes q, k and v once.

    A token's bits depend on the token, its place and its head alone.

    Args:
        qkv: [T, 3, H, D] packed by `layout`, the last stride 1; bfloat16, float16 or float32; D even.
        q_scale: [H] float32.
        rotation: [N, D / 2] complex64.
        layout: rows of the packed tokens.
        starts: the slot of each row's first token; a `DeviceLayout` has its own.
        keys: [R, H, S, D] of the dtype of `qkv`, with any strides but a last one of 1.
        values: [R, H, S, D] likewise.

    Returns:
        q, [T, H, D] in the dtype of `qkv`.

    Raises:
        ValueError: inputs that the kernel cannot take; says which.
    """
    _check(qkv, q_scale, rotation, layout, starts, keys, values)
    tokens, _, heads, head_dim = qkv.shape
    q = qkv.new_empty(tokens, heads, head_dim)
    if not tokens:
        return q
    block_d = max(16, 1 << (head_dim - 1).bit_length())
    block_t = max(1, _TILE // block_d)
    group = next(n for n in range(_HEADS_PER_PROGRAM, 0, -1) if heads % n == 0)
    length = layout.uniform_length
    listed_rows = length is None or len(set(starts)) > 1
    start = 0 if listed_rows else starts[0]
    listed_places = layout.token_indices is not None
    # Any tensor stands where nothing is read.
    row_ids = layout.row_ids if listed_rows else q_scale
    shifts = layout.slot_shifts(starts) if listed_rows else q_scale
    token_indices = layout.token_indices if listed_places else q_scale
    qk_norm_rope_append_kernel[-(-tokens // block_t) * (heads // group),](
        qkv, q_scale, torch.view_as_real(rotation), q, keys, values, row_ids, shifts, token_indices,
        tokens, length or 0, start,
        *qkv.stride()[:3], *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3],
        HEAD_GROUPS=heads // group, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=block_d, BLOCK_T=block_t,
        LISTED_ROWS=listed_rows, LISTED_PLACES=listed_places, INTERPRETED=qkv.device.type != "cuda",
        num_warps=_NUM_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return q


def _check(
    qkv: Tensor,
    q_scale: Tensor,
    rotation: Tensor,
    layout: PackedRows,
    starts: tuple[int, ...],
    keys: Tensor,
    values: Tensor,
) -> None:
    tokens, parts, heads, head_dim = qkv.shape
    rows, key_heads, slots, key_dim = keys.shape
    if parts != 3 or head_dim % 2:
        raise ValueError(f"qkv must be [T, 3, H, D] with an even D, not {tuple(qkv.shape)}")
    if values.shape != keys.shape or (key_heads, key_dim) != (heads, head_dim):
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must be [R, {heads}, S, {head_dim}]"
        )
    if tokens != layout.num_tokens or rows != layout.num_rows:
        raise ValueError(
            f"{tokens} tokens and {rows} rows of a cache do not fit {layout.num_tokens} tokens of {layout.num_rows} rows"
        )
    if qkv.dtype not in DTYPES or keys.dtype != qkv.dtype or values.dtype != qkv.dtype:
        raise ValueError(
            "the kernel takes bfloat16, float16 or float32, the same for all; "
            f"got {qkv.dtype}, {keys.dtype}, {values.dtype}"
        )
    if any(tensor.stride(-1) != 1 for tensor in (qkv, keys, values)):
        raise ValueError("the channels of a head must lie side by side (a last stride of 1)")
    _check_turns(q_scale, rotation, layout, heads, head_dim // 2)
    layout.check_slots(starts, slots)


def _check_turns(q_scale: Tensor, rotation: Tensor, layout: PackedRows, heads: int, half: int) -> None:
    if q_scale.shape != (heads,) or q_scale.dtype != torch.float32 or not q_scale.is_contiguous():
        raise ValueError(f"q_scale must be [{heads}] contiguous float32, not {q_scale.dtype} {q_scale.shape}")
    if rotation.dtype != torch.complex64 or rotation.shape[1:] != (half,) or not rotation.is_contiguous():
        raise ValueError(
            f"rotation must be [N, {half}] contiguous complex64, not {rotation.dtype} {tuple(rotation.shape)}"
        )
    if layout.token_indices is None and layout.uniform_length != rotation.shape[0]:
        raise ValueError(
            f"rows of {layout.uniform_length} tokens without places do not fit a map of {rotation.shape[0]}"
        )
