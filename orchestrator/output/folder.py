"""The output folder: which job it belongs to, which shards are done. `docs/dataset.md` shows its layout."""

import json
import posixpath
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import BaseModel, ValidationError, model_validator

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_file import publish_bytes
from toprovar_batch.worker.part_identity import identity_hash
from toprovar_batch.worker.storage import explain_storage, locate, storage_errors
from toprovar_batch.worker.words import counted

from .beginning import Beginning
from .card import dataset_card, mended_card
from .frozen import freeze_samples, is_plan_whole, job_record, parts_confirm
from .names import JOB_FILE, JOB_FOLDER, LOCK_FILE, RUN_TIME, RUNS_FOLDER, SAMPLES_FILE
from .ownership import may_take_over, refuse_other_job, refuse_strangers, release
from .place import check_place
from .run_lock import RunLock

PLAN_COLUMNS = ("sample_id", "prompt", "negative_prompt", "seed", "h_div_w", "prompt_error")
_NUMBER = r"(\d{5}|[1-9]\d{5,})"  # of one form: another number of zeros would make a second part of a shard
_PART_NAME = re.compile(rf"part-{_NUMBER}-of-{_NUMBER}\.parquet")


class DamagedRecordError(OutputFolderError):
    """The record of the job that owns a folder cannot be read back; its job can write it again."""


class JobRecord(BaseModel):
    """What must be in job.json for others to make sense of a folder; it holds more."""

    name: str | None
    num_samples: int
    num_shards: int
    identity: dict[str, Any]

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        size = self.identity.get("shard_size")  # earlier versions lack it
        if isinstance(size, int) and size > 0 and -(-self.num_samples // size) != self.num_shards:
            raise ValueError(
                f"{counted(self.num_samples, 'sample')} in shards of {size} are not {counted(self.num_shards, 'shard')}"
            )
        return self


@dataclass(frozen=True)
class OutputFolder:
    """Names and listings of one job's output.

    Attributes:
        url: as the user gave it.
        filesystem: behind it.
        path: of the folder within `filesystem`.
        job: hash of the identity of the job that owns it, see `owned_by`; empty where nobody has asked.
        is_new: begun just now, so that `open_output` removes it where an exception comes before a run's record.
    """

    url: str
    filesystem: fsspec.AbstractFileSystem
    path: str
    job: str = ""
    is_new: bool = False

    @property
    def is_local(self) -> bool:
        """Whether files can be renamed into place."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def scratch(self) -> str | None:
        """Folder of unfinished files, on the same file system; None for remote outputs."""
        return self.inside(JOB_FOLDER, "tmp") if self.is_local else None

    def inside(self, *names: str) -> str:
        """Path of something in the folder, within `filesystem`."""
        return posixpath.join(self.path, *names)

    def part(self, shard_id: int, num_shards: int) -> str:
        """Path of a shard's part file, within `filesystem`."""
        return self.inside("data", f"part-{shard_id:05d}-of-{num_shards:05d}.parquet")

    def part_url(self, shard_id: int, num_shards: int) -> str:
        """The part's address for a process that has only fsspec."""
        return str(self.filesystem.unstrip_protocol(self.part(shard_id, num_shards)))

    def shown(self, path: str) -> str:
        """A path within `filesystem` as a person would write it: with its protocol where it is remote."""
        return path if self.is_local else str(self.filesystem.unstrip_protocol(path))

    def owned_by(self, record: dict[str, Any]) -> "OutputFolder":
        """The same folder, which knows its job; `record` is from `read_job`."""
        return replace(self, job=identity_hash(record["identity"]))

    @property
    def job_url(self) -> str:
        """The address of its job's record for a process that has only fsspec."""
        return str(self.filesystem.unstrip_protocol(self.inside(*JOB_FILE)))

    def finished(self, num_shards: int) -> list[int]:
        """Ids of the shards whose part is there, ascending: the only record of what is done."""
        return sorted(self._parts(num_shards).values())

    def foreign_files(self, num_shards: int) -> list[str]:
        """Parquet files beside the parts that are none of this job, though readers of `data/*.parquet` read them."""
        known = self._parts(num_shards)
        return sorted(name for name in self._data() if name.endswith(".parquet") and name not in known)

    def has_data(self) -> bool:
        """Whether anything is where parts are."""
        return bool(self._data())

    def has_ended_run(self, since: datetime) -> bool:
        """Whether a run that began at or after a time has left its record, whose name begins with its own time."""
        self.filesystem.invalidate_cache()
        try:
            names = map(posixpath.basename, self.filesystem.ls(self.inside(*RUNS_FOLDER), detail=False))
            records = (name for name in names if name[:1].isdigit() and name.endswith(".json"))
            return any(name >= f"{since.astimezone(UTC):{RUN_TIME}}" for name in records)
        except FileNotFoundError:
            return False

    def _data(self) -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            return list(self.filesystem.ls(self.inside("data"), detail=False))
        except FileNotFoundError:
            return []

    def _parts(self, num_shards: int) -> dict[str, int]:
        """The paths of the parts that are there, and their shards."""
        names = ((name, _PART_NAME.fullmatch(posixpath.basename(name))) for name in self._data())
        shards = {name: int(match[1]) for name, match in names if match and int(match[2]) == num_shards}
        return {name: shard_id for name, shard_id in shards.items() if shard_id < num_shards}

    def publish(self, content: str | bytes, *names: str) -> None:
        """Write a small file in one visible step."""
        content = content.encode() if isinstance(content, str) else content
        publish_bytes(content, self.filesystem, self.inside(*names), self.scratch)

    def claim(self, job_record: str) -> None:
        """Write the job's record, where the storage allows it not over one that came a moment ago.

        `read_job` tells afterwards whose the folder is. Of two drivers that write at once to a storage without
        exclusive writes the later wins. The earlier may have read its own record already.
        """
        if self.is_local:
            with suppress(FileExistsError):
                path = self.inside(*JOB_FILE)
                publish_bytes(job_record.encode(), self.filesystem, path, self.scratch, replace=False)
            return
        try:
            self.filesystem.pipe_file(self.inside(*JOB_FILE), job_record.encode(), mode="create")
        except (OSError, NotImplementedError, TypeError, ValueError):
            # A record is there, the store knows no such request, or nothing can be written: trying tells.
            if self.read_job() is None:
                self.publish(job_record, *JOB_FILE)

    def read_job(self) -> dict[str, Any] | None:
        """Read the record of the job that owns the folder; None when no job has begun here.

        Raises:
            OutputFolderError: the record is damaged (a DamagedRecordError), or not of this program, or the folder is a file.
        """
        try:
            record = json.loads(self.filesystem.cat_file(self.inside(*JOB_FILE)))
            JobRecord.model_validate(record, strict=True)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise OutputFolderError(f"{self.url}: is a file; name the folder of a dataset") from error
        except ValidationError as error:
            if any(_PART_NAME.fullmatch(posixpath.basename(name)) for name in self._data()):
                raise self._damaged("damaged", "mends") from error
            raise OutputFolderError(
                f"{self.url}: _job/job.json is not of this program; use another folder"
            ) from error
        except ValueError as error:
            raise self._damaged("damaged", "mends") from error
        return dict(record)

    def need_job(self) -> dict[str, Any]:
        """As `read_job`, for commands that need a job's output.

        Raises:
            OutputFolderError: no job has begun here, or its record is lost or damaged.
        """
        job = self.read_job()
        if job is not None:
            return job
        if self.has_data():
            raise self._damaged("lost", "writes")
        raise OutputFolderError(f"{self.url}: no dataset of a job is here (no {'/'.join(JOB_FILE)})")

    def _damaged(self, state: str, mends: str) -> DamagedRecordError:
        """The error of a record that is not what it was, and what sets it right."""
        mend = (
            f"submit its job again with the same shard_size, which {mends} it where the parts name that job"
        )
        return DamagedRecordError(f"{self.url}: _job/job.json is {state}; {mend}")


def locate_output(url: str) -> OutputFolder:
    """Find the file system behind an output address.

    Raises:
        OutputFolderError: no file system answers to it, or one that only this process could see.
    """
    if not url:
        raise OutputFolderError("the name of the output is empty; give one")
    if "\0" in url:
        raise OutputFolderError(f"{url!r}: holds a NUL character, which no path can")
    try:
        filesystem, path = locate(url)
    except Exception as error:  # every file system raises errors of its own kind
        raise OutputFolderError(f"{url}: {explain_storage(error)}") from error
    if isinstance(filesystem, MemoryFileSystem):
        raise OutputFolderError(
            f"{url}: lives in the memory of one process and would be lost; use a folder, or a URL such as s3://"
        )
    return OutputFolder(url, filesystem, path.rstrip("/") or "/")


@contextmanager
def open_output(job: JobSpec, plan: SamplePlan, schema: pa.Schema) -> Iterator[OutputFolder]:
    """Begin a job's output folder, or continue it. One of another job that made no part there is taken over.

    While the block runs, no other driver gets the same folder, if its file system has locks. A new folder with a lock
    goes again where an exception ends the block before a run has left its record there.

    Args:
        job: names the folder.
        plan: its samples, frozen into the folder at the first run.
        schema: of the dataset, for its card.

    Yields:
        The folder.

    Raises:
        OutputFolderError: it cannot be written, holds something else or another job, or another driver.
    """
    folder = locate_output(job.output)
    lock = None
    is_new = False
    with ExitStack() as held:
        try:
            check_place(folder)
            identity = job_identity(job, plan)
            refuse_strangers(folder, plan.num_shards, identity)
            if folder.is_local:
                beginning = Beginning(folder)
                Path(folder.inside(JOB_FOLDER)).mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(RunLock(Path(folder.inside(*LOCK_FILE))))
                is_new = beginning.is_new and lock.held
                if is_new:
                    held.enter_context(beginning)
            record = _whole_record(folder, job, plan, identity)
            is_alone = lock is None or lock.held
            if record and is_alone and may_take_over(folder, record, identity):
                release(folder, record, identity)
                record = None
            claimed = record or _claim(folder, job, plan, identity)
            refuse_other_job(folder, claimed, identity)
            samples = folder.inside(*SAMPLES_FILE)
            if record is None or not is_plan_whole(folder, plan, samples):
                freeze_samples(folder, plan, samples)
            _write_card(folder, dataset_card(job, schema, plan.num_samples))
            if folder.scratch is not None and lock is not None and lock.held:
                held.callback(_sweep_under, lock, folder.scratch)
                _sweep(folder.scratch)
        except storage_errors() as error:
            raise OutputFolderError(f"{job.output}: cannot be used: {explain_storage(error)}") from error
        yield replace(folder.owned_by(claimed), is_new=is_new)


def _write_card(folder: OutputFolder, card: str) -> None:
    """Write the card of a new output, and mend that of an earlier version; what a person wrote into it stays."""
    try:
        found = folder.filesystem.cat_file(folder.inside("README.md")).decode(errors="surrogateescape")
    except FileNotFoundError:
        found = None
    wanted = card if found is None else mended_card(found)
    if wanted != found:
        folder.publish(wanted.encode(errors="surrogateescape"), "README.md")


def _sweep(scratch: str) -> None:
    """Remove the unfinished files of workers that were killed; only under the lock is nobody else writing.

    What cannot be removed now is left to the next run.
    """
    for leftover in Path(scratch).glob("*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def _sweep_under(lock: RunLock, scratch: str) -> None:
    """Sweep at the end of a run, unless the folder was deleted and another run may be writing in a new one."""
    if lock.in_place:
        _sweep(scratch)


def _whole_record(
    folder: OutputFolder, job: JobSpec, plan: SamplePlan, identity: dict[str, Any]
) -> dict[str, Any] | None:
    """Read the record of the folder's job; a damaged one is written again where nothing there is another job's."""
    try:
        return folder.read_job()
    except DamagedRecordError:
        if folder.has_data() and not parts_confirm(folder, plan.num_shards, identity):
            raise
    folder.publish(job_record(job, plan, identity), *JOB_FILE)
    echo(f"{folder.url}: _job/job.json was damaged, and is written again", err=True)
    return folder.read_job()


def _claim(folder: OutputFolder, job: JobSpec, plan: SamplePlan, identity: dict[str, Any]) -> dict[str, Any]:
    """Write the job into an empty folder, and read back whose the folder is now."""
    folder.claim(job_record(job, plan, identity))
    written = folder.read_job()
    if written is None:
        raise OutputFolderError(f"{folder.url}: what is written there is not there afterwards")
    return written
