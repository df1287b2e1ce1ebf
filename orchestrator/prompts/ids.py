"""Ids of prompts: taken from a column, or derived from the content."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from toprovar_batch.worker.errors import PromptSourceError

from .cells import python_values, without_surrogates
from .formats import Column

_CONTENT_COLUMNS = ("prompt", "negative_prompt", "h_div_w", "seed")
_MEND = "prompts.id_column: null derives ids from the prompts"


def id_cells(values: Column, name: str, describe_row: Callable[[int], str]) -> pa.ChunkedArray:
    """Check a column of ids: every row has one, and no two rows have the same.

    Args:
        values: texts or whole numbers.
        name: of the column.
        describe_row: names a row, for errors.

    Returns:
        The ids as strings.

    Raises:
        PromptSourceError: an id is missing, neither text nor a whole number, or there twice; names the rows.
    """
    cells = python_values(values)
    rows: dict[str, int] = {}
    for index, value in enumerate(cells):
        try:
            text = _id_text(value)
        except (TypeError, ValueError) as error:
            raise PromptSourceError(
                f"{describe_row(index)}: the id in the column {name!r} is {error}; {_MEND}"
            ) from error
        first = rows.setdefault(text, index)
        if first != index:
            raise PromptSourceError(
                f"{describe_row(index)}: the id {text!r} in the column {name!r} is already that of "
                f"{describe_row(first)}; {_MEND}"
            )
    return pa.chunked_array([pa.array(list(rows), pa.string())])


def derived_ids(table: pa.Table) -> tuple[pa.ChunkedArray, dict[str, list[int]]]:
    """Ids from the content of each row alone, so that a row keeps its id wherever it moves.

    Args:
        table: from `read_prompts`. An id is the SHA-256 of the row's prompt and, where it has them, its own
            negative prompt, h_div_w and seed. It is cut to 16 hexadecimal digits. Rows with the same content
            are numbered `-2`, `-3` in their order.

    Returns:
        The ids, and for every content that is there more than once its rows.
    """
    columns = [table.column(name).to_pylist() for name in _CONTENT_COLUMNS if name in table.column_names]
    names = [name for name in _CONTENT_COLUMNS if name in table.column_names]
    digests = [_digest(names, cells) for cells in zip(*columns, strict=True)]
    counts = Counter(digests)
    if len(counts) == len(digests):
        return pa.chunked_array([pa.array(digests, pa.string())]), {}
    seen: dict[str, list[int]] = {digest: [] for digest, count in counts.items() if count > 1}
    for index, digest in enumerate(digests):
        if digest in seen:
            seen[digest].append(index)
            if len(seen[digest]) > 1:
                digests[index] = f"{digest}-{len(seen[digest])}"
    return pa.chunked_array([pa.array(digests, pa.string())]), seen


def _digest(names: list[str], cells: tuple[Any, ...]) -> str:
    """Hash of the cells that hold something; lengths keep neighbours apart."""
    parts = (
        f"{name}:{len(str(cell))}:{cell}\n"
        for name, cell in zip(names, cells, strict=True)
        if cell is not None
    )
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


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
