"""Whose a part is: the job that it was made for, the shard, and the columns, as its footer says."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .part_file import CHECKSUM, SCHEMA_VERSION, read_stats, record_checksum
from .part_reader import UnreachableError
from .shard_stats import ShardStats
from .storage import locate


@dataclass(frozen=True, slots=True)
class PartOwner:
    """What all parts of one output have in common.

    Attributes:
        job: hash of the job's identity, from `identity_hash`; empty where it is not known.
        schema: of the dataset; None where it is not known.
    """

    job: str = ""
    schema: pa.Schema | None = None


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Hash a job's identity as its record in `_job/job.json` has it: 32 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recorded_job(address: str) -> str | None:
    """Hash the identity that is in a job's record now; None where there is no record.

    Args:
        address: of the record `_job/job.json`: a local path or an fsspec URL.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    filesystem, path = locate(address)
    try:
        return identity_hash(json.loads(filesystem.cat_file(path))["identity"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError("holds no job's identity") from error


def check_part(part: pq.ParquetFile, owner: PartOwner, shard_id: int | None) -> ShardStats:
    """Compare a part with the output that it lies in, without reading a row.

    Parts of earlier versions say neither job nor schema version. Then only what they say is compared.

    Args:
        part: open.
        owner: of the output.
        shard_id: whose part it is by its name; None where that does not matter.

    Returns:
        What the footer says of the shard.

    Raises:
        ValueError: it is the part of another job or shard, or its columns are others; says which.
        UnreachableError: a later version of this program made it.
    """
    record = read_stats(part.metadata)
    if record.get("schema_version", 0) > SCHEMA_VERSION:
        raise UnreachableError(
            f"a later version of this program made it (schema version {record['schema_version']}, here {SCHEMA_VERSION})"
        )
    if CHECKSUM in record and record[CHECKSUM] != record_checksum(record):
        raise ValueError("what its footer says does not match the checksum there")
    stats = ShardStats.from_json(record)
    if owner.job and stats.job and stats.job != owner.job:
        raise ValueError("it belongs to another job than this output")
    if shard_id is not None and record.get("shard_id", shard_id) != shard_id:
        raise ValueError(f"it is the part of shard {record['shard_id']}")
    if owner.schema is not None and record.get("schema_version") == SCHEMA_VERSION:
        _check_schema(part.schema_arrow, stored_schema(owner.schema))
    if "rows" in record and stats.rows != part.metadata.num_rows:
        raise ValueError(f"{part.metadata.num_rows} rows where its footer counts {stats.rows}")
    return stats


@lru_cache(maxsize=4)  # the parts of a dataset share one
def stored_schema(schema: pa.Schema) -> pa.Schema:
    """A schema as it comes back from Parquet, which knows no seconds, for example."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    return pq.read_schema(pa.BufferReader(buffer.getvalue()))


def _check_schema(found: pa.Schema, wanted: pa.Schema) -> None:
    if found.equals(wanted):
        return
    names = [
        name
        for name in dict.fromkeys([*wanted.names, *found.names])
        if _type(found, name) != _type(wanted, name)
    ]
    raise ValueError(f"its columns are not the dataset's: {', '.join(names[:3]) or 'another order'}")


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None
