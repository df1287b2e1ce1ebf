"""Floating-point operations of generation, counted from the sizes (a multiply-add is two)."""

from .bsq import code_size
from .config import TransformerArchitecture, VaeArchitecture
from .schedule import ScaleSchedule


def transformer_flops(sizes: TransformerArchitecture, schedule: ScaleSchedule, rows: int) -> float:
    """Dense transformer work of one image.

    Args:
        sizes: of the transformer.
        schedule: token map sizes.
        rows: 2 with guidance, else 1.

    Returns:
        Operations of the blocks' linear layers, self-attention and the head; cross-attention over the few
        text tokens is left out.
    """
    width = sizes.width
    linear_per_token = 2 * (4 + 2) * width**2 + 2 * 2 * width * sizes.mlp_width  # self, cross, feed-forward
    total, seen = 0.0, 0
    for height, columns in schedule:
        tokens = height * columns
        seen += tokens
        attention = 4 * tokens * seen * width
        total += sizes.depth * (tokens * linear_per_token + attention)
        total += tokens * 2 * width * 2 * sizes.bits_per_token
    return rows * total


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
