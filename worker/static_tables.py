"""Which tokens the layers of a scale run, in tensors that stay where they are and are filled before the scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toprovar_batch.kernels.layout import DeviceBlocks, DeviceLayout, TokenLayout, block_table

from .infinity.kv_cache import KVCache
from .pruning.packing import LayerTokens

TABLES = ("positions", "row_ids", "token_indices", "shifts", "self_blocks", "text_blocks")
_SIZES_OF_AN_OCTAVE = 16


def padded_tokens(count: int, most: int) -> int:
    """Tokens that a graph is captured for, so that counts close to each other share one.

    Args:
        count: tokens that run, at least 1.
        most: of the scale.

    Returns:
        The next of 16 sizes an octave, a multiple of 64; never above `most`.
    """
    octave = 1 << (count - 1).bit_length()
    step = max(64, octave // (2 * _SIZES_OF_AN_OCTAVE))
    return min(-(-count // step) * step, most)


def most_blocks(rows: int, longest: int, block_m: int) -> int:
    """Blocks of `block_m` queries in `rows` rows of at most `longest`, each of which may end with a block that is not full."""
    return rows * (-(-longest // block_m) + 1)


def table_sizes(depth: int, rows: int, tokens: int, blocks: int) -> dict[str, tuple[int, torch.dtype]]:
    """Elements and dtype of the tables.

    Args:
        depth: layers.
        rows: R.
        tokens: most of a scale, over all rows.
        blocks: most of a layer, see `most_blocks`.
    """
    slots = depth + 1
    return {
        "positions": (slots * tokens, torch.int64),
        "row_ids": (slots * tokens, torch.int64),
        "token_indices": (slots * tokens, torch.int64),
        "shifts": (depth * rows, torch.int64),
        "self_blocks": (depth * 4 * blocks, torch.int32),
        "text_blocks": (slots * 4 * blocks, torch.int32),
    }


@dataclass(frozen=True)
class RunningLayer:
    """What a layer runs, as its captured work knows it.

    Attributes:
        tokens: of the layer.
        slot: of the tables; layers that share their tokens share it.
        padded: tokens that the work is captured for.
        start: where the cache takes every row's tokens, if no row has ever been pruned; else None.
        layout: of the padded tokens.
        self_blocks: keys that the queries see in the cache; None where `start` tells.
        text_blocks: keys that they see in the text.
    """

    tokens: LayerTokens
    slot: int
    padded: int
    start: int | None
    layout: TokenLayout | DeviceLayout
    self_blocks: DeviceBlocks | None
    text_blocks: DeviceBlocks

    @property
    def key(self) -> tuple[int, int, int | None, int, int]:
        """Equal for layers whose work differs in the content of tables alone."""
        return self.slot, self.padded, self.start, self.layout.num_rows, self.text_blocks.table.shape[1]


class StaticTables:
    """A slot for the tokens of each layer, and one more for whole maps."""

    def __init__(
        self, depth: int, num_rows: int, most_tokens: int, block_m: int, flat: Mapping[str, Tensor]
    ) -> None:
        """View flat tensors, of which each is large enough.

        Args:
            depth: layers.
            num_rows: R.
            most_tokens: of a scale, over all rows.
            block_m: queries of a block of attention.
            flat: see `table_sizes`.
        """
        self._depth, self._num_rows, self._block_m = depth, num_rows, block_m
        self._most_tokens = most_tokens
        slots = depth + 1
        self._positions, self._row_ids, self._token_indices = (
            flat[name][: slots * most_tokens].view(slots, most_tokens)
            for name in ("positions", "row_ids", "token_indices")
        )
        self._shifts = flat["shifts"][: depth * num_rows].view(depth, num_rows)
        self._self_blocks = flat["self_blocks"].view(depth, -1)
        self._text_blocks = flat["text_blocks"].view(slots, -1)

    def positions(self, layer: RunningLayer) -> Tensor:
        """[padded] int64: where a layer's tokens are in the hidden state."""
        return self._positions[layer.slot, : layer.padded]

    def fill(
        self,
        layers: Sequence[tuple[int, LayerTokens]],
        cache: KVCache,
        text_lengths: tuple[int, ...],
        *,
        num_tokens: int,
        before: int,
        running_rows: int,
    ) -> dict[int, RunningLayer]:
        """Take room in the cache for some layers of a scale, in ascending order, and fill in what they run.

        Args:
            layers: index and tokens of each, of those that run any.
            cache: of the batch.
            text_lengths: of all R rows.
            num_tokens: N, of the whole map.
            before: tokens of all earlier maps.
            running_rows: A.

        Returns:
            What each layer runs, by its index.
        """
        most = running_rows * -(-num_tokens // self._block_m)
        shifts = np.zeros((self._depth, self._num_rows), np.int64)
        self_blocks = np.zeros((self._depth, 4 * most), np.int32)
        text_blocks = np.zeros((self._depth + 1, 4 * most), np.int32)
        found: dict[int, RunningLayer] = {}
        slots: dict[int, int] = {}  # by identity of the tokens
        listed: dict[int, LayerTokens] = {}  # by slot
        for layer, tokens in layers:
            whole, lengths = tokens.positions is None, tokens.layout.row_lengths
            rows, slot = len(lengths), self._depth if whole else slots.setdefault(id(tokens), layer)
            starts, ends = cache.reserve(layer, lengths)
            is_dense = tokens.layout.token_indices is None and set(starts) == {before}
            padded = sum(lengths) if whole else padded_tokens(sum(lengths), running_rows * num_tokens)
            count = most if whole else min(padded // self._block_m + running_rows, most)
            self._put(text_blocks[slot], count, lengths, text_lengths[:rows])
            if not is_dense:
                self._put(self_blocks[layer], count, lengths, ends)
                firsts = (part.start for part in tokens.layout.row_slices)
                shifts[layer, :rows] = [start - first for start, first in zip(starts, firsts, strict=True)]
                listed[slot] = tokens
            found[layer] = RunningLayer(
                tokens,
                slot,
                padded,
                before if is_dense else None,
                tokens.layout if is_dense else self._layout(layer, slot, padded, rows),
                None if is_dense else self._blocks(self._self_blocks[layer], count, rows),
                self._blocks(self._text_blocks[slot], count, rows),
            )
        self._list(listed, found, running_rows * num_tokens)
        _upload(text_blocks, self._text_blocks[:, : 4 * most])
        if listed:
            _upload(self_blocks, self._self_blocks[:, : 4 * most])
            _upload(shifts, self._shifts)
        return found

    def _layout(self, layer: int, slot: int, padded: int, rows: int) -> DeviceLayout:
        return DeviceLayout(
            padded,
            rows,
            self._row_ids[slot, :padded],
            self._token_indices[slot, :padded],
            self._shifts[layer, :rows],
        )

    def _blocks(self, flat: Tensor, count: int, rows: int) -> DeviceBlocks:
        return DeviceBlocks(flat[: 4 * count].view(4, count), self._block_m, rows)

    def _put(
        self, flat: np.ndarray, count: int, row_lengths: tuple[int, ...], key_lengths: tuple[int, ...]
    ) -> None:
        """Write a table of `count` blocks; those that are left over have no query and one key."""
        blocks = block_table(row_lengths, key_lengths, self._block_m)
        table = flat[: 4 * count].reshape(4, count)
        table[:, : blocks.shape[1]] = blocks
        table[3, blocks.shape[1] :] = 1

    def _list(self, listed: Mapping[int, LayerTokens], found: Mapping[int, RunningLayer], end: int) -> None:
        """Write the tokens of slots on the device; padding takes the place `end`, behind all tokens of the scale."""
        padded = {layer.slot: layer.padded for layer in found.values()}
        targets, sources = [], []
        for slot, tokens in listed.items():
            count, layout = tokens.layout.num_tokens, tokens.layout
            indices = layout.token_indices
            if indices is None:
                indices = torch.arange(count, device=layout.device) % layout.row_lengths[0]
            targets += [self._row_ids[slot, :count], self._token_indices[slot, :count]]
            sources += [layout.row_ids, indices]
            if tokens.positions is not None:
                targets.append(self._positions[slot, :count])
                sources.append(tokens.positions)
            padding = slice(count, padded[slot])
            self._positions[slot, padding].fill_(end)
            self._row_ids[slot, padding].fill_(-1)
            self._token_indices[slot, padding].zero_()
        if targets:
            torch._foreach_copy_(targets, sources)


def _upload(values: np.ndarray, target: Tensor) -> None:
    """Copy an array of the host, without waiting for the device."""
    source = torch.from_numpy(values)
    if target.device.type == "cuda":
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)
