"""Whether a dataset can be written to a place at all: asked alike before a run and by `validate`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from toprovar_batch.worker.errors import OutputFolderError

if TYPE_CHECKING:
    from .folder import OutputFolder

_READ_ONLY = {"http", "https", "data", "zip", "tar", "libarchive", "jar", "github", "git", "reference"}
_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs"}


def check_place(folder: "OutputFolder") -> None:
    """Check that files can be made in an output folder, without leaving one.

    Raises:
        OutputFolderError: its storage is for reading only, its readers do not take its name, its bucket does not exist, or it may not be written.
        OSError: and what else file systems raise that cannot be reached.
    """
    protocol = folder.url.partition("://")[0]
    if "://" in folder.url and protocol in _READ_ONLY:
        raise OutputFolderError(
            f"{folder.url}: nothing can be written through {protocol}://; use a folder, or a URL such as s3://"
        )
    if "::" in folder.path:
        raise OutputFolderError(
            f"{folder.url}: holds ::, which datasets.load_dataset would take for several addresses; choose another name"
        )
    if folder.is_local:
        _check_writable(folder)
    elif protocol in _WITH_BUCKETS:
        _check_bucket(folder)


def _check_writable(folder: "OutputFolder") -> None:
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


def _check_bucket(folder: "OutputFolder") -> None:
    bucket = folder.path.partition("/")[0]
    try:
        folder.filesystem.info(bucket)
    except FileNotFoundError as error:
        raise OutputFolderError(f"{folder.url}: there is no bucket {bucket}; make it first") from error
    except PermissionError:  # who may write below a prefix need not be allowed to list the bucket
        return
