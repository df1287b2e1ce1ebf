"""CSV files without surprises, some rows at a time: as many as a disk holds."""

import codecs
import csv
import io
import sys
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from toprovar_batch.worker.errors import PromptSourceError

from .files import PromptFile
from .table_spool import TableSpool

_BLOCK_BYTES = 8 << 20


def spooled_csv(file: PromptFile, text_columns: Sequence[str], limit: int | None) -> TableSpool | None:
    """Read a CSV file as `read_csv` does, through a temporary file.

    Args:
        file: that can be read again, and is not compressed.
        text_columns: columns that are texts; the types of the others come from the first block.
        limit: most rows.

    Returns:
        Its rows. None where only a look at the whole file gives its types or says what is wrong with it.

    Raises:
        PromptSourceError: the file cannot be read, or the system's temporary folder cannot take the rows.
    """
    if not _is_sound(file):
        return None
    with file.open() as raw:
        if raw.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            raw.seek(0)
        try:
            reader = pa_csv.open_csv(
                raw,
                pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                pa_csv.ParseOptions(newlines_in_values=True),
                pa_csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
            )
            spool = TableSpool(reader.schema)
            for batch in reader:
                if any(map(_holds_wide, batch.columns)):
                    return None
                rows = batch if limit is None else batch.slice(0, limit - spool.num_rows)
                spool.append(pa.Table.from_batches([rows]))
        except (pa.ArrowException, OSError):
            return None
    return spool


def _holds_wide(column: pa.Array) -> bool:
    """Whether a number may be a whole one beyond 64 bits, which Arrow reads as a float."""
    return (
        pa.types.is_floating(column.type)
        and pc.any(pc.greater_equal(pc.abs(column), float(2**63))).as_py() is True
    )


def _is_sound(file: PromptFile) -> bool:
    """Whether a file is UTF-8 text with something in it, and its quotation marks are closed where Arrow's reader expects it."""
    has_quotes = has_text = False
    try:
        for lines in file.line_blocks():
            has_quotes = has_quotes or any('"' in line for line in lines)
            has_text = has_text or any(map(str.strip, lines))
    except PromptSourceError:
        return False
    if not has_text or not has_quotes:
        return has_text
    try:
        with io.TextIOWrapper(file.open(), "utf-8-sig", newline="") as text:
            return unclosed_quote(text) is None
    except UnicodeDecodeError:
        return False


def unclosed_quote(text: Iterable[str]) -> int | None:
    """Find a quotation mark that Arrow's reader would take for the begin of a field that swallows the rows after it.

    Args:
        text: lines of CSV with their ends as they are; a field may be of any length.

    Returns:
        The line where the row with the quote begins, from 1; None where all are closed at the end of their field.
    """
    reader = csv.reader(text, strict=True)
    line = 1
    before = csv.field_size_limit(sys.maxsize)
    try:
        for _ in reader:
            line = reader.line_num + 1
    except csv.Error:
        return line
    finally:
        csv.field_size_limit(before)
    return None
