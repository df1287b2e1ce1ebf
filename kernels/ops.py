"""One place that decides which implementation of each operation runs, and says so."""

import warnings

import torch
from torch import Tensor, nn

from toprovar_batch.kernels.layout import PackedRows, TokenLayout

from . import bit_head, bit_sampling, residual_norm
from . import group_norm_swish as group_norm
from .backend import PYTORCH, Backend, fastest_attention, resolve_backend
from .bit_sampling import BitDraw, DrawnBits, sample_bits
from .flash_attention import AttentionInputs, attention
from .flash_attention.attend import attend
from .linear_gelu import fused_linear_gelu, fuses_tanh_form
from .linear_gelu import linear_gelu as plain_linear_gelu
from .qk_norm_rope import naive as naive_qk_norm_rope
from .qk_norm_rope import qk_norm_rope
from .residual_norm import Modulation

__all__ = [
    "PYTORCH",
    "AttentionInputs",
    "Backend",
    "BitDraw",
    "DrawnBits",
    "Modulation",
    "add_and_norm",
    "attend",
    "attention",
    "bit_logits",
    "draw_bits",
    "fastest_attention",
    "gated_add",
    "group_norm_swish",
    "linear_gelu",
    "modulated_norm",
    "qk_norm_rope",
    "qk_norm_rope_append",
    "residual_add",
    "resolve_backend",
    "sample_bits",
]


def qk_norm_rope_append(
    qkv: Tensor,
    q_scale: Tensor,
    rotation: Tensor,
    layout: PackedRows,
    starts: tuple[int, ...],
    keys: Tensor,
    values: Tensor,
    *,
    backend: Backend,
) -> Tensor:
    """Normalise and rotate q and k, and write k and v into a layer's cache.

    Args:
        qkv: [T, 3, H, D] packed by `layout`.
        q_scale: [H] float32, the learned factor on the queries.
        rotation: [N, D / 2] complex64, one turn for each place of the scale's token map.
        layout: rows of the packed tokens.
        starts: the slot of each row's first token; the others of the row follow.
        keys: [R, H, S, D] of the dtype of `qkv`.
        values: [R, H, S, D] likewise.
        backend: as resolved.

    Returns:
        q, [T, H, D] in the dtype of `qkv`.
    """
    if backend.name == "triton":
        from .qk_norm_rope import launch  # noqa: PLC0415 - imports Triton

        return launch.qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, keys, values)
    return naive_qk_norm_rope.qk_norm_rope_append(
        qkv, q_scale, rotation, _on_host(layout), starts, keys, values
    )


def bit_logits(
    x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, layout: TokenLayout, *, backend: Backend
) -> Tensor:
    """(LN(x) * (1 + scale) + shift) @ weight.T + bias, in float32.

    The kernel's logits of a token are the same, bit for bit, in any batch. PyTorch's may not be.

    Args:
        x: [T, C] hidden states packed by `layout`, of any dtype.
        modulation: [R, 2C] float32: scale, then shift, of each row.
        weight: [N, C] float32.
        bias: [N] float32.
        layout: rows of the tokens.
        backend: as resolved.

    Returns:
        [T, N] float32.
    """
    if backend.name == "triton":
        from .bit_head.launch import bit_logits as by_kernel  # noqa: PLC0415 - imports Triton

        return by_kernel(x, modulation, weight, bias, layout)
    return bit_head.bit_logits(x, modulation, weight, bias, layout)


def draw_bits(
    logits: Tensor,
    layout: TokenLayout,
    seeds: Tensor,
    num_tokens: int,
    draw: BitDraw,
    *,
    with_guided: bool = False,
    backend: Backend,
) -> DrawnBits:
    """Divide logits by the temperature, guide them and draw their bits; the kernel does all in one launch.

    Args:
        logits: [T, 2 * bits] float32 packed by `layout`.
        layout: rows of P prompts' conditional branches, then of their unconditional ones, if there are any.
        seeds: [P] int64.
        num_tokens: L, of the whole token map.
        draw: how.
        with_guided: also give the guided logits.
        backend: as resolved.

    Returns:
        [P, L, bits] bits and what else was asked for; equal logits give equal bits on any backend.
    """
    if backend.name == "triton":
        from .bit_sampling.launch import draw_bits as by_kernel  # noqa: PLC0415 - imports Triton

        return by_kernel(logits, layout, seeds, num_tokens, draw, with_guided=with_guided)
    return bit_sampling.draw_bits(logits, layout, seeds, num_tokens, draw, with_guided=with_guided)


def group_norm_swish(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    swish: bool = True,
    input_bias: Tensor | None = None,
    statistics: Tensor | None = None,
    backend: Backend,
) -> Tensor:
    """Group norm over an image and, where asked for, swish.

    Maps that the kernels cannot take go to PyTorch, with a warning that says why.

    Args:
        x: [B, C, H, W]; the kernels take channels-last maps.
        weight: [C].
        bias: [C].
        num_groups: of neighbouring channels.
        eps: added to the variance.
        swish: whether y sigmoid(y) follows.
        input_bias: [C], added to `x` first.
        statistics: of `x`, where `residual_add` made both.
        backend: as resolved; only "torch" gives a gradient.

    Returns:
        [B, C, H, W] in the dtype of `x`.
    """
    if backend.name == "triton" and _fit_group_norm(x, num_groups):
        from .group_norm_swish import launch  # noqa: PLC0415 - imports Triton

        return launch.group_norm_swish(
            x, weight, bias, num_groups, eps, swish=swish, input_bias=input_bias, statistics=statistics
        )
    return group_norm.group_norm_swish(x, weight, bias, num_groups, eps, swish=swish, input_bias=input_bias)


def residual_add(
    hidden: Tensor, bias: Tensor, shortcut: Tensor, num_groups: int, *, backend: Backend
) -> tuple[Tensor, Tensor | None]:
    """The sum of maps, a bias and maps; and its statistics for a group norm, or None from PyTorch.

    Args:
        hidden: [B, C, H, W], as `group_norm_swish` takes them.
        bias: [C].
        shortcut: as `hidden`.
        num_groups: of the norm that follows.
        backend: as resolved.
    """
    if backend.name == "triton" and all(_fit_group_norm(maps, num_groups) for maps in (hidden, shortcut)):
        from .group_norm_swish import launch  # noqa: PLC0415 - imports Triton

        return launch.residual_add(hidden, bias, shortcut, num_groups)
    return group_norm.residual_add(hidden, bias, shortcut), None


def _fit_group_norm(maps: Tensor, num_groups: int) -> bool:
    """Whether the group norm's kernels take these maps; warns where they do not."""
    from .group_norm_swish.launch import obstacle  # noqa: PLC0415 - imports Triton

    problem = obstacle(maps, num_groups)
    if problem is not None:
        warnings.warn(f"a group norm runs in PyTorch, not in Triton: {problem}", stacklevel=3)
    return problem is None


def modulated_norm(
    x: Tensor, modulation: Modulation, layout: PackedRows, dtype: torch.dtype, *, backend: Backend
) -> Tensor:
    """LN(x) * scale + shift, with the scale and the shift of each token's row.

    Args:
        x: [T, C] float32 packed by `layout`.
        modulation: scale and shift, [R, C] float32 each; or [C] in any dtype, the same for all rows.
        layout: rows of the packed tokens.
        dtype: of the result.
        backend: as resolved.

    Returns:
        [T, C] in `dtype`; computed in float32. Its bits depend on the token and its row alone.
    """
    if backend.name == "triton":
        normed = _residual_norm(x, None, None, modulation, layout, dtype)[1]
        assert normed is not None
        return normed
    return residual_norm.modulated_norm(x, modulation, _on_host(layout), dtype)


def add_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    modulation: Modulation,
    layout: PackedRows,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """X + gate * update in float32, and LN of that * scale + shift, in one pass over a row.

    Args:
        x: [T, C] float32 packed by `layout`; it stays as it is on every backend, unless it is `out`.
        update: [T, C] in the compute dtype.
        gate: [R, C] float32; None: 1.
        modulation: scale and shift, [R, C] float32 each; or [C] in any dtype, the same for all rows.
        layout: rows of the packed tokens.
        dtype: of the normed result.
        out: takes the sum.
        backend: as resolved.

    Returns:
        The sum [T, C] float32, and its norm [T, C] in `dtype`.
    """
    if backend.name == "triton":
        added, normed = _residual_norm(x, update, gate, modulation, layout, dtype, out)
        assert normed is not None
        return added, normed
    return residual_norm.add_and_norm(x, update, gate, modulation, _on_host(layout), dtype, out)


def _on_host(layout: PackedRows) -> TokenLayout:
    """The layout of a twin in PyTorch, which needs to know the rows on the host."""
    assert isinstance(layout, TokenLayout)
    return layout


def gated_add(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    layout: PackedRows,
    *,
    out: Tensor | None = None,
    backend: Backend,
) -> Tensor:
    """X + gate * update in float32: what `add_and_norm` does where no norm follows.

    Args:
        x: [T, C] float32 packed by `layout`; it stays as it is on every backend, unless it is `out`.
        update: [T, C] in the compute dtype.
        gate: [R, C] float32; None: 1.
        layout: rows of the packed tokens.
        out: takes the sum.
        backend: as resolved.

    Returns:
        [T, C] float32.
    """
    if backend.name == "triton":
        return _residual_norm(x, update, gate, None, layout, None, out)[0]
    return residual_norm.gated_add(x, update, gate, _on_host(layout), out)


def _residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    modulation: Modulation | None,
    layout: PackedRows,
    dtype: torch.dtype | None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    from .residual_norm.launch import residual_norm as by_kernel  # noqa: PLC0415 - imports Triton

    return by_kernel(x, update, gate, modulation, layout, dtype, out)


def linear_gelu(layer: nn.Linear, x: Tensor, *, backend: Backend) -> Tensor:
    """GELU (tanh form) of a linear layer: [T, C] to [T, F]; one product where PyTorch's fused form is that one."""
    if backend.name == "triton" and fuses_tanh_form(x.device, x.dtype):
        return fused_linear_gelu(layer, x)
    return plain_linear_gelu(layer, x)
