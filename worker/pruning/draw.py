"""Counter-based noise for draws of tokens: a pure function of (seed, scale, layer, token)."""

import torch
from torch import Tensor

from toprovar_batch.kernels.bit_sampling.naive import philox_4x32, unit_interval

_MASK = 0xFFFFFFFF
_STREAM = 1  # the fourth word of the counter; that of the bits' noise is 0


def pruning_noise(seeds: Tensor, scale_index: int, num_layers: int, num_tokens: int) -> Tensor:
    """Uniform numbers in (0, 1), one for each token of each layer.

    The Philox counter is (layer // 4, token, scale, 1); its four output words serve four neighbouring layers.

    Args:
        seeds: [B] int64, each >= 0.
        scale_index: counted from 0.
        num_layers: L.
        num_tokens: N.

    Returns:
        [L, B, N] float32 on the device of `seeds`.
    """
    device = seeds.device
    groups = torch.arange(-(-num_layers // 4), device=device)[:, None, None]
    tokens = torch.arange(num_tokens, device=device)
    constant = torch.zeros_like(groups)
    key = (seeds[:, None] & _MASK, (seeds[:, None] >> 32) & _MASK)
    words = torch.stack(
        philox_4x32((groups, tokens, constant + scale_index, constant + _STREAM), key), dim=1
    )  # [L / 4, 4, B, N]
    return unit_interval(words.flatten(0, 1)[:num_layers])
