"""How many parameters a model of some sizes has, counted without building it. No PyTorch."""

from itertools import pairwise

from .config import MAX_LEVELS, MAX_TEXT_TOKENS, TransformerArchitecture, VaeArchitecture

_DECODER_BLOCKS = 3  # residual blocks of a level


def transformer_parameters(sizes: TransformerArchitecture) -> int:
    """Of an `Infinity`."""
    width, text, bits = sizes.width, sizes.text_width, sizes.bits_per_token
    pool = width + _linear(text, 2 * width, bias=False) + width + _linear(width, width)
    ends = (
        (MAX_TEXT_TOKENS + 1) * text  # the text of the unconditional branch, and the norm
        + (1 + MAX_LEVELS) * width
        + pool
        + _linear(text, width)
        + _linear(width, width)
        + _linear(bits, width)
        + _linear(width, 6 * width)
        + _linear(width, 2 * width)
        + _linear(width, 2 * bits)
    )
    return ends + sizes.depth * _block_parameters(sizes)


def _block_parameters(sizes: TransformerArchitecture) -> int:
    width = sizes.width
    self_attention = (
        sizes.num_heads + 2 * width + _linear(width, 3 * width, bias=False) + _linear(width, width)
    )
    cross_attention = 2 * _linear(width, width) + _linear(width, 2 * width, bias=False) + width
    feed_forward = _linear(width, sizes.mlp_width) + _linear(sizes.mlp_width, width)
    return 6 * width + self_attention + cross_attention + 2 * width + feed_forward


def decoder_parameters(sizes: VaeArchitecture) -> int:
    """Of a `Vae` without its encoder."""
    widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
    total = _convolution(sizes.codebook_dim, widths[-1]) + 2 * _residual(widths[-1], widths[-1])
    for before, width in zip([*widths[1:], widths[-1]], widths, strict=True):
        total += sum(_residual(*pair) for pair in pairwise([before] + [width] * _DECODER_BLOCKS))
    total += sum(_convolution(width, width) for width in widths[1:])
    return total + 2 * widths[0] + _convolution(widths[0], 3)


def _residual(inside: int, outside: int) -> int:
    shortcut = _convolution(inside, outside, kernel=1) if inside != outside else 0
    return 2 * (inside + outside) + _convolution(inside, outside) + _convolution(outside, outside) + shortcut


def _linear(inside: int, outside: int, *, bias: bool = True) -> int:
    return inside * outside + (outside if bias else 0)


def _convolution(inside: int, outside: int, kernel: int = 3) -> int:
    return inside * outside * kernel * kernel + outside
