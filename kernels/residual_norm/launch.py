"""Host side of the residual stream's kernel: checks, shape and launch."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import PackedRows

from .naive import EPS, Modulation
from .triton_kernel import residual_norm_kernel

# Values of a row (or of several short ones) that a program holds, and those of a thread.
_VALUES_PER_PROGRAM = 2048
_VALUES_PER_THREAD = 8


class KernelShape(NamedTuple):
    """How the kernel is built.

    Attributes:
        block_width: channels that a program computes with, a power of two.
        rows: of a program.
        num_warps: of a program.
    """

    block_width: int
    rows: int
    num_warps: int


@functools.cache
def kernel_shape(width: int) -> KernelShape:
    """The shape for rows of `width` channels.

    The number of rows has no say, so that a row's bits do not depend on its batch.
    """
    block_width = max(16, 1 << (width - 1).bit_length())
    rows = max(1, _VALUES_PER_PROGRAM // block_width)
    threads = rows * block_width // _VALUES_PER_THREAD
    return KernelShape(block_width, rows, min(max(threads // 32, 1), 16))


def residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    modulation: Modulation | None,
    layout: PackedRows,
    dtype: torch.dtype | None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The sum x + gate * update, and its modulated layer norm; each only where it is asked for.

    No input is changed, unless it is `out`. A row's results depend on that row alone, bit for bit.

    Args:
        x: [T, C] float32 packed by `layout`.
        update: [T, C] in any floating dtype; None: nothing is added.
        gate: [R, C] float32; None: 1.
        modulation: of the norm, in any floating dtype; None: no norm.
        layout: rows of the packed tokens.
        dtype: of the normed result, where there is one.
        out: takes the sum; may be `x`.

    Returns:
        The sum [T, C] float32, which is `x` itself where nothing is added; and the norm [T, C] in `dtype`, or None.

    Raises:
        ValueError: inputs that the kernel cannot take; says which.
    """
    _check(x, update, gate, modulation, layout)
    tokens, width = x.shape
    added = x if update is None else x.new_empty(x.shape) if out is None else out
    normed = None if modulation is None else x.new_empty(x.shape, dtype=dtype)
    if not tokens:
        return added, normed
    shape = kernel_shape(width)
    length = layout.uniform_length
    scale, shift = (x, x) if modulation is None else modulation
    by_row = modulation is not None and modulation.by_row
    residual_norm_kernel[(-(-tokens // shape.rows),)](
        x,
        x if update is None else update,
        x if gate is None else gate,
        scale,
        shift,
        x if length else layout.row_ids,
        added,
        x if normed is None else normed,
        tokens,
        length or 0,
        0 if gate is None else gate.stride(0),
        scale.stride(0) if by_row else 0,
        shift.stride(0) if by_row else 0,
        C=width,
        BLOCK_C=shape.block_width,
        ROWS=shape.rows,
        EPS=EPS,
        ADD=update is not None,
        GATED=gate is not None,
        NORM=modulation is not None,
        RAGGED=length is None,
        INTERPRETED=x.device.type != "cuda",
        num_warps=shape.num_warps,
        enable_fp_fusion=False,
    )
    return added, normed


def _check(
    x: Tensor, update: Tensor | None, gate: Tensor | None, modulation: Modulation | None, layout: PackedRows
) -> None:
    if x.dtype != torch.float32 or x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"the residual must be contiguous [T, C] float32, not {tuple(x.shape)} {x.dtype}")
    tokens, width = x.shape
    if tokens != layout.num_tokens:
        raise ValueError(f"{tokens} tokens do not fit a layout of {layout.num_tokens}")
    if update is not None and (update.shape != x.shape or not update.is_contiguous()):
        raise ValueError(f"the update must be contiguous {tuple(x.shape)}, not {tuple(update.shape)}")
    parameters = {"gate": gate, "scale": None, "shift": None}
    if modulation is not None:
        parameters |= {"scale": modulation.scale, "shift": modulation.shift}
    for name, each in parameters.items():
        if each is None:
            continue
        by_row = name == "gate" or (modulation is not None and modulation.by_row)
        wanted = (layout.num_rows, width) if by_row else (width,)
        if each.shape != wanted or each.stride(-1) != 1:
            raise ValueError(
                f"the {name} must be {wanted} with channels side by side, not {tuple(each.shape)}"
            )
