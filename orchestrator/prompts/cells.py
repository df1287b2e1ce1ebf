"""Checking the cells of a prompt source: whole columns in, values and what is wrong with each out."""

import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.worker.errors import PromptSourceError

from .column_types import nanoseconds_as_microseconds, without_views
from .files import describe_json, first_line
from .formats import WIDE_INTEGER, Column

_MIN_H_DIV_W, _MAX_H_DIV_W = 1 / 3 - 1e-3, 3 + 1e-3
_MAX_SEED = 2**63
_NO_TEXT = pa.scalar(None, pa.string())
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


class Cells(NamedTuple):
    """A checked column.

    Attributes:
        values: one per row, null where there is none or it is bad.
        errors: one per row: why the cell is bad, or null.
    """

    values: pa.ChunkedArray
    errors: pa.ChunkedArray


def text_cells(values: Column, label: str, what: str, *, required: bool = False) -> Cells:
    """Check a column of texts; a blank one is null, or an error that keeps its text where `required`.

    Args:
        values: the column.
        label: names source and column in errors.
        what: a cell is called in errors.
        required: whether a cell must hold something.

    Returns:
        Strings and errors.

    Raises:
        PromptSourceError: the column has a type that is no text at all.
    """
    texts, errors = _texts(values, label, what)
    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    if not required:
        return Cells(pc.if_else(pc.fill_null(blank, False), _NO_TEXT, texts), errors)
    empty = pc.if_else(blank, f"the {what} is empty", _NO_TEXT)
    return Cells(
        texts, pc.coalesce(errors, empty, pc.if_else(pc.is_null(texts), f"the {what} is missing", _NO_TEXT))
    )


def h_div_w_cells(values: Column) -> Cells:
    """Check a column of requested heights over widths; null stays null.

    Returns:
        float64 values in the model's range, and errors.
    """
    return _number_cells(values, _parse_h_div_w, "a height over width from 1/3 to 3", pa.float64())


def seed_cells(values: Column) -> Cells:
    """Check a column of seeds; null stays null.

    Returns:
        int64 values from 0, and errors.
    """
    return _number_cells(values, _parse_seed, "a seed (a whole number from 0, below 2**63)", pa.int64())


def as_column(values: Column, label: str) -> pa.ChunkedArray:
    """A column that is passed through, as Arrow, in a type that Arrow can also select rows of.

    Lone surrogates, which UTF-8 cannot hold, become U+FFFD. Whole numbers beyond 64 bits make a column of
    decimal128(38, 0).

    Raises:
        PromptSourceError: its values are of kinds that no single type holds, or a number is beyond 38 digits.
    """
    if isinstance(values, pa.ChunkedArray):
        kind = without_views(values.type)
        return values if kind == values.type else values.cast(kind)
    try:
        return _chunked(pa.array(values))
    except UnicodeEncodeError:
        return as_column([without_surrogates(value) for value in values], label)
    except OverflowError as error:
        return _wide_integers(values, label, error)
    except pa.ArrowException as error:
        raise PromptSourceError(
            f"{label} holds values of different kinds ({first_line(error)}); leave it out with "
            "prompts.columns"
        ) from error


def _wide_integers(values: list[Any], label: str, error: OverflowError) -> pa.ChunkedArray:
    """A column in which an integer is beyond 64 bits."""
    try:
        numbers = [None if value is None else _whole(value) for value in values]
        return _chunked(pa.array(numbers, WIDE_INTEGER))
    except (pa.ArrowException, TypeError):
        raise PromptSourceError(
            f"{label} holds a whole number of more than 64 bits, which no type of Parquet holds beside its other "
            "values; write it as text, or leave it out with prompts.columns"
        ) from error


def _whole(value: Any) -> Decimal:
    if type(value) is not int:
        raise TypeError
    return Decimal(value)


def python_values(column: Column) -> list[Any]:
    """The cells of a column; of times in nanoseconds only the microseconds, the rest would need pandas."""
    if isinstance(column, list):
        return column
    cells: list[Any] = column.cast(nanoseconds_as_microseconds(column.type), safe=False).to_pylist()
    return cells


def python_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, with values as of `python_values`."""
    columns = [python_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _texts(values: Column, label: str, what: str) -> Cells:
    """The texts of a column and why a cell is none."""
    no_errors = _chunked(pa.nulls(len(values), pa.string()))
    if isinstance(values, pa.ChunkedArray):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if not any(is_text(kind) for is_text in _TEXT_TYPES):
            raise PromptSourceError(f"{label} holds {kind}, not text")
        return Cells(values.cast(pa.string()), no_errors)
    try:
        return Cells(_chunked(pa.array(values, pa.string())), no_errors)
    except (pa.ArrowException, UnicodeEncodeError):
        return _cells([_text(value, what) for value in values], pa.string())


def _text(value: Any, what: str) -> tuple[str | None, str | None]:
    """One JSON value as text, or why it is none."""
    if value is None:
        return None, None
    if not isinstance(value, str):
        return None, f"the {what} is {describe_json(value)}, not text"
    whole = without_surrogates(value)
    return whole, None if whole == value else f"the {what} holds half a character (a lone surrogate)"


def without_surrogates(value: Any) -> Any:
    """A JSON value with U+FFFD for each lone surrogate in it."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


def _number_cells(values: Column, parse: Callable[[Any], Any], what: str, kind: pa.DataType) -> Cells:
    """Parse each cell; `parse` raises TypeError, ValueError or OverflowError for a bad one."""
    cells: list[tuple[Any, str | None]] = []
    for value in python_values(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            cells.append((None, None))
            continue
        try:
            cells.append((parse(value), None))
        except (TypeError, ValueError, OverflowError):  # the last: a whole number beyond any float
            cells.append((None, f"{str(without_surrogates(value))[:60]!r} is not {what}"))
    return _cells(cells, kind)


def _parse_h_div_w(value: Any) -> float:
    ratio = float(_number(value))
    if not _MIN_H_DIV_W <= ratio <= _MAX_H_DIV_W:
        raise ValueError
    return ratio


def _parse_seed(value: Any) -> int:
    number = _number(value)
    seed = int(number)
    if seed != number or not 0 <= seed < _MAX_SEED:
        raise ValueError
    return seed


def _number(value: Any) -> int | float | Decimal:
    """A number that is one or is spelled out; a column with one bad cell comes as texts from a CSV file."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise TypeError
    try:
        number = Decimal(value) if isinstance(value, str) else value
    except InvalidOperation as error:
        raise ValueError from error
    if not math.isfinite(number):
        raise ValueError
    return number


def _cells(cells: list[tuple[Any, str | None]], kind: pa.DataType) -> Cells:
    values, errors = zip(*cells, strict=True)
    return Cells(_chunked(pa.array(values, kind)), _chunked(pa.array(errors, pa.string())))


def _chunked(array: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
