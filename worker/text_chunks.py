"""What the text gives to the transformer, made in pieces of fixed shapes, so that a row's never depends on its batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_batch.kernels.cuda_graphs import Replay
from toprovar_batch.kernels.host_values import to_device
from toprovar_batch.kernels.layout import KeyLengths

from .infinity.config import MAX_TEXT_TOKENS
from .infinity.text_context import BlockContext, TextContext
from .infinity.text_shapes import CHUNK_ROWS, chunks
from .infinity.transformer import Infinity


class TextChunks:
    """Makes the context of any rows from chunks of `CHUNK_ROWS`, of which the last rows may be empty."""

    def __init__(self, model: Infinity, replay: Replay | None) -> None:
        """Serve a model.

        Args:
            model: the transformer.
            replay: of the work of a chunk; None: it runs as it is.
        """
        self._model, self._replay = model, replay
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}  # by capacity: features and mask
        self._made: _Stacked | None = None  # of a chunk, with room for the longest texts

    def context(self, features: Sequence[Tensor]) -> TextContext:
        """Precompute all that depends on the text alone, see `Infinity.encode_text`.

        Args:
            features: one [n_r, Ct5] float32 a row, the prompt's own tokens without padding.

        Returns:
            The context of R = len(features) rows.
        """
        lengths = KeyLengths(tuple(len(row) for row in features), self._model.device)
        pieces = chunks(lengths.lengths)
        whole = self._empty(len(features), max(capacity for capacity, _ in pieces))
        for capacity, rows in pieces:
            made = self._make(capacity, [features[row] for row in rows])
            index = to_device(rows, self._model.device)
            for target, source, dim in zip(whole.first_tokens(capacity), made, _ROW_DIMS, strict=True):
                target.index_copy_(dim, index, source.narrow(dim, 0, len(rows)))
        blocks = tuple(
            BlockContext(adaln, keys, values, constants.qkv_bias.to(self._model.dtype), constants.q_scale)
            for adaln, keys, values, constants in zip(
                whole.adaln, whole.keys, whole.values, self._model.constants, strict=True
            )
        )
        return TextContext(whole.cond, whole.head_modulation, lengths, blocks)

    def _empty(self, rows: int, capacity: int) -> "_Stacked":
        model, sizes = self._model, self._model.sizes
        heads = (sizes.depth, rows, sizes.num_heads, capacity, sizes.head_dim)
        return _Stacked(
            torch.empty(rows, sizes.width, device=model.device),
            torch.empty(rows, 2 * sizes.width, device=model.device),
            torch.empty(sizes.depth, 6, rows, sizes.width, device=model.device),
            # PyTorch multiplies what lies behind a text by 0, which must not be NaN.
            torch.zeros(heads, device=model.device, dtype=model.dtype),
            torch.zeros(heads, device=model.device, dtype=model.dtype),
        )

    def _make(self, capacity: int, features: Sequence[Tensor]) -> "_Stacked":
        """Of up to `CHUNK_ROWS` rows; holds until the next."""
        if capacity not in self._inputs:
            shape = (CHUNK_ROWS, capacity, self._model.sizes.text_width)
            mask = torch.zeros(CHUNK_ROWS, 1, 1, capacity, dtype=torch.bool, device=self._model.device)
            self._inputs[capacity] = torch.zeros(shape, device=self._model.device), mask
        padded, mask = self._inputs[capacity]
        padded.zero_()
        for row, own in enumerate(features):
            padded[row, : len(own)] = own
        lengths = [len(row) for row in features] + [1] * (CHUNK_ROWS - len(features))
        ends = to_device(lengths, padded.device)[:, None, None, None]
        torch.lt(torch.arange(capacity, device=padded.device), ends, out=mask)
        made = self._room(capacity)

        def body() -> None:
            cond, contexts = self._model.text_contexts(padded, mask)
            made.cond.copy_(cond)
            made.head_modulation.copy_(self._model.head_nm.ada_lin(cond))
            # One after the other, as all together take as much as the result.
            for layer, block in enumerate(contexts):
                made.adaln[layer].copy_(block.adaln)
                made.keys[layer].copy_(block.text_keys)
                made.values[layer].copy_(block.text_values)

        if self._replay is None:
            body()
        else:
            self._replay.run(("text", capacity), body)
        return made

    def _room(self, capacity: int) -> "_Stacked":
        """Where chunks of a capacity are made, all in the same memory."""
        if self._made is None:
            self._made = self._empty(CHUNK_ROWS, MAX_TEXT_TOKENS)
        return self._made.first_tokens(capacity)


class _Stacked(NamedTuple):
    """A `TextContext` with the blocks' tensors as one, the blocks in front."""

    cond: Tensor
    head_modulation: Tensor
    adaln: Tensor
    keys: Tensor
    values: Tensor

    def first_tokens(self, count: int) -> "_Stacked":
        """A view of as many tokens of every text."""
        return self._replace(keys=self.keys[..., :count, :], values=self.values[..., :count, :])


_ROW_DIMS = (0, 0, 2, 1, 1)
