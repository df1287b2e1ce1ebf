"""The good rows of a shard's earlier part, when its error rows are generated again."""

from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from .part_identity import PartOwner, check_part
from .part_reader import DAMAGE, first_words, open_parquet
from .shard_stats import ShardStats

_IDENTIFYING = ("sample_id", "seed")  # with the job, they decide a row


class DamagedPartError(Exception):
    """A part whose content is wrong; no later reading will find it better."""


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
        UnreachableError: the storage failed.
    """
    filesystem, path = fsspec.core.url_to_fs(address)
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
    except DAMAGE as error:
        raise DamagedPartError(f"{path}: {first_words(error)}") from error
