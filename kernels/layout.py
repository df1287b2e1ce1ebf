"""Which query belongs to which row of a ragged batch, and how many keys each row sees."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from .host_values import to_device


@dataclass(frozen=True)
class TokenLayout:
    """Queries of R rows packed into one [T, ...] tensor, row after row.

    Attributes:
        row_lengths: queries of each row, known on the host.
        token_indices: [T] int64, each packed query's place in its scale's row-major token map; None where
            every row holds the whole map in order (the dense case).
        device: where the derived tensors live.
        known_row_ids: [T] int64, the row of each packed query, where the maker has it already.
    """

    row_lengths: tuple[int, ...]
    device: torch.device
    token_indices: Tensor | None = None
    known_row_ids: Tensor | None = None
    _blocks: "dict[tuple[tuple[int, ...], int], Tensor]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _shifts: "dict[tuple[int, ...], Tensor]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _slots: "dict[tuple[int, ...], Tensor]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def dense(cls, num_rows: int, length: int, device: torch.device) -> "TokenLayout":
        """Every one of `num_rows` rows holds all `length` tokens of the scale."""
        return cls((length,) * num_rows, device)

    @classmethod
    def ragged(cls, keep_indices: Sequence[Tensor], device: torch.device) -> "TokenLayout":
        """Row r holds the tokens `keep_indices[r]` ([n_r] int64, any n_r >= 0) of the scale."""
        lengths = tuple(len(indices) for indices in keep_indices)
        return cls(lengths, device, torch.cat(list(keep_indices)).to(device))

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_lengths)

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.row_lengths)

    @property
    def uniform_length(self) -> int | None:
        """Queries a row where all rows hold equally many, else None."""
        return self.row_lengths[0] if len(set(self.row_lengths)) == 1 else None

    @cached_property
    def row_slices(self) -> tuple[slice, ...]:
        """Row r is packed[row_slices[r]]."""
        return tuple(slice(*ends) for ends in pairwise((0, *accumulate(self.row_lengths))))

    @cached_property
    def row_ids(self) -> Tensor:
        """[T] int64: the row of each packed query."""
        if self.known_row_ids is not None:
            return self.known_row_ids
        lengths = to_device(self.row_lengths, self.device)
        return torch.repeat_interleave(
            torch.arange(self.num_rows, device=self.device), lengths, output_size=self.num_tokens
        )

    def per_token(self, per_row: Tensor) -> Tensor:
        """Spread [R, C] over the tokens in a shape that broadcasts against `by_row(packed)`."""
        return per_row.unsqueeze(1) if self.uniform_length is not None else per_row[self.row_ids]

    def by_row(self, packed: Tensor) -> Tensor:
        """View [T, ...] as [R, L, ...] where the rows are equally long; ragged tensors stay packed."""
        return packed.unflatten(0, (self.num_rows, -1)) if self.uniform_length is not None else packed

    def slot_shifts(self, starts: tuple[int, ...]) -> Tensor:
        """What to add to a packed token's number to get its slot in a cache; made once for equal `starts`.

        Args:
            starts: the slot of each row's first token.

        Returns:
            [R] int64.
        """
        if starts not in self._shifts:
            shifts = (start - part.start for start, part in zip(starts, self.row_slices, strict=True))
            self._shifts[starts] = to_device(tuple(shifts), self.device)
        return self._shifts[starts]

    def slots(self, starts: tuple[int, ...]) -> Tensor:
        """[T] int64: each packed token's slot in a cache; made once for equal `starts`, see `slot_shifts`."""
        if starts not in self._slots:
            tokens = torch.arange(self.num_tokens, device=self.device)
            self._slots[starts] = tokens + self.slot_shifts(starts)[self.row_ids]
        return self._slots[starts]

    def check_slots(self, starts: tuple[int, ...], slots: int) -> None:
        """Refuse rows that a cache of `slots` has no room for from `starts` on.

        Raises:
            ValueError: naming the row.
        """
        if len(starts) != self.num_rows:
            raise ValueError(f"{len(starts)} starts do not fit {self.num_rows} rows")
        for row, (start, new) in enumerate(zip(starts, self.row_lengths, strict=True)):
            if start < 0 or start + new > slots:
                raise ValueError(f"row {row}: {new} tokens from slot {start} on do not fit {slots} slots")

    def of_rows(self, packed: Tensor, rows: Sequence[int]) -> Tensor:
        """The packed tokens of some rows, in the order given; a view where they are the first rows."""
        if list(rows) == list(range(len(rows))):
            return packed[: sum(self.row_lengths[: len(rows)])]
        return torch.cat([packed[self.row_slices[row]] for row in rows])

    def first_rows(self, rows: int) -> "TokenLayout":
        """The first `rows` rows, without their places in the token map."""
        return TokenLayout(self.row_lengths[:rows], self.device)

    def blocks(self, key_lengths: "KeyLengths", block_m: int) -> Tensor:
        """`block_table` on the device, made once for equal lengths of keys."""
        key = (key_lengths.lengths, block_m)
        if key not in self._blocks:
            table = torch.tensor(block_table(self.row_lengths, key_lengths.lengths, block_m))
            if self.device.type == "cuda":  # from pinned memory the copy does not stop the host
                table = table.pin_memory().to(self.device, non_blocking=True)
            self._blocks[key] = table
        return self._blocks[key]


@dataclass(frozen=True, eq=False)
class DeviceLayout:
    """Packed queries whose rows are known on the device alone, so that work queued once serves any rows.

    Its tensors are filled before that work runs, with rows that fit.

    Attributes:
        num_tokens: T, padding included.
        num_rows: R.
        row_ids: [T] int64, the row of each query; -1 is padding, for which kernels read and write nothing.
        token_indices: [T] int64, each query's place in its scale's token map; 0 for padding.
        shifts: [R] int64, see `TokenLayout.slot_shifts`.
    """

    num_tokens: int
    num_rows: int
    row_ids: Tensor
    token_indices: Tensor
    shifts: Tensor

    @property
    def uniform_length(self) -> None:
        """Nobody knows whether the rows are equally long."""

    def slot_shifts(self, starts: tuple[int, ...]) -> Tensor:  # noqa: ARG002 - the device has them
        """[R] int64, whatever the starts."""
        return self.shifts

    def check_slots(self, starts: tuple[int, ...], slots: int) -> None:
        """Nothing to check: who fills the tensors has done so."""

    def of_rows(self, packed: Tensor, rows: Sequence[int]) -> Tensor:  # noqa: ARG002 - see below
        """All packed tokens: only who filled the tensors can tell the rows apart."""
        return packed


PackedRows = TokenLayout | DeviceLayout


@dataclass(frozen=True)
class KeyLengths:
    """How many keys each row sees; rows of a padded [R, H, N, D] tensor hold theirs at the front."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.lengths)

    def first_rows(self, rows: int) -> "KeyLengths":
        """The first `rows` rows."""
        return KeyLengths(self.lengths[:rows], self.device)

    @cached_property
    def mask(self) -> Tensor | None:
        """[R, 1, 1, N] boolean, True where a key is seen; None where all rows see all N keys."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        lengths = to_device(self.lengths, self.device)
        return (torch.arange(longest, device=self.device) < lengths[:, None])[:, None, None, :]


@dataclass(frozen=True, eq=False)
class DeviceBlocks:
    """How many keys each block of queries sees, on the device alone: stands in for the lengths of keys.

    Attributes:
        table: [4, B] int32 as of `block_table`. A block without queries is padding; it has one key.
        block_m: queries of a block.
        num_rows: R, of the keys.
    """

    table: Tensor
    block_m: int
    num_rows: int


@functools.lru_cache(maxsize=1024)
def block_table(row_lengths: tuple[int, ...], key_lengths: tuple[int, ...], block_m: int) -> np.ndarray:
    """The blocks of queries of a ragged batch, those with most keys first, so that the last to run are short.

    The same array every time, so it cannot be changed.

    Returns:
        [4, B] int32: row, first packed query, queries left of the row, keys.
    """
    queries, keys = np.asarray(row_lengths), np.asarray(key_lengths)
    order = np.argsort(-keys, kind="stable")
    counts = -(-queries[order] // block_m)
    row = np.repeat(order, counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = (np.cumsum(queries) - queries)[row] + within * block_m
    table = np.stack((row, first, queries[row] - within * block_m, keys[row]))
    table = np.ascontiguousarray(table, dtype=np.int32)
    table.flags.writeable = False  # it is kept for the next who asks
    return table
