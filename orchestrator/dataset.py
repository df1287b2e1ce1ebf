"""What the published parts say: counts from their footers, and a full check of their content."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from toprovar_batch.orchestrator.manifest import JOB_FOLDER, OutputFolder
from toprovar_batch.worker.part_file import read_stats
from toprovar_batch.worker.shard_stats import ShardStats

_READERS = 16  # footers read at once: object stores answer slowly, but many at a time
T = TypeVar("T")


def read_footers(
    folder: OutputFolder, shard_ids: Iterable[int], num_shards: int
) -> tuple[dict[int, ShardStats], dict[int, str]]:
    """Read the stats of published parts, without their images.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        Stats by shard id, and why a part cannot be read by shard id.
    """

    def read(shard_id: int) -> ShardStats:
        with (
            folder.filesystem.open(folder.part(shard_id, num_shards), "rb") as file,
            pq.ParquetFile(file) as part,
        ):
            stats = ShardStats.from_json(read_stats(part.metadata))
            if stats.rows != part.metadata.num_rows:
                raise ValueError(f"{part.metadata.num_rows} rows where its footer counts {stats.rows}")
            return stats

    return _read_all(read, shard_ids)


def verify_parts(folder: OutputFolder, shard_ids: Iterable[int], num_shards: int) -> dict[int, str]:
    """Read parts from end to end and compare their samples with the plan.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        What is wrong, by shard id; empty when every byte reads back and every sample is there once.
    """

    def verify(shard_id: int) -> None:
        with (
            folder.filesystem.open(folder.inside(JOB_FOLDER, "samples.parquet"), "rb") as file,
            pq.ParquetFile(file) as plan,
        ):
            planned = plan.read_row_group(shard_id, columns=["sample_id"])["sample_id"].to_pylist()
        found = list(_sample_ids(folder.part(shard_id, num_shards), folder))
        if sorted(found) != sorted(planned):
            raise ValueError(f"its {len(found)} rows are not the {len(planned)} samples of its shard")

    return _read_all(verify, shard_ids)[1]


def _sample_ids(path: str, folder: OutputFolder) -> Iterator[str]:
    """Read a part, checksums included, a row group at a time; give its sample ids."""
    with (
        folder.filesystem.open(path, "rb") as file,
        pq.ParquetFile(file, page_checksum_verification=True) as part,
    ):
        for group in range(part.num_row_groups):
            yield from part.read_row_group(group)["sample_id"].to_pylist()


def _read_all(read: Callable[[int], T], shard_ids: Iterable[int]) -> tuple[dict[int, T], dict[int, str]]:
    """Call `read` for many shards at once; a damaged part becomes a sentence."""
    good: dict[int, T] = {}
    damaged: dict[int, str] = {}

    def attempt(shard_id: int) -> None:
        try:
            good[shard_id] = read(shard_id)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            damaged[shard_id] = " ".join(str(error).split())[:200] or type(error).__name__

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(attempt, shard_ids))
    return good, damaged
