"""Preallocated keys and values of earlier scales, each layer and row with its own length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_device
from toprovar_batch.kernels.layout import KeyLengths, TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, AttentionInputs, Backend, attend

from .config import TransformerArchitecture


def cache_bytes(sizes: TransformerArchitecture, rows: int, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of a cache of `capacity` tokens a row."""
    return 2 * sizes.depth * rows * capacity * sizes.width * dtype.itemsize


class KVCache:
    """Keys and values of all scales but the last, whose own are never kept past their layer.

    Rows of a batch may hold different numbers of tokens in each layer, since a pruned token leaves none.
    """

    def __init__(
        self,
        sizes: TransformerArchitecture,
        rows: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        backend: Backend = PYTORCH,
    ) -> None:
        """Reserve room.

        Args:
            sizes: of the transformer.
            rows: R, prompts times guidance branches.
            capacity: most tokens a row keeps in a layer: those of all scales but the last.
            device: of the storage.
            dtype: of the storage.
            backend: of the attention.
        """
        self.backend = backend
        shape = (sizes.depth, rows, sizes.num_heads, capacity, sizes.head_dim)
        # Zeros, for a masked key has weight 0, and 0 times whatever memory held may be NaN.
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        self._lengths = [(0,) * rows for _ in range(sizes.depth)]
        self._storing = True

    def stop_storing(self) -> None:
        """From here on (the last scale) new keys and values live only while their layer runs."""
        self._storing = False

    def extend(
        self, layer: int, k: Tensor, v: Tensor, layout: TokenLayout
    ) -> tuple[Tensor, Tensor, KeyLengths]:
        """Add a layer's new tokens behind each row's earlier ones.

        Args:
            layer: index of the layer.
            k: [T, H, D] packed by `layout`, normalised and rotated.
            v: [T, H, D].
            layout: rows of the packed tokens.

        Returns:
            All keys and values the layer now sees, [R, H, N, D] padded to the longest row, and their lengths.
        """
        before = self._lengths[layer]
        after = tuple(old + new for old, new in zip(before, layout.row_lengths, strict=True))
        lengths = KeyLengths(after, k.device)
        longest = max(after)
        keys, values = self._keys[layer], self._values[layer]
        if self._storing:
            self._lengths[layer] = after
        else:
            # The last scale is the largest: room for it in every layer would be 39% more cache at 1M.
            keys, values = (self._with_room(stored, max(before), longest) for stored in (keys, values))
        for stored, new in ((keys, k), (values, v)):
            _append(stored, new, layout, before)
        return keys[:, :, :longest], values[:, :, :longest], lengths

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *, entropy_rows: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention of a layer's new tokens over themselves and all earlier scales.

        Args:
            layer: index of the layer.
            q: [T, H, D] packed by `layout`, normalised, scaled and rotated; the softmax scale is 1.
            k: [T, H, D], normalised and rotated.
            v: [T, H, D].
            layout: rows of the packed tokens.
            entropy_rows: also measure the entropy of the attention of these rows.

        Returns:
            The attended values [T, H, D], and the entropy of the tokens of `entropy_rows`, float32 in nats (mean over
            heads), or None.
        """
        keys, values, lengths = self.extend(layer, k, v, layout)
        inputs = AttentionInputs(q, keys, values, layout, lengths, 1.0)
        return attend(inputs, entropy_rows=entropy_rows, backend=self.backend)

    @staticmethod
    def _with_room(stored: Tensor, used: int, wanted: int) -> Tensor:
        larger = stored.new_empty(*stored.shape[:2], wanted, stored.shape[3])
        larger[:, :, :used] = stored[:, :, :used]
        larger[:, :, used:].zero_()
        return larger


def _append(stored: Tensor, new: Tensor, layout: TokenLayout, before: tuple[int, ...]) -> None:
    length = layout.uniform_length
    if length is not None and len(set(before)) == 1:
        stored[:, :, before[0] : before[0] + length] = layout.by_row(new).transpose(1, 2)
        return
    # Where a row's tokens go less where they come from is one number a row.
    shifts = (start - part.start for start, part in zip(before, layout.row_slices, strict=True))
    shift = to_device(tuple(shifts), new.device)
    rows = layout.row_ids
    stored[rows, :, torch.arange(layout.num_tokens, device=new.device) + shift[rows]] = new
