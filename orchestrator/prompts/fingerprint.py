"""The fingerprint of a plan: a hash of its content that no version, chunk or piece of it changes."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .column_types import nanoseconds_as_integers
from .table_spool import TableSpool


def fingerprint(spool: TableSpool) -> str:
    """SHA-256 over all rows, their order and their columns, the same for every pyarrow version."""
    digest = hashlib.sha256()
    for field in spool.schema:
        digest.update(f"{field.name}:{field.type}:{spool.num_rows}\n".encode())
        _hash_column(digest, spool, field)
    return digest.hexdigest()


def _hash_column(digest: "hashlib._Hash", spool: TableSpool, field: pa.Field) -> None:
    """Feed a column's nulls and values; slow only for types that are rare in prompt files."""
    kind = field.type

    def pieces() -> Iterator[pa.ChunkedArray]:
        return (rows[field.name] for rows in spool.tables())

    nulls = [piece.is_null().to_numpy() for piece in pieces()]
    digest.update(np.packbits(np.concatenate([np.zeros(0, bool), *nulls])).tobytes())
    if pa.types.is_string(kind):
        for piece in pieces():
            digest.update(pc.binary_length(piece.drop_null()).to_numpy().tobytes())
        for piece in pieces():
            for chunk in piece.drop_null().chunks:
                digest.update(_text_bytes(chunk))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        for piece in pieces():
            digest.update(piece.drop_null().to_numpy().tobytes())
    else:
        digest.update(b"[")
        begun = False
        for piece in pieces():
            for value in piece.drop_null().cast(nanoseconds_as_integers(kind)).to_pylist():
                digest.update(f"{', ' if begun else ''}{value!r}".encode())
                begun = True
        digest.update(b"]")


def _text_bytes(texts: pa.StringArray) -> memoryview:
    """The bytes of all texts of an array without nulls, one behind the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return memoryview(data)[ends[0] : ends[1]]
