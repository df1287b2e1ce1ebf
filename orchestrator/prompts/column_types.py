"""Arrow types of columns that are passed through: what Arrow, pandas and the readers of a dataset make of them."""

from collections.abc import Callable

import pyarrow as pa

_NANOSECOND_TYPES = (pa.types.is_timestamp, pa.types.is_time64, pa.types.is_duration)


def without_views(kind: pa.DataType) -> pa.DataType:
    """A type with plain texts and bytes in place of views, which Arrow stores but cannot take rows from."""

    def plain(leaf: pa.DataType) -> pa.DataType:
        if pa.types.is_string_view(leaf):
            return pa.string()
        return pa.binary() if pa.types.is_binary_view(leaf) else leaf

    return _with_leaves(kind, plain)


def nanoseconds_as_integers(kind: pa.DataType) -> pa.DataType:
    """A type with integers in place of nanoseconds, for which Arrow knows no Python value without pandas."""
    return _with_leaves(kind, lambda leaf: pa.int64() if _is_in_nanoseconds(leaf) else leaf)


def nanoseconds_as_microseconds(kind: pa.DataType) -> pa.DataType:
    """A type with the finest times that are Python values without pandas."""

    def coarse(leaf: pa.DataType) -> pa.DataType:
        if not _is_in_nanoseconds(leaf):
            return leaf
        if pa.types.is_timestamp(leaf):
            return pa.timestamp("us", leaf.tz)
        return pa.duration("us") if pa.types.is_duration(leaf) else pa.time64("us")

    return _with_leaves(kind, coarse)


def _is_in_nanoseconds(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _NANOSECOND_TYPES) and kind.unit == "ns"


def holds_map(kind: pa.DataType) -> bool:
    """Whether a type is a map, or has one in it."""
    return pa.types.is_map(kind) or any(holds_map(kind.field(index).type) for index in range(kind.num_fields))


def _with_leaves(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with its simple types changed, within lists and structs, too."""
    if pa.types.is_dictionary(kind):
        changed = change(kind.value_type)
        return kind if changed == kind.value_type else changed
    inner = [
        field.with_type(_with_leaves(field.type, change))
        for field in (kind.field(index) for index in range(kind.num_fields))
    ]
    if pa.types.is_struct(kind):
        return pa.struct(inner)
    if pa.types.is_list(kind):
        return pa.list_(*inner)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(*inner, kind.list_size)
    return pa.large_list(*inner) if pa.types.is_large_list(kind) else change(kind)
