"""Checking a job's output folder without making or changing anything in it."""

import tempfile
from pathlib import Path

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.storage import storage_errors
from toprovar_batch.worker.words import counted

from .folder import (
    OutputFolder,
    locate_output,
    refuse_other_job,
    refuse_strangers,
)


def check_output(job: JobSpec, plan: SamplePlan) -> str:
    """Check that a job's output folder is new, empty, or this very job's.

    Returns:
        What a run would find there: "new", or how many shards are done.

    Raises:
        OutputFolderError: it cannot be written, or holds something else or another job.
    """
    folder = locate_output(job.output)
    try:
        refuse_strangers(folder)
        record = folder.read_job()
        if folder.is_local:
            _check_writable(folder)
        if record is None:
            return "new"
        refuse_other_job(folder, record, job_identity(job, plan))
        done = len(folder.finished(plan.num_shards))
    except storage_errors() as error:
        raise OutputFolderError(f"{job.output}: cannot be read: {error}") from error
    return f"of this job, {done:,} of {counted(plan.num_shards, 'shard')} done"


def _check_writable(folder: OutputFolder) -> None:
    """Try the nearest folder that exists: a run must be able to make files in it."""
    path = Path(folder.path)
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        raise OutputFolderError(f"{folder.url}: {nearest} is a file, not a folder")
    try:
        # A file without a name: permissions alone do not tell of read-only or special file systems.
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise OutputFolderError(f"{folder.url}: {nearest} cannot be written: {error.strerror}") from error
