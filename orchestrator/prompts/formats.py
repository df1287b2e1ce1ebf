"""The prompt formats: each reader takes one file and gives its rows."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from toprovar_batch.worker.errors import PromptSourceError
from toprovar_batch.worker.words import counted

from .csv_blocks import unclosed_quote
from .files import FORMATS, LINE_END, PromptFile, describe_json, first_line

Row = dict[str, Any]
Column: TypeAlias = list[Any] | pa.ChunkedArray
WIDE_INTEGER = pa.decimal128(38, 0)
_ROWS_AT_ONCE = 1 << 16  # of a Parquet file
_JSON_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)


class SourceRows:
    """The rows of all files of a prompt source: Arrow columns, or JSON objects with values of any kind.

    Args:
        table: rows of a typed format, or
        rows: rows of a JSON format.
    """

    def __init__(self, *, table: pa.Table | None = None, rows: list[Row] | None = None) -> None:
        self._table = table
        self._rows = rows or []
        names = dict.fromkeys(chain.from_iterable(self._rows)) if table is None else table.column_names
        self.names: list[str] = list(names)
        self.num_rows: int = len(self._rows) if table is None else table.num_rows

    def column(self, name: str) -> Column:
        """One column; a key that an object lacks is None."""
        if self._table is not None:
            return self._table.column(name)
        return [row.get(name) for row in self._rows]


def format_of(file: PromptFile, wanted: str) -> str:
    """The format of a file: the wanted one, or by its extension where that is `auto`.

    Raises:
        PromptSourceError: the extension says nothing.
    """
    if wanted != "auto":
        return wanted
    if file.suffix not in FORMATS:
        ending = f"the extension {file.suffix!r}" if file.suffix else "a name without extension"
        raise PromptSourceError(
            f"{file.label}: {ending} does not tell the format; set prompts.format to one of parquet, jsonl, "
            "csv, txt, mjhq"
        )
    return FORMATS[file.suffix]


def read_rows(file: PromptFile, kind: str, limit: int | None) -> list[Row]:
    """Read a JSONL or MJHQ file; see `read_jsonl` and `read_mjhq`."""
    return read_jsonl(file, limit) if kind == "jsonl" else read_mjhq(file, limit)


@contextmanager
def _open_parquet(file: PromptFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever is wrong with it, in the block too, is told in one sentence."""
    # Parquet is read from its end, which a compressed file or a pipe cannot do.
    whole = file.compression or file.is_stream
    with pa.BufferReader(file.read()) if whole else file.open() as handle:
        try:
            # No thread of Arrow's may hold the file when Python ends, see `worker/part_reader.py`.
            yield pq.ParquetFile(handle, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            problem = f"is not a readable Parquet file: {first_line(error)}"
            raise PromptSourceError(f"{file.label} {problem}") from error


def parquet_shape(file: PromptFile) -> tuple[pa.Schema, int]:
    """Columns and number of rows of a Parquet file, from its footer.

    Raises:
        PromptSourceError: it is no Parquet file, or is cut short.
    """
    with _open_parquet(file) as parquet:
        return _without_metadata(parquet.schema_arrow), parquet.metadata.num_rows


def read_parquet(file: PromptFile, limit: int | None) -> Iterator[pa.Table]:
    """Read a Parquet file, some rows at a time and no further than `limit`.

    Yields:
        Its rows; one table without rows where it is empty.

    Raises:
        PromptSourceError: it is no Parquet file, is cut short, or holds invalid text.
    """
    with _open_parquet(file) as parquet:
        schema = _without_metadata(parquet.schema_arrow)
        rest = parquet.metadata.num_rows if limit is None else min(limit, parquet.metadata.num_rows)
        if rest == 0:
            yield schema.empty_table()
        pieces = iter(parquet.iter_batches(_ROWS_AT_ONCE, use_threads=False))
        while rest:
            batch = next(pieces).slice(0, rest)
            batch.validate(full=True)
            rest -= batch.num_rows
            yield pa.Table.from_arrays(batch.columns, schema=schema)


def _without_metadata(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.remove_metadata() for field in schema])


def read_csv(file: PromptFile, text_columns: list[str], limit: int | None) -> pa.Table:
    """Read a CSV file with a header; the types of columns not in `text_columns` are inferred.

    Returns:
        Its rows; no columns either where it is empty.

    Raises:
        PromptSourceError: a quotation mark is never closed or closed within a field; or a row has
            more or fewer fields than the header; names the line or row.
    """
    text = file.text()
    if not text.strip():
        return pa.table({})
    _check_quotes(text, file.label)
    raw = text.encode()
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        table = pa_csv.read_csv(
            pa.BufferReader(raw),
            # One block: types are inferred from all rows, and the row handler learns row numbers.
            pa_csv.ReadOptions(use_threads=False, block_size=min(len(raw) + 1, 2**31 - 1)),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pa.string())),
        )
    except pa.ArrowException as error:
        raise PromptSourceError(f"{file.label} is not a readable CSV file: {first_line(error)}") from error
    if ragged:
        row = ragged[0]
        where = f"row {row.number - 1}" if row.number is not None else "a row"
        raise PromptSourceError(
            f"{file.label}: {where} has {counted(row.actual_columns, 'field')} and the header {row.expected_columns}; "
            'text with a comma needs "quotes"'
        )
    return _with_wide_integers(table, raw).slice(0, limit)


def _with_wide_integers(table: pa.Table, raw: bytes) -> pa.Table:
    """A CSV file's table where whole numbers beyond 64 bits, which Arrow reads as floats, are kept.

    They become decimals of 38 digits, or texts where one is longer.
    """
    wide = [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type)
        and pc.any(pc.greater_equal(pc.abs(table[field.name]), float(2**63))).as_py()
    ]
    if not wide:
        return table
    texts = pa_csv.read_csv(
        pa.BufferReader(raw),
        pa_csv.ReadOptions(use_threads=False, block_size=min(len(raw) + 1, 2**31 - 1)),
        pa_csv.ParseOptions(newlines_in_values=True),
        pa_csv.ConvertOptions(
            include_columns=wide, column_types=dict.fromkeys(wide, pa.string()), strings_can_be_null=True
        ),
    )
    for name in wide:
        column = texts[name]
        if not _all_match(column, r"^\s*[+-]?[0-9]+\s*$"):
            continue
        if _all_match(column, r"^\s*[+-]?0*[0-9]{1,38}\s*$"):
            column = pc.utf8_trim_whitespace(column).cast(WIDE_INTEGER)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())


def _check_quotes(text: str, label: str) -> None:
    """Refuse quotes that Arrow's reader would take for the begin of a field that swallows the rows after it.

    Raises:
        PromptSourceError: names the line where the row with the quote begins.
    """
    if '"' not in text:
        return
    line = unclosed_quote(io.StringIO(text, newline=""))
    if line is not None:
        raise PromptSourceError(
            f"{label}, line {line}: a quotation mark is not closed at the end of its field; "
            'write a quote inside "quoted text" twice'
        )


def read_jsonl(file: PromptFile, limit: int | None) -> list[Row]:
    """Read JSON objects, one per line; blank lines are skipped.

    Raises:
        PromptSourceError: a line is no JSON object, or has a key twice; names the line.
    """
    return [row for rows in jsonl_blocks(file, limit) for row in rows]


def jsonl_blocks(file: PromptFile, limit: int | None) -> Iterator[list[Row]]:
    """Read JSON objects as `read_jsonl`, many at a time and no further than `limit`; none of the lists is empty."""
    number, rest = 0, limit
    for lines in file.line_blocks():
        rows: list[Row] = []
        for line in lines:
            if rest is not None and len(rows) == rest:
                break
            number += 1
            if not line.strip():
                continue
            row = _parse_json(line, file.label, number)
            if not isinstance(row, dict):
                raise PromptSourceError(
                    f"{file.label}, line {number}: expected a JSON object with a prompt, got {describe_json(row)}"
                )
            rows.append(row)
        if rows:
            yield rows
        rest = None if rest is None else rest - len(rows)
        if rest == 0:
            return


def read_txt(file: PromptFile, prompt_column: str, limit: int | None) -> Iterator[pa.Table]:
    """Read prompts, one per line; blank lines are skipped and spaces around a prompt dropped.

    Yields:
        Its rows, some at a time and no further than `limit`; no table where it is empty.

    Raises:
        PromptSourceError: it is no UTF-8 text as far as it is read; names the line.
    """
    rest = limit
    for lines in file.line_blocks():
        prompts = [prompt for line in lines if (prompt := line.strip())][:rest]
        if prompts:
            yield pa.table({prompt_column: pa.array(prompts, pa.string())})
        rest = None if rest is None else rest - len(prompts)
        if rest == 0:
            return


def read_mjhq(file: PromptFile, limit: int | None) -> list[Row]:
    """Read the `meta_data.json` of MJHQ-30K: `{id: {"category": ..., "prompt": ...}}`; the id becomes a column.

    Raises:
        PromptSourceError: it has another form, or an id or another key is there twice; names the line.
    """
    text = file.text()
    if not text.strip():
        return []
    entries = _parse_json(text, file.label)
    if not isinstance(entries, dict):
        raise PromptSourceError(
            f"{file.label}: expected the form of MJHQ-30K, one object {{id: {{category, prompt}}}}, "
            f"got {describe_json(entries)}; other prompts can come as JSONL"
        )
    rows: list[Row] = []
    for key, entry in islice(entries.items(), limit):
        if not isinstance(entry, dict):
            raise PromptSourceError(
                f"{file.label}: expected an object with a prompt under {key!r}, got {describe_json(entry)}"
            )
        rows.append({**entry, "id": key})
    return rows


class _RepeatedKeyError(Exception):
    """An object has a key twice."""


def _parse_json(text: str, label: str, line: int | None = None) -> Any:
    """Parse one JSON value; `label` names its file in errors, and `line` where in it the value begins, if not at 1."""
    where = label if line is None else f"{label}, line {line}"
    try:
        if text.startswith("\ufeff"):
            return json.loads(text)  # which says what is wrong
        return _DECODER.decode(text)
    except _RepeatedKeyError as error:
        key, lines_before = _first_repeated_key(text)
        raise PromptSourceError(
            f"{label}, line {(line or 1) + lines_before}: the key {key!r} is there twice in one object"
        ) from error
    except json.JSONDecodeError as error:
        spot = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise PromptSourceError(f"{where}: broken JSON at {spot}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise PromptSourceError(f"{where}: broken JSON: {first_line(error)}") from error


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> Row:
    """An object as a dict; for json.loads, which would keep the last of two equal keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _RepeatedKeyError
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_repeats)  # json.loads would make one for each line


def _first_repeated_key(text: str) -> tuple[str, int]:
    """The first key that its object has already, and the number of lines before it; there must be one."""
    keys: list[set[str]] = []
    string = ""
    for token in _JSON_TOKENS.finditer(text):
        if token[0] in "{[":
            keys.append(set())
        elif token[0] in "}]":
            keys.pop()
        elif token[0] != ":":
            string, start = token[0], token.start()
        else:
            key = json.loads(string)
            if key in keys[-1]:
                return key, len(LINE_END.findall(text, 0, start))
            keys[-1].add(key)
    raise AssertionError
