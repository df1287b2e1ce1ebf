"""The good rows of a shard's earlier part, when its error rows are generated again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from .part_file import PartWriter
from .part_identity import PartOwner, check_part
from .part_reader import DAMAGE, UnreachableError, first_words, open_parquet
from .shard_stats import ShardStats
from .storage import locate
from .worker_errors import writing

if TYPE_CHECKING:
    from .shard_events import ShardTask

_IDENTIFYING = ("sample_id", "seed")  # with the job, they decide a row


class DamagedPartError(Exception):
    """A part whose content is wrong; no later reading will find it better. Its text is the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def kept_rows(
    address: str, owner: PartOwner, shard_id: int, samples: pa.Table, stats: ShardStats
) -> Iterator[pa.Table]:
    """Read the good rows of a shard's earlier part, a row group at a time.

    What is written again gets new checksums and the name of the job. So the old checksums must hold before, and the
    rows must be the plan's: a part of an earlier version does not name its job.

    Args:
        address: of the part.
        owner: of the output; it has the schema of the dataset.
        shard_id: whose part it is.
        samples: the shard's rows of the plan.
        stats: gets what the kept rows were computed with.

    Raises:
        DamagedPartError: the part does not read back as it was written, or is not the shard's.
        UnreachableError: the storage failed; names the part.
    """
    filesystem, path = locate(address)
    schema = owner.schema
    planned = {row["sample_id"]: row for row in samples.select(_IDENTIFYING).to_pylist()}
    try:
        with open_parquet(filesystem, path) as part:
            stats.add_computations(check_part(part, owner, shard_id).computed_with)
            for group in range(part.num_row_groups):
                rows = part.read_row_group(group)
                for row in rows.select(_IDENTIFYING).to_pylist():
                    if planned.pop(row["sample_id"], None) != row:
                        raise ValueError(f"sample {row['sample_id']} is there twice, or is not the shard's")
                rows = rows if schema is None else rows.select(schema.names).cast(schema)
                yield rows.filter(pc.equal(rows["status"], "ok"))
    except UnreachableError as error:
        raise UnreachableError(f"{path} cannot be read now: {error}") from error
    except DAMAGE as error:
        raise DamagedPartError(path, first_words(error)) from error


def keep_rows(task: "ShardTask", part: PartWriter, stats: ShardStats) -> list[str]:
    """Write the good rows of the earlier part of a task's shard, if any are kept; give their ids.

    Raises:
        DamagedPartError, UnreachableError: see `kept_rows`.
        OutputRefusedError: the new part cannot be written.
    """
    written: list[str] = []
    if task.kept is not None:
        owner = PartOwner(task.job, task.schema)
        for rows in kept_rows(task.kept, owner, task.shard_id, task.samples, stats):
            with writing():
                part.write(rows)
            stats.add_rows(rows)
            written += rows["sample_id"].to_pylist()
    return written
