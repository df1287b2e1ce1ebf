"""The record that every run leaves in `_job/runs`, however it ends."""

import json
import os
import posixpath
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.output.folder import OutputFolder
from toprovar_batch.orchestrator.output.names import RUN_TIME, RUNS_FOLDER
from toprovar_batch.worker.credentials import redact, redacted
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.part_identity import recorded_job
from toprovar_batch.worker.storage import storage_errors

from .log_pages import newest_pages
from .outcome import Outcome
from .summary import RunSummary, stats_record

_SENTENCE_LENGTH = 500  # characters of an error that reach the record


class Failure(BaseModel):
    """What ended a run early: the exception's type and its sentence."""

    type: str
    message: str


class RunRecord(BaseModel):
    """What is read of a run's record; those of earlier versions have no `failure`."""

    started: str
    workers: int
    seconds: float
    images_per_second: float
    stopped_by: str | None
    failure: Failure | None = None


class RunLog:
    """A run from its start to its record.

    Args:
        folder: the output.
        summarise: makes the summary of an outcome, the seconds since the start, and what ended the run early.

    Attributes:
        stem: name of the record, without its ending.
    """

    def __init__(
        self,
        folder: OutputFolder,
        summarise: Callable[[Outcome, float, BaseException | None], RunSummary],
    ) -> None:
        self._folder, self._summarise = folder, summarise
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self.stem = f"{self._started:{RUN_TIME}}-{os.getpid()}"

    def close(self, outcome: Outcome, error: BaseException | None) -> RunSummary:
        """Write the record of a run that came to its end, or that `error` ends.

        Returns:
            The summary. Its `error` is the given one, which goes first: that a record cannot be written is a warning
            then. Else it is a RunFailedError that names the copy that was kept on this machine, or None.
        """
        seconds = time.monotonic() - self._clock
        summary = self._summarise(outcome, seconds, error)
        trouble = self._write(run_record(summary, outcome, self._started))
        if trouble is None:
            return summary
        if error is None:
            return self._summarise(outcome, seconds, RunFailedError(trouble))
        echo(f"Warning: {trouble}", err=True)
        return summary

    def _write(self, record: dict[str, Any]) -> str | None:
        """Write a record; gives a sentence where that fails."""
        text = json.dumps(redacted(record), indent=2, ensure_ascii=False)
        name = f"{self.stem}.json"
        try:
            owner = recorded_job(self._folder.job_url) if self._folder.job else ""
            if owner != self._folder.job:
                trouble = "was deleted while the job ran" if owner is None else "belongs to another job now"
                return f"{self._folder.url}: {trouble}{_kept_here(text, name)}"
            self._folder.publish(text, *RUNS_FOLDER, name)
        except storage_errors(ValueError) as error:
            return f"{self._folder.url}: the run's record cannot be written: {error}{_kept_here(text, name)}"
        return None


def _kept_here(text: str, name: str) -> str:
    """Keep a record on this machine; says where."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="toprovar-batch-run-", suffix=f"-{name}")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return ""
    return f"; the run's record is kept in {path}"


def run_record(summary: RunSummary, outcome: Outcome, started: datetime) -> dict[str, Any]:
    """Put on file what a run did, with what, and how it ended."""
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(summary.wall_s, 3),
        "images_per_second": round(summary.overall_speed, 4),
        "steady_images_per_second": round(summary.steady_speed, 4),
        "worker_images_per_second": round(summary.worker_speed, 4),
        "ended": _ending(summary),
        "stopped_by": summary.stopped_by,
        "failure": None if summary.error is None else _describe(summary.error).model_dump(),
        "shards": sorted(outcome.committed),
        "failed_shards": outcome.failed,
        "damaged_shards": summary.damaged,
        "workers": summary.num_workers,
        "bytes": outcome.num_bytes,
        "flat_batches": summary.flat_batches,
        "totals": stats_record(summary.this_run),
        "incidents": outcome.incidents,
        "engines": {
            name: {"hash": outcome.engine_hashes[name], **engine} for name, engine in outcome.engines.items()
        },
    }


def _ending(summary: RunSummary) -> str:
    if summary.error is not None:
        return "failed"
    if summary.stopped_by is not None:
        return "stopped"
    return "complete" if summary.is_complete and not summary.only_errors else "incomplete"


def _describe(error: BaseException) -> Failure:
    line = " ".join(redact(str(error)).split())[:_SENTENCE_LENGTH]
    return Failure(type=type(error).__name__, message=line.encode(errors="backslashreplace").decode())


def read_records(folder: OutputFolder) -> list[dict[str, Any]]:
    """Read the records of past runs, oldest first, without their engines; other files are passed over.

    A record that is none has only `name`, and `error` that says so.
    """
    runs = []
    for path in _files(folder):
        name = posixpath.basename(path)
        if name.startswith(".") or not name.endswith(".json"):
            continue
        try:
            record = RunRecord.model_validate_json(folder.filesystem.cat_file(path))
        except (ValidationError, IsADirectoryError):
            runs.append({"name": name, "error": "not the record of a run"})
        else:
            runs.append({"name": name, **record.model_dump()})
    return runs


def read_log(folder: OutputFolder) -> list[str]:
    """Find the log of the latest run: the paths of its pages, in the order in which they were written."""
    paths = {posixpath.basename(path): path for path in _files(folder)}
    return [folder.shown(paths[name]) for name in newest_pages(paths)]


def _files(folder: OutputFolder) -> list[str]:
    """The paths of what past runs left, sorted."""
    try:
        return sorted(folder.filesystem.ls(folder.inside(*RUNS_FOLDER), detail=False))
    except FileNotFoundError:
        return []
