"""Weight files from anywhere: local paths as they are, our own beside the code, URLs through a cache on this machine."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec

from .errors import CheckpointError
from .packed_weights import unpacked

_PACKAGE = "package://"
# That of the folders kernels, worker and orchestrator, wherever they are.
_PACKAGE_FOLDER = Path(__file__).parents[1]


def cache_folder() -> Path:
    """Where fetched weights are kept: $TOPROVAR_CACHE, or a folder under ~/.cache."""
    return Path(os.environ.get("TOPROVAR_CACHE") or Path.home() / ".cache" / "toprovar-batch")


def is_packaged(location: str) -> bool:
    """Whether a location names a file that comes with this package, the same on every machine."""
    return location.startswith(_PACKAGE)


def fetch(location: str) -> Path:
    """A local path of a weight file or a folder of shards.

    Args:
        location: a local path, an fsspec URL, hf://owner/name/path (through the hub's own cache), or
            package://path of a file that comes with this package (unpacked into the cache where it is packed).

    Raises:
        CheckpointError: it cannot be fetched, or is not part of this installation; names it.
    """
    if is_packaged(location):
        return _packaged_path(location)
    if "://" not in location:
        return Path(location).expanduser()
    try:
        if location.startswith("hf://"):
            return _fetch_from_hub(location.removeprefix("hf://"))
        return _fetch_url(location)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{location}: cannot be fetched ({reason})") from error


def _packaged_path(location: str) -> Path:
    path = _PACKAGE_FOLDER / location.removeprefix(_PACKAGE)
    try:
        copy = unpacked(path, cache_folder())
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{location}: cannot be unpacked into {cache_folder()} ({reason}); name a writable folder by TOPROVAR_CACHE"
        ) from error
    if copy is not None:
        return copy
    if not path.exists():
        raise CheckpointError(
            f"{location}: not part of this installation; install toprovar-batch again with its weights, "
            "or set model.random_weights to true"
        )
    return path


def _fetch_from_hub(path: str) -> Path:
    """owner/name/file, or owner/name/folder of shards."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import)

    parts = path.split("/", 2)
    if len(parts) < 3:
        raise ValueError("expected hf://owner/name/file")
    folder = snapshot_download("/".join(parts[:2]), allow_patterns=[parts[2], f"{parts[2]}/*"])
    return Path(folder) / parts[2]


def _fetch_url(location: str) -> Path:
    """Copy a file or a folder into the cache, whole or not at all; a changed source gets a new copy."""
    file_system, path = fsspec.core.url_to_fs(location)
    files = _files_under(file_system, path)
    versions = [file_system.ukey(file) for file in files.values()]
    key = hashlib.sha256("\n".join([location, *map(str, versions)]).encode()).hexdigest()[:16]
    target = cache_folder() / key / _base_name(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The workers of a machine start together: one fetches, the others wait for its copy.
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        partial = target.parent / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a worker that was killed
        for name, file in files.items():
            place = partial / target.name / name
            place.parent.mkdir(parents=True, exist_ok=True)
            file_system.get_file(file, str(place))
        (partial / target.name).rename(target)
        partial.rmdir()
    return target


def _base_name(location: str) -> str:
    """The file's own name: its extension tells its form, so a query must not follow it."""
    return location.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _files_under(file_system: Any, path: str) -> dict[str, str]:
    """Relative name to path of every file of a folder; a file itself has the empty name."""
    if not file_system.isdir(path):
        return {"": path}
    return {str(file)[len(path) :].strip("/"): str(file) for file in file_system.find(path)}
