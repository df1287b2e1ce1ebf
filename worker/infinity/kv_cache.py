"""Preallocated keys and values of earlier scales, each layer and row with its own length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import KeyLengths, TokenLayout
from toprovar_batch.kernels.ops import AttentionInputs, Backend, attend, qk_norm_rope_append

from .config import TransformerArchitecture


def cache_bytes(sizes: TransformerArchitecture, rows: int, kept: int, last: int, dtype: torch.dtype) -> int:
    """Bytes of a cache; arguments as of `KVCache`."""
    return 2 * rows * (sizes.depth * kept + last) * sizes.width * dtype.itemsize


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
        """
        self.backend = backend
        self._kept, self._last = kept, last
        shape = (rows, sizes.num_heads, sizes.depth * kept + last, sizes.head_dim)
        # PyTorch gives a masked key the weight 0, and 0 times whatever memory held may be NaN. The Triton kernel reads
        # nothing behind a row's keys, and takes rows of different lengths itself, so there zeros would be wasted time.
        reserve = torch.zeros if backend.name == "torch" else torch.empty
        self._keys = reserve(shape, device=device, dtype=dtype)
        self._values = reserve(shape, device=device, dtype=dtype)
        self._lengths = [(0,) * rows for _ in range(sizes.depth)]
        self._in_last_scale = False
        self._next_layer = 0

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
        rows = layout.num_rows
        before = self._lengths[layer][:rows]
        after = tuple(old + new for old, new in zip(before, layout.row_lengths, strict=True))
        first = (len(self._lengths) - 1 - layer) * self._kept
        room = self._kept
        if self._in_last_scale:
            assert layer >= self._next_layer, "the keys of this layer have been overwritten"
            self._next_layer = layer + 1
            room += self._last
        else:
            self._lengths[layer] = after + self._lengths[layer][rows:]
        keys, values = (tensor[:rows, :, first : first + room] for tensor in (self._keys, self._values))
        q = qk_norm_rope_append(qkv, q_scale, rotation, layout, before, keys, values, backend=self.backend)
        longest = max(after)
        return q, keys[:, :, :longest], values[:, :, :longest], KeyLengths(after, qkv.device)

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        q_scale: Tensor,
        rotation: Tensor,
        layout: TokenLayout,
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
        q, keys, values, lengths = self.append(layer, qkv, q_scale, rotation, layout)
        inputs = AttentionInputs(q, keys, values, layout, lengths, 1.0)
        return attend(inputs, entropy_rows=entropy_rows, backend=self.backend)
