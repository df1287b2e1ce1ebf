"""JSONL files with plain columns, some rows at a time: as many as a disk holds."""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from .files import PromptFile
from .formats import Row, jsonl_blocks
from .table_spool import TableSpool

_PLAIN = (pa.null(), pa.string(), pa.bool_(), pa.int64(), pa.float64())


class _Span(NamedTuple):
    """Rows of one file that have the same columns."""

    file: PromptFile
    rows: TableSpool


def plain_rows(
    files: Sequence[PromptFile], texts: Collection[str], limit: int | None
) -> Iterator[tuple[PromptFile, pa.Table]] | None:
    """Read JSONL files whose columns have one plain type each, through a temporary file.

    Args:
        files: that can be read again.
        texts: columns that must be texts.
        limit: most rows, of all files.

    Returns:
        Tables of the same columns, some rows each, with their files. None where a column needs a look at all its values:
        a list or an object, numbers among texts, whole numbers among others or beyond 64 bits, half characters.

    Raises:
        PromptSourceError: as `read_jsonl`; or the system's temporary folder cannot take the rows.
    """
    spans: list[_Span] = []
    kinds: dict[str, pa.DataType] = {}
    rest = limit
    for file in files:
        for rows in jsonl_blocks(file, rest):
            rest = None if rest is None else rest - len(rows)
            table = _plain_table(rows, texts, kinds)
            if table is None:
                return None
            if not spans or spans[-1].file is not file or spans[-1].rows.schema != table.schema:
                spans.append(_Span(file, TableSpool(table.schema)))
            spans[-1].rows.append(table)
    return ((span.file, _widened(table, kinds)) for span in spans for table in span.rows.tables())


def _plain_table(rows: list[Row], texts: Collection[str], kinds: dict[str, pa.DataType]) -> pa.Table | None:
    """Rows as a table with the columns that are known so far, whose types are noted in `kinds`; None: not plain."""
    columns = {}
    for name in dict.fromkeys(chain(kinds, chain.from_iterable(rows))):
        try:
            name.encode()
            column = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            return None
        kind = kinds.get(name, pa.null())
        if column.type == pa.null():
            column = pa.nulls(len(rows), kind)
        plain = (pa.null(), pa.string()) if name in texts else _PLAIN
        if column.type not in plain or kind not in (pa.null(), column.type):
            return None
        kinds[name] = column.type
        columns[name] = column
    return pa.table(columns) if columns else None


def _widened(table: pa.Table, kinds: dict[str, pa.DataType]) -> pa.Table:
    """A table with all columns; those that came later are null."""
    columns = [
        table[name].cast(kind) if name in table.column_names else pa.nulls(table.num_rows, kind)
        for name, kind in kinds.items()
    ]
    return pa.table(columns, names=list(kinds))
