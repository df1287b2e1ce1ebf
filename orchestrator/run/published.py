"""What the output itself says of a run: the driver believes the storage, whatever a worker said last."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from toprovar_batch.orchestrator.output.folder import OutputFolder
from toprovar_batch.orchestrator.output.parts import read_footers
from toprovar_batch.worker.part_identity import recorded_job
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.storage import storage_errors


class Published(Protocol):
    """What a run asks of its output; `PublishedParts` answers."""

    def find(self, shard_ids: Collection[int]) -> Mapping[int, ShardStats]:
        """Look which of some shards have a whole part that was published in this run."""

    def is_ours(self) -> bool:
        """Whether the output still belongs to the job."""


@dataclass(frozen=True)
class PublishedParts:
    """The parts of a job's output, and whose output it is.

    Attributes:
        folder: the output.
        num_shards: of the job.
        schema: of the dataset.
        earlier: stats of the parts that were there before the run.
    """

    folder: OutputFolder
    num_shards: int
    schema: pa.Schema
    earlier: Mapping[int, ShardStats] = field(default_factory=dict)

    def find(self, shard_ids: Collection[int]) -> dict[int, ShardStats]:
        """Look which of some shards have a whole part that was published in this run.

        A worker may die, or be taken for dead, when its part is on the way or has just arrived.
        """
        self.folder.filesystem.invalidate_cache()
        found = read_footers(self.folder, shard_ids, self.num_shards, self.schema).good
        return {shard_id: stats for shard_id, stats in found.items() if stats != self.earlier.get(shard_id)}

    def is_ours(self) -> bool:
        """Whether the output still belongs to the job, as far as the driver sees; yes where it cannot look."""
        try:
            return recorded_job(self.folder.job_url) == self.folder.job
        except storage_errors(ValueError):
            return True
