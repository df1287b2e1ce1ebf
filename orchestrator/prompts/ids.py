"""Ids of prompts: taken from a column, or derived from the content."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.worker.errors import PromptSourceError

from .cells import python_values, without_surrogates
from .formats import Column
from .table_spool import TableSpool

Array = np.ndarray[Any, Any]
_CONTENT_COLUMNS = ("prompt", "negative_prompt", "h_div_w", "seed")
_DIGEST_BYTES = 8  # of an id that is derived; 16 hexadecimal digits
_MEND = "prompts.id_column: null derives ids from the prompts"


class GivenIds:
    """The ids of a column: every row has one, and no two rows have the same.

    Args:
        name: of the column.
        describe_row: names a row, counted from 0 over all files, for errors.
    """

    def __init__(self, name: str, describe_row: Callable[[int], str]) -> None:
        self._name, self._describe_row = name, describe_row
        self._hashes: list[Array] = []  # 8 bytes an id; the ids themselves may not fit into memory
        self._num_rows = 0

    def cells(self, values: Column) -> pa.ChunkedArray:
        """The next ids, as strings.

        Args:
            values: texts or whole numbers.

        Raises:
            PromptSourceError: an id is missing, or neither text nor a whole number; names the row.
        """
        texts = []
        for value in python_values(values):
            try:
                texts.append(_id_text(value))
            except (TypeError, ValueError) as error:
                row = self._describe_row(self._num_rows + len(texts))
                raise PromptSourceError(
                    f"{row}: the id in the column {self._name!r} is {error}; {_MEND}"
                ) from error
        self._num_rows += len(texts)
        self._hashes.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
        return pa.chunked_array([pa.array(texts, pa.string())])

    def refuse_repeats(self, ids: Iterator[pa.ChunkedArray]) -> None:
        """Look for an id that is there twice.

        Args:
            ids: all of `cells` once more, read only where two hashes are equal.

        Raises:
            PromptSourceError: names both rows.
        """
        hashes = np.concatenate([np.zeros(0, np.int64), *self._hashes])
        ordered = np.sort(hashes)
        suspicious = ordered[1:][ordered[1:] == ordered[:-1]]
        if not suspicious.size:
            return
        rows: dict[str, int] = {}
        suspects = np.flatnonzero(np.isin(hashes, suspicious))
        start = 0
        for piece in ids:
            first, last = np.searchsorted(suspects, (start, start + len(piece)))
            for index in suspects[first:last].tolist():
                text = piece[index - start].as_py()
                earlier = rows.setdefault(text, index)
                if earlier != index:
                    raise PromptSourceError(
                        f"{self._describe_row(index)}: the id {text!r} in the column {self._name!r} is already that "
                        f"of {self._describe_row(earlier)}; {_MEND}"
                    )
            start += len(piece)


@dataclass(frozen=True)
class Repeat:
    """A content that is there more than once: how often, and its first rows."""

    count: int
    rows: list[int]


class DerivedIds:
    """Ids from the content of each row alone, so that a row keeps its id wherever it moves.

    An id is the SHA-256 of the row's prompt and, where it has them, its own negative prompt, h_div_w and seed. It is
    cut to 16 hexadecimal digits. Rows with the same content are numbered `-2`, `-3` in their order.

    Args:
        prompts: from `read_prompts`.
    """

    def __init__(self, prompts: TableSpool) -> None:
        names = [name for name in _CONTENT_COLUMNS if name in prompts.schema.names]
        self._digests: Array = np.concatenate([_digests(names, rows) for rows in prompts.tables()])
        self._order: Array | None = None
        ordered = np.sort(self._digests)
        if (ordered[1:] != ordered[:-1]).all():
            return
        # Rows by content, and within a content in their order.
        self._order = np.argsort(self._digests, kind="stable")
        ordered = self._digests[self._order]
        begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self._begins = np.flatnonzero(begins)
        self._counts = np.diff(self._begins, append=len(ordered))
        self._numbers = np.empty(len(ordered), np.int64)
        self._numbers[self._order] = np.arange(1, len(ordered) + 1) - np.repeat(self._begins, self._counts)

    def slice(self, start: int, count: int) -> pa.ChunkedArray:
        """The ids of `count` rows from `start` on."""
        digests = self._digests[start : start + count].astype(">u8").tobytes()
        width = 2 * _DIGEST_BYTES
        fixed = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width),
            len(digests) // _DIGEST_BYTES,
            [None, pa.py_buffer(digests.hex().encode())],
        )
        ids = fixed.cast(pa.binary()).cast(pa.string())
        if self._order is not None:
            numbers = pa.array(self._numbers[start : start + count])
            numbered = pc.binary_join_element_wise(ids, numbers.cast(pa.string()), "-")
            ids = pc.if_else(pc.greater(numbers, 1), numbered, ids)
        return pa.chunked_array([ids])

    def repeats(self, good: Array, shown: int) -> tuple[int, list[Repeat]]:
        """Contents that are there more than once.

        Args:
            good: a boolean for each row; a content counts if its first row is good.
            shown: contents and rows of each that are wanted.

        Returns:
            Their number, and the first of them.
        """
        if self._order is None:
            return 0, []
        groups = np.flatnonzero(self._counts > 1)
        firsts = self._order[self._begins[groups]]
        groups, firsts = groups[good[firsts]], firsts[good[firsts]]
        wanted = groups[np.argsort(firsts, kind="stable")[:shown]]
        found = []
        for group in wanted.tolist():
            begin, count = int(self._begins[group]), int(self._counts[group])
            found.append(Repeat(count, self._order[begin : begin + min(count, shown)].tolist()))
        return len(groups), found


def digests_of(texts: pa.ChunkedArray) -> Array:
    """The first 8 bytes of the SHA-256 of each text, as unsigned integers; there must be no null."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(text).digest() for text in texts.cast(pa.binary()).to_pylist()])
    return np.frombuffer(digests, ">u8").reshape(-1, 4)[:, 0]


def _digests(names: list[str], rows: pa.Table) -> Array:
    """Hashes of rows, each of the cells that hold something; lengths keep neighbours apart."""
    if names == ["prompt"]:  # the same, in half the time
        texts = rows["prompt"]
        lengths = pc.utf8_length(texts).cast(pa.string())
        content = pc.binary_join_element_wise("prompt:", lengths, ":", texts, "\n", "")
        return digests_of(pc.fill_null(content, ""))
    cells = zip(*(rows[name].to_pylist() for name in names), strict=True)
    return digests_of(pa.chunked_array([pa.array([_content(names, row) for row in cells], pa.string())]))


def _content(names: list[str], cells: tuple[Any, ...]) -> str:
    return "".join(
        f"{name}:{len(str(cell))}:{cell}\n"
        for name, cell in zip(names, cells, strict=True)
        if cell is not None
    )


def _id_text(value: Any) -> str:
    """An id as text.

    Raises:
        TypeError, ValueError: it cannot be one; the text says what it is.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("missing")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"neither text nor a whole number: {str(value)[:60]}")
    text = str(value)
    if without_surrogates(text) != text:
        raise ValueError("broken text: it holds half a character (a lone surrogate)")
    return text
