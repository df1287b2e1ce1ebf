"""Rows in order that need not fit into memory: a few stay there, many go to a temporary file."""

import mmap
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, NamedTuple

import pyarrow as pa

from toprovar_batch.worker.errors import PromptSourceError

MEMORY_BYTES = 64 << 20  # rows of this size stay in memory
MOST_ROWS = 1 << 16  # of a piece that goes to the file


class _Piece(NamedTuple):
    """Some rows in the file: where, and how many bytes and rows."""

    offset: int
    size: int
    num_rows: int


class TableSpool:
    """Rows of one schema, added at the end and read in order or by position.

    Beyond `MEMORY_BYTES` all rows go to a file without a name in the system's temporary folder, so nothing is left
    behind. A piece of it is mapped while it is used, and only the columns that are looked at are read.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_rows = 0
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._pieces: list[_Piece] = []
        self._last: tuple[int, pa.Table] | None = None  # a piece holds many shards

    @classmethod
    def of(cls, table: pa.Table) -> "TableSpool":
        """A spool that holds a table's rows."""
        spool = cls(table.schema)
        spool.append(table)
        return spool

    def append(self, table: pa.Table) -> None:
        """Add rows of the spool's schema.

        Raises:
            PromptSourceError: the system's temporary folder cannot take them.
        """
        for start in range(0, table.num_rows, MOST_ROWS):
            rows = table.slice(start, MOST_ROWS)
            self.num_rows += rows.num_rows
            self._tables.append(rows)
            self._bytes += rows.nbytes
        if self._file is not None or self._bytes > MEMORY_BYTES:
            try:
                self._spill()
            except OSError as error:
                raise PromptSourceError(
                    f"{tempfile.gettempdir()}: the samples of the job cannot be kept here ({error.strerror or error}); "
                    "name a folder with room in the environment variable TMPDIR"
                ) from error

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, some at a time."""
        if self._file is None:
            yield from self._tables
        else:
            yield from map(self._read, self._pieces)

    def pieces(self, size: int) -> Iterator[pa.Table]:
        """The rows in order, `size` at a time; the last may be fewer."""
        waiting: list[pa.Table] = []
        count = 0
        for table in self.tables():
            rows = table
            while count + rows.num_rows >= size:
                yield pa.concat_tables([*waiting, rows.slice(0, size - count)])
                rows = rows.slice(size - count)
                waiting, count = [], 0
            if rows.num_rows:
                waiting.append(rows)
                count += rows.num_rows
        if waiting:
            yield pa.concat_tables(waiting)

    def slice(self, start: int, count: int) -> pa.Table:
        """Up to `count` rows from `start` on."""
        found = []
        first = 0
        for index in range(len(self._pieces) if self._file else len(self._tables)):
            num_rows = self._pieces[index].num_rows if self._file else self._tables[index].num_rows
            if first < start + count and start < first + num_rows:
                rows = self._piece(index)
                skipped = max(0, start - first)
                found.append(rows.slice(skipped, start + count - first - skipped))
            first += num_rows
        return pa.concat_tables(found) if found else self.schema.empty_table()

    def whole(self) -> pa.Table:
        """All rows in memory."""
        tables = list(self.tables())
        return pa.concat_tables(tables) if tables else self.schema.empty_table()

    def _piece(self, index: int) -> pa.Table:
        if self._file is None:
            return self._tables[index]
        if self._last is None or self._last[0] != index:
            self._last = (index, self._read(self._pieces[index]))
        return self._last[1]

    def _spill(self) -> None:
        """Move what is in memory to the file; each piece is a stream of its own, with its dictionaries."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="toprovar-batch-")  # noqa: SIM115 - lives as long as the spool
            weakref.finalize(self, self._file.close)
        file = self._file
        for table in self._tables:
            offset = -(-file.seek(0, 2) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            file.seek(offset)
            with pa.ipc.new_stream(file, self.schema) as writer:
                writer.write_table(table)
            self._pieces.append(_Piece(offset, file.tell() - offset, table.num_rows))
        file.flush()
        self._tables, self._bytes = [], 0

    def _read(self, piece: _Piece) -> pa.Table:
        assert self._file is not None
        mapped = mmap.mmap(self._file.fileno(), piece.size, access=mmap.ACCESS_READ, offset=piece.offset)
        with pa.ipc.open_stream(pa.py_buffer(mapped)) as reader:
            return reader.read_all()
