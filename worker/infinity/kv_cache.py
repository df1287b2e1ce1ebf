"""Preallocated keys and values of earlier scales, each layer and row with its own length."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import KeyLengths, PackedRows, TokenLayout
from toprovar_batch.kernels.ops import AttentionInputs, Backend, attend, qk_norm_rope_append

from .config import TransformerArchitecture


def cache_elements(sizes: TransformerArchitecture, rows: int, kept: int, last: int) -> int:
    """Numbers that a cache holds of keys, and as many of values; arguments as of `KVCache`."""
    return rows * (sizes.depth * kept + last) * sizes.width


def cache_bytes(sizes: TransformerArchitecture, rows: int, kept: int, last: int, dtype: torch.dtype) -> int:
    """Bytes of a cache; arguments as of `KVCache`."""
    return 2 * cache_elements(sizes, rows, kept, last) * dtype.itemsize


class KVCache:
    """Keys and values of all scales but the last, whose own live only while their layer runs.

    Rows of a batch may hold different numbers of tokens in each layer, since a pruned token leaves none.

    The layers share one [R, H, S, D] tensor of keys and one of values, the last layer in front:

        | layer L - 1: kept | ... | layer 1: kept | layer 0: kept | last |

    In the last scale, a layer's own tokens go behind its earlier ones as in any scale. There they may take the room of
    layers before it. Those layers have run for the last time by then, since layers run in ascending order. So the last
    scale, which at 1M has 39% of all tokens, needs room once and not once per layer. No key is copied for it.

    Attributes:
        backend: of the attention.
    """

    def __init__(
        self,
        sizes: TransformerArchitecture,
        rows: int,
        kept: int,
        last: int,
        device: torch.device,
        dtype: torch.dtype,
        backend: Backend,
        storage: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Reserve room.

        Args:
            sizes: of the transformer.
            rows: R, prompts times guidance branches.
            kept: most tokens that a row keeps in a layer: those of all scales but the last.
            last: tokens of the last scale.
            device: of the storage.
            dtype: of the storage.
            backend: of the attention.
            storage: flat tensors of `dtype` on `device` that hold the keys and the values; None: new ones.
        """
        self.backend = backend
        self._kept, self._last = kept, last
        shape = (rows, sizes.num_heads, sizes.depth * kept + last, sizes.head_dim)
        # PyTorch gives a masked key the weight 0, and 0 times whatever memory held may be NaN. The Triton kernel reads
        # nothing behind a row's keys, and takes rows of different lengths itself, so there zeros would be wasted time.
        reserve = torch.zeros if backend.name == "torch" else torch.empty
        size = math.prod(shape)
        if storage is None:
            storage = reserve(size, device=device, dtype=dtype), reserve(size, device=device, dtype=dtype)
        self._keys, self._values = (flat[:size].view(shape) for flat in storage)
        self._lengths = [(0,) * rows for _ in range(sizes.depth)]
        self._in_last_scale = False
        self._next_layer = 0

    def empty(self) -> None:
        """Start anew, with the next batch."""
        self._lengths = [(0,) * len(row) for row in self._lengths]
        self._in_last_scale, self._next_layer = False, 0

    def enter_last_scale(self) -> None:
        """From here on new keys and values live only while their layer runs, and each layer runs at most once."""
        self._in_last_scale = True

    def append(
        self, layer: int, qkv: Tensor, q_scale: Tensor, rotation: Tensor, layout: TokenLayout
    ) -> tuple[Tensor, Tensor, Tensor, KeyLengths]:
        """Normalise and rotate a layer's queries and keys, and put its keys and values behind each row's earlier ones.

        Args:
            layer: index of the layer; in the last scale above all that ran in it before.
            qkv: [T, 3, H, D] packed by `layout`.
            q_scale: [H] float32, the factor on the unit queries.
            rotation: [N, D / 2] complex64 of the scale.
            layout: of the packed tokens; its rows are the cache's first, mostly all of them.

        Returns:
            The queries [T, H, D]; all keys and values that these rows now see in the layer, [n, H, N, D] padded to the
            longest row; and their lengths.
        """
        starts, ends = self.reserve(layer, layout.row_lengths)
        keys, values = self.room(layer, layout.num_rows)
        q = qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, keys, values, backend=self.backend)
        longest = max(ends)
        return q, keys[:, :, :longest], values[:, :, :longest], KeyLengths(ends, qkv.device)

    def reserve(self, layer: int, row_lengths: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Take room for new keys and values of a layer's first rows.

        Args:
            layer: index of the layer; in the last scale above all that ran in it before.
            row_lengths: new tokens of each row.

        Returns:
            For each of these rows the slot of its first new token, and its length with the new ones.
        """
        rows = len(row_lengths)
        starts = self._lengths[layer][:rows]
        ends = tuple(old + new for old, new in zip(starts, row_lengths, strict=True))
        if self._in_last_scale:
            assert layer >= self._next_layer, "the keys of this layer have been overwritten"
            self._next_layer = layer + 1
        else:
            self._lengths[layer] = ends + self._lengths[layer][rows:]
        return starts, ends

    def room(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, H, S, D] of a layer's first rows, all slots that it may use in the scale that runs."""
        first = (len(self._lengths) - 1 - layer) * self._kept
        slots = self._kept + (self._last if self._in_last_scale else 0)
        keys, values = (tensor[:rows, :, first : first + slots] for tensor in (self._keys, self._values))
        return keys, values

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        q_scale: Tensor,
        rotation: Tensor,
        layout: PackedRows,
        *,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention of a layer's new tokens over themselves and all earlier scales.

        Args:
            layer: index of the layer; in the last scale above all that ran in it before.
            qkv: [T, 3, H, D] packed by `layout`, as the layer's product gives them.
            q_scale: [H] float32, the factor on the unit queries; the softmax scale is 1.
            rotation: [N, D / 2] complex64 of the scale.
            layout: rows of the packed tokens.
            entropy_rows: also measure the entropy of the attention of these rows.

        Returns:
            The attended values [T, H, D], and the entropy of the tokens of `entropy_rows`, float32 in nats (mean over
            heads), or None.
        """
        assert isinstance(layout, TokenLayout)
        q, keys, values, lengths = self.append(layer, qkv, q_scale, rotation, layout)
        inputs = AttentionInputs(q, keys, values, layout, lengths, 1.0)
        return attend(inputs, entropy_rows=entropy_rows, backend=self.backend)
