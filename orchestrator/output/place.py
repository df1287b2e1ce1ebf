"""Whether a dataset can be written to a place at all: asked alike before a run and by `validate`."""

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.storage import explain_storage, storage_errors

from .names import JOB_FOLDER

if TYPE_CHECKING:
    from .folder import OutputFolder

_READ_ONLY = {"http", "https", "data", "zip", "tar", "libarchive", "jar", "github", "git", "reference"}
_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs"}


def is_read_only(output: str) -> bool:
    """Whether nothing can be written through an address: a web server, an archive."""
    return "://" in output and output.partition("://")[0] in _READ_ONLY


def refuse_read_only(output: str) -> None:
    """Refuse an address through which nothing can be written, before its server or archive is asked for.

    Raises:
        OutputFolderError: it is one.
    """
    if is_read_only(output):
        protocol = output.partition("://")[0]
        raise OutputFolderError(
            f"{output}: nothing can be written through {protocol}://; use a folder, or a URL such as s3://"
        )


def check_place(folder: "OutputFolder") -> None:
    """Check that files can be made in an output folder, without leaving one. A store that forbids to delete keeps one, which is told.

    Raises:
        OutputFolderError: its readers do not take its name, its bucket does not exist, or it may not be written.
        OSError: and what else file systems raise that cannot be reached.
    """
    if "::" in folder.path:
        raise OutputFolderError(
            f"{folder.url}: holds ::, which datasets.load_dataset would take for several addresses; choose another name"
        )
    if folder.is_local:
        _check_writable(folder)
        return
    if folder.url.partition("://")[0] in _WITH_BUCKETS:
        _check_bucket(folder)
    _check_takes(folder)


def _check_writable(folder: "OutputFolder") -> None:
    """Try the nearest folder that exists, and those within that a run writes to: it must be able to make files there."""
    path = Path(folder.path)
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    within = (Path(folder.inside(name)) for name in ("data", JOB_FOLDER))
    for place in (nearest, *(each for each in within if each.exists())):
        if not place.is_dir():
            raise OutputFolderError(f"{folder.url}: {place} is a file, not a folder")
        try:
            # A file without a name: permissions alone do not tell of read-only or special file systems.
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise OutputFolderError(f"{folder.url}: {place} cannot be written: {error.strerror}") from error


def _check_takes(folder: "OutputFolder") -> None:
    """Write a small object and remove it: nothing else tells whether a store takes what a run would write."""
    path = folder.inside("_job", "tmp", f"write-check-{uuid.uuid4().hex}")
    try:
        folder.filesystem.pipe_file(path, b"toprovar-batch: can this be written?")
    except storage_errors() as error:
        raise OutputFolderError(f"{folder.url}: cannot be written: {explain_storage(error)}") from error
    try:
        folder.filesystem.rm_file(path)
    except storage_errors() as error:  # who may write need not be allowed to delete
        shown, reason = folder.shown(path), explain_storage(error)
        echo(f"Warning: {shown}, a small object to try the output with, stays: {reason}", err=True)


def _check_bucket(folder: "OutputFolder") -> None:
    bucket = folder.path.partition("/")[0]
    try:
        folder.filesystem.info(bucket)
    except FileNotFoundError as error:
        raise OutputFolderError(f"{folder.url}: there is no bucket {bucket}; make it first") from error
    except PermissionError:  # who may write below a prefix need not be allowed to list the bucket
        return
