"""Checking a job's output folder without making or changing anything in it."""

from dataclasses import replace
from typing import Any

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import as_begun, job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.storage import explain_storage, storage_errors
from toprovar_batch.worker.words import counted

from .folder import DamagedRecordError, locate_output
from .frozen import parts_confirm
from .ownership import may_take_over, refuse_other_job, refuse_strangers
from .place import check_place, refuse_read_only


def check_output(job: JobSpec, plan: SamplePlan) -> str:
    """Check that a job's output folder is new, empty, this very job's, or one that it may take over.

    Returns:
        What a run would find there: "new", or how many shards are done.

    Raises:
        OutputFolderError: it cannot be written, or holds something else or another job.
    """
    folder = locate_output(job.output)
    try:
        check_place(folder)
        identity = job_identity(job, plan)
        refuse_strangers(folder, plan.num_shards, identity)
        try:
            record = folder.read_job()
        except DamagedRecordError:
            if folder.has_data() and not parts_confirm(folder, plan.num_shards, identity):
                raise
            return "of this job; its _job/job.json is damaged, and a run writes it again"
        if record is None:
            return (
                "new" if not folder.has_data() else "of this job; a run writes its lost _job/job.json again"
            )
        identity = job_identity(as_begun(job, record["identity"]), plan)
        if may_take_over(folder, record, identity):
            return "of another job that made no part; a run takes it over"
        refuse_other_job(folder, record, identity)
        done = len(folder.finished(plan.num_shards))
    except storage_errors() as error:
        raise OutputFolderError(f"{job.output}: cannot be used: {explain_storage(error)}") from error
    return f"of this job, {done:,} of {counted(plan.num_shards, 'shard')} done"


def as_in_output(job: JobSpec) -> JobSpec:
    """The job with what it leaves open settled as in the dataset that its output holds; see `as_begun`.

    An output that cannot be read settles nothing here: whoever opens it says why. Comes first of what asks for an output.

    Raises:
        OutputFolderError: its storage is for reading only, no file system answers to the address, or the record there is not of this program.
    """
    refuse_read_only(job.output)
    record = _record_in_output(job) if job.image.format == "jpeg" else None
    return job if record is None else as_begun(job, record["identity"])


def plan_in_output(job: JobSpec, plan: SamplePlan) -> SamplePlan:
    """The plan with shards as they are in the dataset that the job's output holds, where the job leaves that open.

    A dataset of another number of samples is another job's, and settles nothing; see also `as_in_output`.

    Raises:
        OutputFolderError: no file system answers to the address, or the record there is not of this program.
    """
    record = _record_in_output(job) if job.shard_size is None else None
    if record is None or record["num_samples"] != plan.num_samples:
        return plan
    size = record["identity"].get("shard_size")
    return replace(plan, shard_size=size) if isinstance(size, int) and size > 0 else plan


def is_begun(job: JobSpec) -> bool:
    """Whether the job's output holds the record of a job.

    Raises:
        OutputFolderError: no file system answers to the address, or the record there is not of this program.
    """
    return _record_in_output(job) is not None


def _record_in_output(job: JobSpec) -> dict[str, Any] | None:
    """The record of the job that owns the output; None where there is none, or it cannot be read."""
    try:
        return locate_output(job.output).read_job()
    except storage_errors(DamagedRecordError):
        return None
