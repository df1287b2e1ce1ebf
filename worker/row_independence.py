"""From how many rows on a device's products give each row the same bits, whatever the number of rows."""

from itertools import takewhile

import torch

from .infinity.row_linear import RowLinear
from .infinity.transformer import Infinity

_TRIED = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 640, 1024, 1536, 2048, 3072)
_WHOLE = 4096
# Every layer of the small scales takes so many rows then; more would cost more than 5% of an image's time.
MOST_PADDING = 512


def least_rows(model: Infinity) -> int | None:
    """Rows that a block's products need, so that a row's bits do not depend on their number.

    Found by trying: a library chooses its kernel by shape, and only some of its kernels add up alike.

    Args:
        model: on its device, loaded.

    Returns:
        The least number; None if more than `MOST_PADDING` rows still give other bits.
    """
    found = 1
    generator = torch.Generator(model.device).manual_seed(0)
    for layer in (each for each in model.blocks[0].modules() if isinstance(each, RowLinear)):
        shape = (_WHOLE, layer.in_features)
        x = torch.randn(shape, generator=generator, device=model.device).to(layer.weight.dtype)
        whole = layer(x)
        fits = takewhile(lambda rows: torch.equal(layer(x[:rows].clone()), whole[:rows]), reversed(_TRIED))  # noqa: B023
        found = max(found, min(fits, default=_WHOLE))
    return found if found <= MOST_PADDING else None


@torch.inference_mode()
def make_rows_independent(model: Infinity) -> int | None:
    """Let every product of the blocks take the rows that it needs; see `least_rows`, whose result it gives."""
    rows = least_rows(model)
    for layer in (each for each in model.blocks.modules() if isinstance(each, RowLinear)):
        layer.least_rows = rows or 1
    return rows
