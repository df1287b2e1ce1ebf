"""From how many rows on a device's products give each row the same bits, whatever the number of rows."""

from collections.abc import Callable
from itertools import takewhile

import torch
from torch import Tensor

from toprovar_batch.kernels.ops import Backend, linear_gelu

from .infinity.row_linear import RowLinear
from .infinity.transformer import Block, Infinity

_TRIED = (
    *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 72, 96, 120, 128, 144, 192, 200, 256, 288, 320, 384, 448, 512),
    *(576, 640, 704, 768, 800, 896, 1024, 1152, 1536, 2048, 2304, 3072),
)  # fmt: skip
_WHOLE = 4096
_TILE = 64
_MANY = 32768  # about the rows of eight images at 1M
_FURTHER = (1968, 1984, 4096, 6400, 8192, 12800, 16384)
# Every layer of the small scales takes so many rows then; more would cost more than 5% of an image's time.
MOST_PADDING = 512


def least_rows(model: Infinity, backend: Backend) -> int | None:
    """Rows that the products of a model need, so that a row's bits do not depend on their number.

    Found by trying: a library chooses its kernel by shape, and only some of its kernels add up alike.

    Args:
        model: on its device, loaded.
        backend: of the kernels.

    Returns:
        1, or a multiple of 64; None if more than `MOST_PADDING` rows still give other bits.
    """
    found = 1
    generator = torch.Generator(model.device).manual_seed(0)
    for width, product in _products(model, backend):
        x = torch.randn(_WHOLE, width, generator=generator, device=model.device).to(model.dtype)
        whole = product(x)

        def is_same(rows: int, x: Tensor = x, whole: Tensor = whole, product: _Product = product) -> bool:
            return torch.equal(product(x[:rows].clone()), whole[:rows])

        found = max(found, min(takewhile(is_same, reversed(_TRIED)), default=_WHOLE))
    if found > 1:  # numbers between those tried share the tiles of the next multiple
        found = -(-found // _TILE) * _TILE
    return found if found <= MOST_PADDING else None


def holds(model: Infinity, backend: Backend, rows: int) -> bool:
    """Whether products of at least `rows` rows give each row the same bits among many rows, wherever it stands there.

    `least_rows` looks at the first rows of few. A library may split the last tiles of many rows otherwise.

    Args:
        model: on its device, loaded.
        backend: of the kernels.
        rows: see `least_rows`.
    """
    generator = torch.Generator(model.device).manual_seed(1)
    for width, product in _products(model, backend):
        x = torch.randn(_MANY, width, generator=generator, device=model.device).to(model.dtype)
        whole = product(x)
        for count in (*(tried for tried in _TRIED if tried >= rows), *_FURTHER):
            for part in (slice(0, count), slice(_MANY - count, _MANY)):
                if not torch.equal(product(x[part].clone()), whole[part]):
                    return False
    return True


_Product = Callable[[Tensor], Tensor]


def _products(model: Infinity, backend: Backend) -> list[tuple[int, _Product]]:
    """Width of the input, and the product as it runs, of the first block's and of what embeds the codes."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    qkv, fc1, bias = block.sa.mat_qkv, block.ffn.fc1, block.constants().qkv_bias.to(model.dtype)
    plain = [block.sa.proj, block.ca.mat_q, block.ca.proj, block.ffn.fc2, model.word_embed]
    return [
        (qkv.in_features, lambda x: qkv.with_bias(x, bias)),
        (fc1.in_features, lambda x: linear_gelu(fc1, x, backend=backend)),
        *((layer.in_features, layer) for layer in plain),
    ]


@torch.inference_mode()
def make_rows_independent(model: Infinity, backend: Backend) -> tuple[int | None, bool]:
    """Let every product take the rows that it needs; gives `least_rows`, and whether that then `holds`."""
    rows = least_rows(model, backend)
    for layer in model.modules():
        if isinstance(layer, RowLinear):
            layer.least_rows = rows or 1
    return rows, rows is not None and holds(model, backend, rows)
