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
    if not torch.is_grad_enabled():
        # PyTorch's CUDA kernel copies channels-last tensors and gives a single image to 32 blocks only.
        if x.is_cuda:
            return by_reductions(x, weight, bias, num_groups, eps, swish=swish)
        if not x.is_contiguous():
            return by_rows(x, weight, bias, num_groups, eps, swish=swish)
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
    wide -= _of_channels(mean, x)  # before scaling: a flat map has a large scale and must not cancel
    return _finish(wide, variance, weight, bias, eps, swish=swish).to(x.dtype)


def by_rows(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, *, swish: bool) -> Tensor:
    """The same for channels-last maps on a CPU, in float32 or wider.

    PyTorch's own kernel adds up a thread's share of such a map one value after the other in float32. At 512 x 512
    this loses three digits, and how many depends on the number of threads. Sums of rows, then of these, lose none.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = _of_rows(wide).mean(2).mean(1).unflatten(1, (num_groups, -1)).mean(2)  # [B, G]
    centred = wide - _of_channels(mean, x)
    squares = torch.linalg.vector_norm(_of_rows(centred), dim=2).square()  # [B, H, C]
    variance = squares.mean(1).unflatten(1, (num_groups, -1)).mean(2) / x.shape[3]
    return _finish(centred, variance, weight, bias, eps, swish=swish).to(x.dtype)


def _of_rows(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def _of_channels(groups: Tensor, x: Tensor) -> Tensor:
    """[B, G] to [B, C, 1, 1]."""
    return groups.repeat_interleave(x.shape[1] // groups.shape[1], 1)[..., None, None]


def _finish(
    centred: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, *, swish: bool
) -> Tensor:
    """What is left once the mean is taken off, in place."""
    scale = _of_channels((variance + eps).rsqrt(), centred) * weight[:, None, None]
    torch.addcmul(bias[:, None, None], centred, scale, out=centred)
    return silu(centred, inplace=True) if swish else centred


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
