"""Floating-point operations of generation, counted from the sizes (a multiply-add is two)."""

from collections.abc import Sequence

from .bsq import code_size
from .config import TransformerArchitecture, VaeArchitecture
from .schedule import ScaleSchedule


def transformer_flops(
    sizes: TransformerArchitecture,
    counts: Sequence[Sequence[int]],
    branches: Sequence[int],
    head_tokens: Sequence[int],
) -> float:
    """Transformer work of one image, by the tokens that ran and the keys that they saw.

    Args:
        sizes: of the transformer.
        counts: [scales][layers] tokens that a layer ran in each branch; each leaves a key there.
        branches: guidance branches that ran in each scale: 2, 1, or 0 where it was skipped.
        head_tokens: tokens that the head took in each scale, over all its branches: one alone where a hidden state is guided.

    Returns:
        Operations of the blocks' linear layers, self-attention and the head; cross-attention over the few
        text tokens is left out.
    """
    width = sizes.width
    linear_per_token = 2 * (4 + 2) * width**2 + 2 * 2 * width * sizes.mlp_width  # self, cross, feed-forward
    total = sum(head_tokens) * 2.0 * width * 2 * sizes.bits_per_token
    for branch in range(max(branches, default=0)):
        seen = [0] * sizes.depth
        for layer_counts, running in zip(counts, branches, strict=True):
            if running <= branch:
                continue
            for layer, tokens in enumerate(layer_counts):
                seen[layer] += tokens
                total += tokens * linear_per_token + 4 * tokens * seen[layer] * width
    return total


def decoder_flops(sizes: VaeArchitecture, schedule: ScaleSchedule) -> float:
    """Convolutions of the VAE decoder for one image."""
    height, width = code_size(schedule[-1], sizes.spatial_patchify)
    widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
    pixels = height * width
    deepest = widths[-1]
    total = 2.0 * 9 * pixels * (sizes.codebook_dim * deepest + 4 * deepest**2)
    before = deepest
    for level in reversed(range(len(widths))):
        channels = widths[level]
        total += (
            2
            * pixels
            * (9 * (before * channels + 5 * channels**2) + (before != channels) * before * channels)
        )
        if level:
            pixels *= 4
            total += 2 * 9 * pixels * channels**2
        before = channels
    return total + 2 * 9 * pixels * widths[0] * 3
