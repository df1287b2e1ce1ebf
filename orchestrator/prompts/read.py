"""Prompts from a source into one table, with bad rows marked instead of refused."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toprovar_batch.orchestrator.job.spec import AUTO_ID, PromptSpec
from toprovar_batch.worker.errors import PromptSourceError
from toprovar_batch.worker.part_file import RESULT_COLUMNS
from toprovar_batch.worker.words import nearest

from .cells import (
    Cells,
    as_column,
    h_div_w_cells,
    seed_cells,
    text_cells,
    without_surrogates,
)
from .column_types import holds_map
from .csv_blocks import spooled_csv
from .files import PromptFile, find_files, first_line
from .formats import Row, SourceRows, format_of, parquet_shape, read_csv, read_parquet, read_rows, read_txt
from .ids import GivenIds
from .json_lines import plain_rows
from .table_spool import TableSpool

RESERVED_COLUMNS = (*RESULT_COLUMNS, "prompt_error", "prompt_id", "image_index")
_ROLE_KEYS = {
    "sample_id": "id_column",
    "negative_prompt": "negative_prompt_column",
    "h_div_w": "h_div_w_column",
    "seed": "seed_column",
}
_AUTO_IDS = ("sample_id", "id")


class Origins:
    """Which file and row each row of the whole came from; grows while files are read."""

    def __init__(self) -> None:
        self._spans: list[tuple[PromptFile, int]] = []

    def add(self, file: PromptFile, count: int) -> None:
        """Note that the next `count` rows are of `file`."""
        if self._spans and self._spans[-1][0] is file:
            count += self._spans.pop()[1]
        self._spans.append((file, count))

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return sum(count for _, count in self._spans)

    def describe(self, index: int) -> str:
        """Name a row, counted from 1 in its file; header and blank lines do not count."""
        for file, count in self._spans:
            if index < count:
                return f"{file.label}, row {index + 1}"
            index -= count
        raise IndexError(index)


def read_prompts(spec: PromptSpec) -> TableSpool:
    """Read all prompts of a source; those of Parquet, TXT and plain JSONL files some at a time.

    Args:
        spec: where they are and which column means what.

    Returns:
        One row per prompt: `prompt` (string, null where it was none) and `prompt_error` (string, null where the
        row is good). Then, of the columns that the spec names or that `id_column: auto` found: `sample_id`
        (string), `negative_prompt` (string), `h_div_w` (float64), `seed` (int64). Then the columns passed
        through, in their own types.

    Raises:
        PromptSourceError: the source is missing, unreadable, empty or not what its extension says. Or it lacks a
            column, or has missing or repeated ids, a column that the dataset needs for itself, or no good row.
    """
    origins = Origins()
    spool: TableSpool | None = None
    ids: GivenIds | None = None
    first_error, num_bad = "", 0
    for rows in _read_source(spec, origins):
        if rows.num_rows == 0:
            continue
        if spool is None:
            id_column = _id_column(spec, rows)
            _check_columns(spec, rows, id_column)
            ids = None if id_column is None else GivenIds(id_column, origins.describe)
        cells = _role_cells(spec, rows)
        errors = pc.coalesce(*(checked.errors for checked in cells.values()))
        first_error = first_error or errors[0].as_py() or ""
        num_bad += rows.num_rows - errors.null_count
        columns = {"prompt": cells.pop("prompt").values, "prompt_error": errors}
        if ids is not None and id_column is not None:
            columns["sample_id"] = ids.cells(rows.column(id_column))
        columns |= {name: checked.values for name, checked in cells.items()}
        for name in _passed_columns(spec, rows, id_column):
            columns[name] = as_column(rows.column(name), _label(spec, name))
            if spool is None:
                _check_storable(columns[name], _label(spec, name))
        table = pa.table(columns)
        spool = spool or TableSpool(table.schema)
        spool.append(table)
    if spool is None:
        raise PromptSourceError(f"{spec.source}: there are no prompts in it")
    if num_bad == spool.num_rows:
        none = f"none of its {num_bad:,} prompts can" if num_bad > 1 else "its prompt cannot"
        raise PromptSourceError(f"{spec.source}: {none} be used; {origins.describe(0)}: {first_error}")
    if ids is not None:
        ids.refuse_repeats(table["sample_id"] for table in spool.tables())
    return spool


def _role_cells(spec: PromptSpec, rows: SourceRows) -> dict[str, Cells]:
    """Check the columns that mean something, the prompt's first."""
    prompts = rows.column(spec.prompt_column)
    cells = {"prompt": text_cells(prompts, _label(spec, spec.prompt_column), "prompt", required=True)}
    if (column := spec.negative_prompt_column) is not None:
        cells["negative_prompt"] = text_cells(rows.column(column), _label(spec, column), "negative prompt")
    if spec.h_div_w_column is not None:
        cells["h_div_w"] = h_div_w_cells(rows.column(spec.h_div_w_column))
    if spec.seed_column is not None:
        cells["seed"] = seed_cells(rows.column(spec.seed_column))
    return cells


def _label(spec: PromptSpec, column: str) -> str:
    """A column in errors."""
    return f"{spec.source}: the column {column!r}"


def _read_source(spec: PromptSpec, origins: Origins) -> Iterator[SourceRows]:
    """Read the files of a source until `limit` is reached: all but MJHQ some rows at a time where they can be."""
    files = find_files(spec.source)
    kinds = {format_of(file, spec.format): file for file in files}
    if len(kinds) > 1:
        raise PromptSourceError(
            f"{spec.source}: holds files of several formats ({', '.join(kinds)}); name one kind with a glob"
        )
    [kind] = kinds
    text_columns = [
        spec.prompt_column,
        *_AUTO_IDS,
        *filter(None, [spec.id_column, spec.negative_prompt_column]),
    ]
    pieces = _in_pieces(spec, files, kind, text_columns, origins)
    if pieces is not None:
        yield from pieces
        return
    tables: list[pa.Table] = []
    rows: list[Row] = []
    for file in files:
        rest = None if spec.limit is None else spec.limit - origins.num_rows
        if rest == 0:
            break
        if kind == "csv":
            tables.append(read_csv(file, text_columns, rest))
            origins.add(file, tables[-1].num_rows)
        else:
            before = len(rows)
            rows += read_rows(file, kind, rest)
            origins.add(file, len(rows) - before)
    yield SourceRows(table=_concat(tables, spec.source)) if tables else SourceRows(rows=rows)


def _in_pieces(
    spec: PromptSpec, files: Sequence[PromptFile], kind: str, text_columns: Sequence[str], origins: Origins
) -> Iterator[SourceRows] | None:
    """Read files some rows at a time; None where they must be read as a whole."""
    if kind == "parquet":
        return _read_parquet_files(spec, files, origins)
    if kind == "txt":
        return _read_texts(spec, files, origins)
    # What a stream gives cannot be read again where its columns are not plain.
    if any(file.is_stream for file in files):
        return None
    if kind == "jsonl":
        plain = plain_rows(files, text_columns, spec.limit)
        return None if plain is None else _of_files(plain, origins)
    spools = _spool_csv(spec, files, text_columns) if kind == "csv" else None
    return None if spools is None else _in_common(spools, spec, origins)


def _of_files(pieces: Iterable[tuple[PromptFile, pa.Table]], origins: Origins) -> Iterator[SourceRows]:
    for file, table in pieces:
        origins.add(file, table.num_rows)
        yield SourceRows(table=table)


def _read_texts(spec: PromptSpec, files: Sequence[PromptFile], origins: Origins) -> Iterator[SourceRows]:
    """Read text files some rows at a time."""
    for file in files:
        rest = None if spec.limit is None else spec.limit - origins.num_rows
        if rest == 0:
            break
        yield from _of_files(((file, table) for table in read_txt(file, spec.prompt_column, rest)), origins)


def _spool_csv(
    spec: PromptSpec, files: Sequence[PromptFile], text_columns: Sequence[str]
) -> list[tuple[PromptFile, TableSpool]] | None:
    """Read CSV files through temporary files; None where one must be read as a whole."""
    spools: list[tuple[PromptFile, TableSpool]] = []
    num_rows = 0
    for file in files:
        if num_rows == spec.limit:
            break
        rest = None if spec.limit is None else spec.limit - num_rows
        spool = None if file.compression else spooled_csv(file, text_columns, rest)
        if spool is None:
            return None
        num_rows += spool.num_rows
        spools.append((file, spool))
    return spools


def _in_common(
    spools: Sequence[tuple[PromptFile, TableSpool]], spec: PromptSpec, origins: Origins
) -> Iterator[SourceRows]:
    """Give the rows of files with the columns of all of them."""
    wanted = _concat([spool.schema.empty_table() for _, spool in spools], spec.source)
    pieces = ((file, table) for file, spool in spools for table in spool.tables())
    yield from _of_files(((file, _concat([wanted, table], spec.source)) for file, table in pieces), origins)


def _read_parquet_files(
    spec: PromptSpec, files: Sequence[PromptFile], origins: Origins
) -> Iterator[SourceRows]:
    """Read Parquet files some rows at a time, all with the columns of all."""
    schemas: list[pa.Table] = []
    num_rows = 0
    for file in files if len(files) > 1 else ():
        if num_rows == spec.limit:
            break
        schema, count = parquet_shape(file)
        schemas.append(schema.empty_table())
        num_rows = num_rows + count if spec.limit is None else min(num_rows + count, spec.limit)
    wanted = _concat(schemas, spec.source) if schemas else None
    for file in files[: len(schemas)] if wanted is not None else files:
        rest = None if spec.limit is None else spec.limit - origins.num_rows
        for table in read_parquet(file, rest):
            origins.add(file, table.num_rows)
            yield SourceRows(table=_concat([table] if wanted is None else [wanted, table], spec.source))


def _concat(tables: list[pa.Table], source: str) -> pa.Table:
    """One table of all files; a column that a file lacks is null there."""
    for table in tables:
        repeated = [name for name, count in Counter(table.column_names).items() if count > 1]
        if repeated:
            raise PromptSourceError(f"{source}: the column {repeated[0]!r} is there twice")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise PromptSourceError(f"{source}: its files do not fit together: {first_line(error)}") from error


def _id_column(spec: PromptSpec, rows: SourceRows) -> str | None:
    """The column of the ids, found where the spec leaves it open; None: ids come from the content."""
    if spec.id_column != AUTO_ID:
        return spec.id_column
    return next((name for name in _AUTO_IDS if name in rows.names), None)


def _check_columns(spec: PromptSpec, rows: SourceRows, id_column: str | None) -> None:
    """Refuse a column that is asked for and not there."""
    wanted = {
        "prompt_column": spec.prompt_column,
        "id_column": id_column,
        "negative_prompt_column": spec.negative_prompt_column,
        "h_div_w_column": spec.h_div_w_column,
        "seed_column": spec.seed_column,
    }
    named = [(key, name) for key, name in wanted.items() if name is not None]
    for key, name in [*named, *(("columns", name) for name in spec.columns or ())]:
        if name in rows.names:
            continue
        near = nearest(name, rows.names)
        hint = f"; did you mean {near!r}?" if near else ""
        names = ", ".join(known if known.isprintable() else repr(known) for known in rows.names)
        raise PromptSourceError(
            f"{spec.source}: there is no column {name!r} (prompts.{key}), only {names}{hint}"
        )


def _passed_columns(spec: PromptSpec, rows: SourceRows, id_column: str | None) -> list[str]:
    """Columns to pass through: those asked for, or all that have no other role."""
    roles = {
        spec.prompt_column,
        id_column,
        spec.negative_prompt_column,
        spec.h_div_w_column,
        spec.seed_column,
    }
    others = [name for name in rows.names if name not in roles]
    passed = others if spec.columns is None else list(dict.fromkeys(spec.columns))
    first: dict[str, str] = {}
    for name in passed:
        if without_surrogates(name) != name:
            raise PromptSourceError(
                f"{spec.source}: the column name {name!r} holds half a character (a lone surrogate); rename it"
            )
        # SQL engines do not tell STATUS from status, and would read the one for the other.
        twin = first.setdefault(name.lower(), name)
        if twin != name:
            raise PromptSourceError(
                f"{spec.source}: the columns {twin!r} and {name!r} differ in upper and lower case only; rename "
                "one of them, or leave it out with prompts.columns"
            )
        if name.lower() in RESERVED_COLUMNS:
            rest = ", ".join(other for other in passed if other.lower() not in RESERVED_COLUMNS)
            role = _ROLE_KEYS.get(name.lower())
            use = f"use it with prompts.{role}: {name}, " if role else ""
            raise PromptSourceError(
                f"{spec.source}: the column {name!r} has the name of a column that the dataset gets itself; "
                f"{use}rename it, or leave it out with prompts.columns: [{rest}]"
            )
    return passed


def _check_storable(column: pa.ChunkedArray, label: str) -> None:
    """Refuse a type that Arrow cannot select rows of, Parquet not hold or datasets not read, before a worker meets it."""
    try:
        rows = pa.table({"column": column.slice(0, 1)}).take([0]).filter(pa.array([True]))
        pq.write_table(rows.slice(0, 0), io.BytesIO())
    except (pa.ArrowException, NotImplementedError) as error:
        raise PromptSourceError(
            f"{label} cannot be stored in Parquet ({first_line(error)}); leave it out with prompts.columns"
        ) from error
    if holds_map(column.type):
        raise PromptSourceError(
            f"{label} holds {column.type}, which datasets.load_dataset cannot read; leave it out with prompts.columns"
        )
