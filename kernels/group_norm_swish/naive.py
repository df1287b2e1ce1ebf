"""Group norm with swish after it, and the residual sum before it, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu


def group_norm_swish(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    swish: bool = True,
    input_bias: Tensor | None = None,
) -> Tensor:
    """Normalise each group of channels of an image over all its pixels, then apply weight, bias and swish.

    Args:
        x: [B, C, H, W].
        weight: [C].
        bias: [C].
        num_groups: of neighbouring channels; divides C.
        eps: added to the variance.
        swish: whether y sigmoid(y) follows.
        input_bias: [C], added to `x` first: the bias of the convolution that made it.

    Returns:
        [B, C, H, W] in the dtype of `x`; differentiable where gradients are enabled.
    """
    if input_bias is not None:
        x = x + input_bias.to(x.dtype)[:, None, None]
    # PyTorch's CUDA kernel copies channels-last tensors and gives a single image to 32 blocks only.
    if x.is_cuda and not torch.is_grad_enabled():
        return by_reductions(x, weight, bias, num_groups, eps, swish=swish)
    out = group_norm(x, num_groups, weight, bias, eps)
    return silu(out) if swish else out


def by_reductions(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, *, swish: bool
) -> Tensor:
    """The same, as general reductions and one affine step in float32: faster on a GPU for large maps."""
    wide = x.to(torch.float32, copy=True)  # changed in place below
    variance, mean = torch.var_mean(
        wide.unflatten(1, (num_groups, -1)), dim=(2, 3, 4), correction=0
    )  # [B, G]
    mean, scale = (
        group.repeat_interleave(x.shape[1] // num_groups, 1)[..., None, None]
        for group in (mean, (variance + eps).rsqrt())
    )
    wide -= mean  # before scaling: a flat map has a large scale and must not cancel
    torch.addcmul(bias[:, None, None], wide, scale * weight[:, None, None], out=wide)
    if swish:
        silu(wide, inplace=True)
    return wide.to(x.dtype)


def residual_add(hidden: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    """The end of a residual block: the sum of `hidden`, `bias` and `shortcut`.

    Args:
        hidden: [B, C, H, W], what a convolution gives without its bias.
        bias: [C].
        shortcut: [B, C, H, W].

    Returns:
        [B, C, H, W] in the dtype of `hidden`.
    """
    return hidden + bias.to(hidden.dtype)[:, None, None] + shortcut
