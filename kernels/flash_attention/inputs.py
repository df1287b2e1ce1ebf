"""The arguments of attention, as the kernels, their plain twin, their checks and their benchmarks share them."""

from typing import NamedTuple

from torch import Tensor

from toprovar_batch.kernels.layout import KeyLengths, TokenLayout


class AttentionInputs(NamedTuple):
    """Packed queries over each row's own keys.

    Attributes:
        q: [T, H, D] packed by `layout`.
        keys: [R, H, N, D]; row r's keys are the first `key_lengths.lengths[r]`.
        values: [R, H, N, D] likewise.
        layout: rows of the queries.
        key_lengths: keys seen by each row; N is the largest of them.
        softmax_scale: positive factor on the scores.
    """

    q: Tensor
    keys: Tensor
    values: Tensor
    layout: TokenLayout
    key_lengths: KeyLengths
    softmax_scale: float

    @property
    def is_uniform(self) -> bool:
        """Whether all rows hold equally many queries and see equally many keys."""
        return self.layout.uniform_length is not None and len(set(self.key_lengths.lengths)) == 1

    def row(self, row: int) -> "AttentionInputs":
        """One row alone."""
        device, seen = self.q.device, self.key_lengths.lengths[row]
        return AttentionInputs(
            self.q[self.layout.row_slices[row]],
            self.keys[row : row + 1, :, :seen],
            self.values[row : row + 1, :, :seen],
            TokenLayout((self.layout.row_lengths[row],), device),
            KeyLengths((seen,), device),
            self.softmax_scale,
        )

    def first_rows(self, rows: int) -> "AttentionInputs":
        """The first rows, as views."""
        layout = self.layout.first_rows(rows)
        return AttentionInputs(
            self.q[: layout.num_tokens],
            self.keys[:rows],
            self.values[:rows],
            layout,
            self.key_lengths.first_rows(rows),
            self.softmax_scale,
        )
