"""What a job freezes into its folder, record and plan; and what tells whether they are whole, and whose the parts are."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.credentials import redact, redacted
from toprovar_batch.worker.file_aside import FileAside
from toprovar_batch.worker.part_file import publish_file, read_stats
from toprovar_batch.worker.part_identity import identity_hash
from toprovar_batch.worker.part_reader import DAMAGE, UnreachableError, open_parquet

if TYPE_CHECKING:
    from .folder import OutputFolder

_MOST_ROW_GROUPS, _FEW_ROW_GROUPS = 10_000, 1_000  # of the plan: a shard each; else many shards each
_VERSIONED = ("toprovar-batch", "torch", "ray", "pyarrow", "tokenizers", "transformers")
_ASKED_PARTS = 100  # others of another job are found when their footers are read


def job_record(job: JobSpec, plan: SamplePlan, identity: Mapping[str, Any]) -> str:
    """Write the text of `_job/job.json`."""
    record = {
        "name": redact(str(job.name)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_samples": plan.num_samples,
        "num_shards": plan.num_shards,
        "shard_size": plan.shard_size,
        "identity": identity,
        "job": redacted(job.model_dump(mode="json")),
        "versions": {name: version(name) for name in _VERSIONED},
    }
    return json.dumps(record, indent=2, ensure_ascii=False)


def freeze_samples(folder: "OutputFolder", plan: SamplePlan, path: str) -> None:
    """Write the plan, a row group a shard where there are not too many: a footer of 100,000 takes 187 MB.

    Args:
        folder: the output.
        plan: of its job.
        path: of the frozen plan, within the folder's file system.
    """
    shards = 1 if plan.num_shards <= _MOST_ROW_GROUPS else -(-plan.num_shards // _FEW_ROW_GROUPS)
    with FileAside(path.rpartition("/")[2], folder.scratch) as aside:
        with pq.ParquetWriter(aside, plan.schema, compression="zstd") as writer:
            for rows in plan.spool.pieces(shards * plan.shard_size):
                writer.write_table(rows)
        publish_file(aside, folder.filesystem, path)


def is_plan_whole(folder: "OutputFolder", plan: SamplePlan, path: str) -> bool:
    """Whether the frozen plan is there, has a footer and all samples; yes where it cannot be read now.

    Its pages are not read, which would take as long as to write it.
    """
    if not folder.filesystem.exists(path):
        return False
    try:
        with open_parquet(folder.filesystem, path) as frozen:
            return bool(frozen.metadata.num_rows == plan.num_samples)
    except UnreachableError:
        return True
    except DAMAGE:
        return False


def parts_confirm(folder: "OutputFolder", num_shards: int, identity: Mapping[str, Any]) -> bool:
    """Whether a folder without a whole record is the job's all the same: all parts that name a job name this one.

    Args:
        folder: the output.
        num_shards: of the job at hand.
        identity: of the job at hand.
    """
    jobs = set()
    for shard_id in islice(folder.finished(num_shards), _ASKED_PARTS):
        try:
            with open_parquet(folder.filesystem, folder.part(shard_id, num_shards)) as part:
                jobs.add(str(read_stats(part.metadata).get("job", "")))
        except (UnreachableError, *DAMAGE):
            continue
    return jobs - {""} == {identity_hash(identity)}
