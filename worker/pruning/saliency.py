"""How little a token matters: one map per prompt (and layer), by name. High values are pruned first.

`attn_entropy` is the paper's: the entropy of a layer's attention as it is. The others are candidates of our own, the same
for all layers, and need no entropy at all:

- `bit_uncertainty`: how certain the token's bits were in the scale before. Where the model knows its bits, little is left
  to find out.
- `code_detail`: how smooth the sum of codes is around the token. Where it is smooth, finer scales add little.

All are at least 0, so that Eq. 6 can take them in place of the entropy.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, softplus

from toprovar_batch.worker.infinity.resize import resize


def bit_certainty(logits: Tensor) -> Tensor:
    """1 less the mean entropy of a token's bits, in bits.

    Args:
        logits: [P, N, 2D] guided; neighbours are the two values of a bit.

    Returns:
        [P, N] float32 in [0, 1].
    """
    zero, one = logits.unflatten(-1, (-1, 2)).unbind(-1)
    margin = one - zero
    # Entropy of a coin of log-odds m: softplus(m) - m sigmoid(m), the same for -m, which spares large numbers.
    margin = -margin.abs()
    entropy = softplus(margin) - margin * torch.sigmoid(margin)
    return (1 - entropy.mean(-1) / math.log(2)).clamp(0, 1)


def code_detail(summed_codes: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared difference of a token's codes to the mean of the 3 x 3 around it.

    Args:
        summed_codes: [B, z, H, W].
        size: (h, w) of the token map at which detail is looked for.

    Returns:
        [B, h * w] float32; 1 is the energy of the codes of one scale.
    """
    codes = resize(summed_codes, size, "area")
    around = avg_pool2d(codes, 3, stride=1, padding=1, count_include_pad=False)
    return (codes - around).square().sum(1).flatten(1)


def code_smoothness(summed_codes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean / (mean + detail), with the detail of `code_detail` and its mean over the map.

    Args:
        summed_codes: [B, z, H, W].
        size: (h, w) of the token map at which detail is looked for.

    Returns:
        [B, h * w] float32 in [0, 1]; 1 where nothing has any detail.
    """
    detail = code_detail(summed_codes, size)
    mean = detail.mean(-1, keepdim=True)
    return torch.where(mean > 0, mean / (mean + detail), 1.0)
