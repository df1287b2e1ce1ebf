"""The arguments of attention, as the kernels, their plain twin, their checks and their benchmarks share them."""

from typing import NamedTuple

from torch import Tensor

from toprovar_batch.kernels.layout import DeviceBlocks, KeyLengths, PackedRows, TokenLayout


class AttentionInputs(NamedTuple):
    """Packed queries over each row's own keys.

    Attributes:
        q: [T, H, D] packed by `layout`.
        keys: [R, H, N, D]; row r's keys are the first `key_lengths.lengths[r]`.
        values: [R, H, N, D] likewise.
        layout: rows of the queries.
        key_lengths: keys seen by each row; N is the largest of them. Rows that are known on the device alone go to the
            kernels, which need no more than the blocks of queries.
        softmax_scale: positive factor on the scores.
    """

    q: Tensor
    keys: Tensor
    values: Tensor
    layout: PackedRows
    key_lengths: KeyLengths | DeviceBlocks
    softmax_scale: float

    @property
    def host_rows(self) -> tuple[TokenLayout, KeyLengths]:
        """The rows, which PyTorch needs to know on the host."""
        assert isinstance(self.layout, TokenLayout)
        assert isinstance(self.key_lengths, KeyLengths)
        return self.layout, self.key_lengths

    @property
    def is_uniform(self) -> bool:
        """Whether all rows are known to hold equally many queries and to see equally many keys."""
        if isinstance(self.key_lengths, DeviceBlocks):
            return False
        return self.layout.uniform_length is not None and len(set(self.key_lengths.lengths)) == 1

    def row(self, row: int) -> "AttentionInputs":
        """One row alone."""
        layout, key_lengths = self.host_rows
        device, seen = self.q.device, key_lengths.lengths[row]
        return AttentionInputs(
            self.q[layout.row_slices[row]],
            self.keys[row : row + 1, :, :seen],
            self.values[row : row + 1, :, :seen],
            TokenLayout((layout.row_lengths[row],), device),
            KeyLengths((seen,), device),
            self.softmax_scale,
        )

    def first_rows(self, rows: int) -> "AttentionInputs":
        """The first rows, as views."""
        layout, key_lengths = self.host_rows
        first = layout.first_rows(rows)
        return AttentionInputs(
            self.q[: first.num_tokens],
            self.keys[:rows],
            self.values[:rows],
            first,
            key_lengths.first_rows(rows),
            self.softmax_scale,
        )
