"""Whose an output folder is: another job is kept out, unless it may take over what was begun and never made."""

import posixpath
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.worker.errors import OutputFolderError

from .frozen import parts_confirm
from .identity import differing_fields, shown_differences
from .names import JOB_FILE, JOB_FOLDER, SAMPLES_FILE

if TYPE_CHECKING:
    from .folder import OutputFolder


def refuse_strangers(folder: "OutputFolder", num_shards: int, identity: dict[str, Any]) -> None:
    """Keep out of folders that hold something else.

    Args:
        folder: the output.
        num_shards: of the job at hand.
        identity: of the job at hand.

    Raises:
        OutputFolderError: there are files, and neither a job's record nor parts that name this job.
    """
    try:
        names = [
            posixpath.basename(name.rstrip("/")) for name in folder.filesystem.ls(folder.path, detail=False)
        ]
    except FileNotFoundError:
        return
    strangers = sorted(set(names) - {JOB_FOLDER, ""})
    is_stranger = strangers and not folder.filesystem.exists(folder.inside(*JOB_FILE))
    if is_stranger and not parts_confirm(folder, num_shards, identity):
        raise OutputFolderError(
            f"{folder.url}: holds other files ({', '.join(strangers[:3])}); choose an empty or new folder"
        )


def refuse_other_job(folder: "OutputFolder", record: dict[str, Any], identity: dict[str, Any]) -> None:
    """Keep out of the folder of a job that would give another dataset.

    Args:
        folder: the output.
        record: of the job that owns it, from `read_job`.
        identity: of the job at hand.

    Raises:
        OutputFolderError: they differ; names the fields and both values.
    """
    differences = shown_differences(record["identity"], identity)
    if differences:
        raise OutputFolderError(
            f"{folder.url}: belongs to another job, which differs in {differences}; choose another output (--output DIR)"
        )


def may_take_over(folder: "OutputFolder", record: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether a folder is another job's that has no part there, and whose run has ended.

    That is what a job leaves that fails at its start; mended, it may have another identity. See `refuse_other_job`. A lock
    rules a run out in a local folder. Elsewhere the record tells that a run leaves at its end. Should the job run a second
    time all the same, its workers stop: they look whose the folder is before they publish.
    """
    if folder.has_data() or not differing_fields(record["identity"], identity):
        return False
    if folder.is_local:
        return True
    try:
        return folder.has_ended_run(since=datetime.fromisoformat(record["created"]))
    except (KeyError, TypeError, ValueError):  # a record of nobody knows when
        return False


def release(folder: "OutputFolder", record: dict[str, Any], identity: dict[str, Any]) -> None:
    """Make a folder as good as new, under its lock if it has one; the record goes last. The card may hold what a person wrote."""
    differences = shown_differences(record["identity"], identity)
    filesystem = folder.filesystem
    for name, aside in ((SAMPLES_FILE, None), (("README.md",), (JOB_FOLDER, "README.md")), (JOB_FILE, None)):
        with suppress(FileNotFoundError):
            path = folder.inside(*name)
            if folder.is_local:
                Path(path).unlink() if aside is None else Path(path).replace(folder.inside(*aside))
                continue
            if aside is not None:
                filesystem.cp_file(path, folder.inside(*aside))
            filesystem.rm_file(path)
    filesystem.invalidate_cache()
    echo(f"{folder.url}: taken over from a job that made no part, and differs in {differences}", err=True)
