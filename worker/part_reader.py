"""Reading published files back: checksums on, and with the fault told from broken content or from the storage."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .part_file import read_stats
from .shard_stats import ShardStats

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
"""What reading broken content raises, where it is no `UnreachableError`."""
T = TypeVar("T")


class UnreachableError(Exception):
    """The storage did not give what was asked of it; says nothing about the content."""


class DamagedPartError(Exception):
    """A part whose content is wrong; no later reading will find it better."""


class _WatchedFile:
    """What pyarrow needs of a file; remembers when the storage below it failed.

    pyarrow raises OSError for broken content and for broken storage alike.
    """

    closed = False

    def __init__(self, file: Any) -> None:
        self._file = file
        self.trouble: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        return self._watch(self._file.read, size)

    def seek(self, *where: int) -> int:
        return self._watch(self._file.seek, *where)

    def tell(self) -> int:
        return self._watch(self._file.tell)

    def close(self) -> None:
        self.closed = True

    def _watch(self, call: Callable[..., T], *arguments: int) -> T:
        try:
            return call(*arguments)
        except ValueError:  # an impossible place: broken content sends pyarrow there
            raise
        except Exception as error:
            self.trouble = error
            raise


@contextmanager
def open_parquet(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, checksums on.

    Args:
        filesystem: holds the file.
        path: within `filesystem`.

    Raises:
        UnreachableError: the storage failed, here or inside the block.
    """
    watched = None
    try:
        with filesystem.open(path, "rb") as file:
            watched = _WatchedFile(file)
            with pq.ParquetFile(watched, page_checksum_verification=True) as part:
                yield part
    except Exception as error:  # every file system raises errors of its own kind
        if watched is None or watched.trouble is not None:
            raise UnreachableError(first_words(error)) from error
        raise


def kept_rows(
    address: str, schema: pa.Schema, sample_ids: Collection[str], stats: ShardStats
) -> Iterator[pa.Table]:
    """Read the good rows of a shard's earlier part, a row group at a time.

    What is written again gets new checksums, so the old ones must hold before.

    Args:
        address: of the part.
        schema: of the dataset.
        sample_ids: of the shard.
        stats: gets what the kept rows were computed with.

    Raises:
        DamagedPartError: the part does not read back as it was written, or holds rows that are not the shard's.
        UnreachableError: the storage failed.
    """
    filesystem, path = fsspec.core.url_to_fs(address)
    known, found = set(sample_ids), Counter[str]()
    try:
        with open_parquet(filesystem, path) as part:
            stats.add_computations(ShardStats.from_json(read_stats(part.metadata)).computed_with)
            for group in range(part.num_row_groups):
                rows = part.read_row_group(group).select(schema.names).cast(schema)
                found.update(rows["sample_id"].to_pylist())
                strangers = [name for name, count in found.items() if count > 1 or name not in known]
                if strangers:
                    raise ValueError(f"sample {strangers[0]} is there twice, or not of its shard")
                yield rows.filter(pc.equal(rows["status"], "ok"))
    except DAMAGE as error:
        raise DamagedPartError(f"{path}: {first_words(error)}") from error


def first_words(error: Exception) -> str:
    """The beginning of an exception's text, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
