"""What the published parts say: counts from their footers, and a full check of their content."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from toprovar_batch.worker.errors import OutputFolderError, RunFailedError
from toprovar_batch.worker.part_file import read_stats
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.storage import storage_errors
from toprovar_batch.worker.words import counted

from .folder import SAMPLES_FILE, OutputFolder

_READERS = 16  # footers read at once: object stores answer slowly, but many at a time
# A file server's clients may see a new file late; after this long, in seconds, it is missing.
_LISTING_LAG_S = 60.0
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
T = TypeVar("T")


@dataclass(frozen=True)
class Findings(Generic[T]):
    """What reading many parts came to, each by shard id.

    Attributes:
        good: what was read.
        damaged: why the part's content is wrong; no later reading will find it better.
        unreachable: why the storage did not give the part now: a time-out, a permission. The part may be whole.
    """

    good: dict[int, T] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    unreachable: dict[int, str] = field(default_factory=dict)


class UnreachableError(Exception):
    """The storage did not give what was asked of it; says nothing about the content."""


def read_footers(folder: OutputFolder, shard_ids: Iterable[int], num_shards: int) -> Findings[ShardStats]:
    """Read the stats of published parts, without their images.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        The stats of those that can be read, and what is wrong with the others.
    """

    def read(shard_id: int) -> ShardStats:
        with open_parquet(folder, folder.part(shard_id, num_shards)) as part:
            stats = ShardStats.from_json(read_stats(part.metadata))
            if stats.rows != part.metadata.num_rows:
                raise ValueError(
                    f"{counted(part.metadata.num_rows, 'row')} where its footer counts {stats.rows}"
                )
            return stats

    return _read_all(read, shard_ids)


def missing_parts(folder: OutputFolder, shard_ids: Collection[int], num_shards: int) -> dict[int, str]:
    """Find shards that were published and whose part is nowhere to be seen.

    A worker may have written where only itself can see it: another mount, a local folder of the same name.

    Args:
        folder: the output.
        shard_ids: whose parts must be there.
        num_shards: of the job.

    Returns:
        Shard id -> a sentence.

    Raises:
        RunFailedError: the output cannot be listed.
    """
    patience = time.monotonic() + _LISTING_LAG_S
    try:
        while missing := set(shard_ids) - set(folder.finished(num_shards)):
            if time.monotonic() >= patience:
                break
            time.sleep(1)
    except storage_errors() as error:
        raise RunFailedError(f"{folder.url}: the finished parts cannot be listed: {error}") from error
    return dict.fromkeys(sorted(missing), "its worker published a part that is not in the output folder")


def verify_parts(folder: OutputFolder, shard_ids: Iterable[int], num_shards: int) -> Findings[None]:
    """Read parts from end to end and compare their samples with the plan.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        Which parts read back to the last byte and hold every sample once.

    Raises:
        OutputFolderError: the plan cannot be read, so that nothing can be said about any part.
    """
    plan = _planned_ids(folder, num_shards)

    def verify(shard_id: int) -> None:
        planned = plan[shard_id].to_pylist()
        found = list(_sample_ids(folder.part(shard_id, num_shards), folder))
        if sorted(found) != sorted(planned):
            raise ValueError(
                f"its {counted(len(found), 'row is', 'rows are')} not the {counted(len(planned), 'sample')} of its shard"
            )

    return _read_all(verify, shard_ids)


def _planned_ids(folder: OutputFolder, num_shards: int) -> list[pa.ChunkedArray]:
    """Read the sample ids of every shard from the frozen plan, at once: its footer grows with the shards."""
    try:
        with open_parquet(folder, folder.inside(*SAMPLES_FILE)) as plan:
            ids = plan.read(columns=["sample_id"])["sample_id"]
            sizes = [plan.metadata.row_group(group).num_rows for group in range(plan.num_row_groups)]
    except (UnreachableError, *_DAMAGE) as error:
        raise OutputFolderError(
            f"{folder.url}: the plan {'/'.join(SAMPLES_FILE)} cannot be read ({_first_words(error)}), so the parts "
            "cannot be compared with it; where it is missing, submit the job again to have it written"
        ) from error
    if len(sizes) != num_shards:
        raise OutputFolderError(
            f"{folder.url}: the plan {'/'.join(SAMPLES_FILE)} has {counted(len(sizes), 'shard')} and the job {num_shards}; "
            "delete it and submit the job again to have it written"
        )
    ends = accumulate(sizes)
    return [ids.slice(end - size, size) for end, size in zip(ends, sizes, strict=True)]


def _sample_ids(path: str, folder: OutputFolder) -> Iterator[str]:
    """Read a part, checksums included, a row group at a time; give its sample ids."""
    with open_parquet(folder, path) as part:
        for group in range(part.num_row_groups):
            yield from part.read_row_group(group)["sample_id"].to_pylist()


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
def open_parquet(folder: OutputFolder, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of an output folder, checksums on.

    Raises:
        UnreachableError: the storage failed, here or inside the block.
    """
    watched = None
    try:
        with folder.filesystem.open(path, "rb") as file:
            watched = _WatchedFile(file)
            with pq.ParquetFile(watched, page_checksum_verification=True) as part:
                yield part
    except Exception as error:  # every file system raises errors of its own kind
        if watched is None or watched.trouble is not None:
            raise UnreachableError(_first_words(error)) from error
        raise


def _read_all(read: Callable[[int], T], shard_ids: Iterable[int]) -> Findings[T]:
    """Call `read` for many shards at once; what is wrong with a part becomes a sentence."""
    findings: Findings[T] = Findings()

    def attempt(shard_id: int) -> None:
        try:
            findings.good[shard_id] = read(shard_id)
        except UnreachableError as error:
            findings.unreachable[shard_id] = str(error)
        except _DAMAGE as error:
            findings.damaged[shard_id] = _first_words(error)

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(attempt, shard_ids))
    return findings


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
