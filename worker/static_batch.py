"""Tensors of a batch that stay where they are, so that graphs captured over them serve the next batch, too."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import KeyLengths
from toprovar_batch.kernels.ops import Backend

from .infinity.config import TransformerArchitecture
from .infinity.kv_cache import KVCache, cache_elements
from .infinity.schedule import ScaleSchedule
from .infinity.text_context import BlockContext, TextContext
from .infinity.transformer import Infinity
from .static_tables import TABLES, StaticTables, most_blocks, table_sizes

# PyTorch multiplies what lies behind a text by 0, which must not be NaN. Later it is what other texts left there.
FINITE_BEHIND_TEXTS = ("text_keys", "text_values")


class BatchShape(NamedTuple):
    """What the tensors' sizes follow from.

    Attributes:
        schedule: token map sizes.
        num_rows: R.
        text_tokens: room for the text of each row.
        codebook_dim: z.
        code_size: (height, width) of the sum of codes.
        prompts: B.
        packs: whether some tokens may run while others of their scale do not.
    """

    schedule: ScaleSchedule
    num_rows: int
    text_tokens: int
    codebook_dim: int
    code_size: tuple[int, int]
    prompts: int
    packs: bool = True

    @property
    def most_tokens(self) -> int:
        """Of a scale, over all rows."""
        return self.num_rows * max(height * width for height, width in self.schedule)

    @property
    def most_packed(self) -> int:
        """Most tokens that run while others do not."""
        return self.most_tokens if self.packs else 0


class StaticBatch:
    """The tensors of batches of one shape.

    Attributes:
        shape: of the batches.
        cache: keys and values.
        text: what the text gives to every scale; its lengths are `text_lengths`.
        x, update: [A * N + 1, C] float32 and [A * N, C], the hidden state of a scale's tokens and what a layer leaves to add.
            The last place of `x` is for padding.
        some_x, some_update: the same of tokens that run while others do not; empty where all run.
        codes: [B, z, H, W] float32, channels last.
        finite: [B] bool.
        seeds: [B] int64.
        tables: which tokens the layers run.
    """

    def __init__(
        self, shape: BatchShape, model: Infinity, backend: Backend, block_m: int, flat: Mapping[str, Tensor]
    ) -> None:
        """View flat tensors, of which each is large enough, see `sizes_of`.

        Args:
            shape: of the batches.
            model: the transformer.
            backend: of the kernels.
            block_m: queries of a block of attention.
            flat: the tensors by name.
        """
        self.shape = shape
        self._model = model
        self._rotations: dict[tuple[int, tuple[int, int]], Tensor] = {}
        sizes = model.sizes
        *earlier, last = (height * width for height, width in shape.schedule)
        self.cache = KVCache(
            sizes, shape.num_rows, sum(earlier), last, model.device, model.dtype, backend,
            (flat["keys"], flat["values"]),
        )  # fmt: skip
        tokens, width = shape.most_tokens, sizes.width
        self.x = _view(flat["x"], tokens + 1, width)
        self.some_x = _view(flat["some_x"], shape.most_packed, width)
        self.update = _view(flat["update"], tokens, width)
        self.some_update = _view(flat["some_update"], shape.most_packed, width)
        self.codes = _view(flat["codes"], shape.prompts, *shape.code_size, shape.codebook_dim).permute(
            0, 3, 1, 2
        )
        self.finite = flat["finite"][: shape.prompts]
        self.seeds = flat["seeds"][: shape.prompts]
        self.text = self._text(model, flat)
        self.text_lengths: tuple[int, ...] = ()
        self.tables = StaticTables(
            sizes.depth, shape.num_rows, shape.most_tokens, block_m, {name: flat[name] for name in TABLES}
        )

    def _text(self, model: Infinity, flat: Mapping[str, Tensor]) -> TextContext:
        sizes, shape = model.sizes, self.shape
        rows, width = shape.num_rows, sizes.width
        adaln = _view(flat["adaln"], sizes.depth, 6, rows, width)
        heads = (sizes.num_heads, shape.text_tokens, sizes.head_dim)
        keys = _view(flat["text_keys"], sizes.depth, rows, *heads)
        values = _view(flat["text_values"], sizes.depth, rows, *heads)
        blocks = []
        for layer, constants in enumerate(model.constants):
            bias = constants.qkv_bias.to(model.dtype)
            blocks.append(BlockContext(adaln[layer], keys[layer], values[layer], bias, constants.q_scale))
        return TextContext(
            _view(flat["cond"], rows, width),
            _view(flat["head_modulation"], rows, 2 * width),
            KeyLengths((shape.text_tokens,) * rows, model.device),
            tuple(blocks),
        )

    def rotation(self, scale_index: int, largest_map: tuple[int, int]) -> Tensor:
        """Turns of a scale's map; kept as long as graphs may read them, while the model forgets those used least.

        Args:
            scale_index: counted from 0.
            largest_map: (height, width) over which positions are spread.

        Returns:
            [N, D / 2] complex64, the same tensor every time.
        """
        key = scale_index, largest_map
        if key not in self._rotations:
            size, device = self.shape.schedule[scale_index], self._model.device
            self._rotations[key] = self._model.rotations.of(size, largest_map, device)
        return self._rotations[key]

    def start(self, text: TextContext) -> None:
        """Take in the text of a batch, and forget the one before."""
        self.cache.empty()
        self.codes.zero_()
        self.finite.fill_(True)
        self.text_lengths = text.text_lengths.lengths
        self.text.cond.copy_(text.cond)
        self.text.head_modulation.copy_(text.head_modulation)
        targets, sources = [], []
        for own, given in zip(self.text.blocks, text.blocks, strict=True):
            width = given.text_keys.shape[2]
            targets += [own.adaln, own.text_keys[:, :, :width], own.text_values[:, :, :width]]
            sources += [given.adaln, given.text_keys, given.text_values]
        torch._foreach_copy_(targets, sources)


def sizes_of(
    shape: BatchShape, sizes: TransformerArchitecture, dtype: torch.dtype, block_m: int
) -> dict[str, tuple[int, torch.dtype]]:
    """Elements and dtype of the flat tensors that a `StaticBatch` views.

    Args:
        shape: of the batch.
        sizes: of the transformer.
        dtype: compute dtype.
        block_m: queries of a block of attention.
    """
    *earlier, last = (height * width for height, width in shape.schedule)
    tokens, rows, width = shape.most_tokens, shape.num_rows, sizes.width
    cache = cache_elements(sizes, rows, sum(earlier), last)
    text = sizes.depth * rows * shape.text_tokens * width
    longest = max(height * width for height, width in shape.schedule)
    return {
        "keys": (cache, dtype),
        "values": (cache, dtype),
        "x": ((tokens + 1) * width, torch.float32),
        "some_x": (shape.most_packed * width, torch.float32),
        "update": (tokens * width, dtype),
        "some_update": (shape.most_packed * width, dtype),
        "codes": (shape.prompts * shape.codebook_dim * prod(shape.code_size), torch.float32),
        "finite": (shape.prompts, torch.bool),
        "seeds": (shape.prompts, torch.int64),
        "cond": (rows * width, torch.float32),
        "head_modulation": (rows * 2 * width, torch.float32),
        "adaln": (sizes.depth * 6 * rows * width, torch.float32),
        "text_keys": (text, dtype),
        "text_values": (text, dtype),
    } | table_sizes(sizes.depth, rows, tokens, most_blocks(rows, longest, block_m))


def _view(flat: Tensor, *shape: int) -> Tensor:
    return flat[: prod(shape)].view(shape)
