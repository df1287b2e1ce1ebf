"""Weight files from anywhere: local paths as they are, our own beside the code, URLs through a cache on this machine."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .arrivals import ByteCount, CountingCallback, counting_bar
from .cached_copy import make_once
from .credentials import redact, without_credentials
from .errors import CheckpointError
from .packed_weights import unpacked
from .storage import absolute, locate, storage_errors
from .transfer_checks import check_sums, is_cut_off, stated_sums

_PACKAGE = "package://"
_SHA256 = re.compile(r"#sha256=([0-9a-fA-F]{64})$")
_HTTP_VERSION: Final = ("Last-Modified", "Content-MD5", "Digest")  # what may tell of a change beside an ETag
# That of the folders kernels, worker and orchestrator, wherever they are.
_PACKAGE_FOLDER = Path(__file__).parents[1]


def cache_folder() -> Path:
    """Where fetched weights are kept: $TOPROVAR_CACHE, or a folder under ~/.cache."""
    return Path(os.environ.get("TOPROVAR_CACHE") or Path.home() / ".cache" / "toprovar-batch")


def is_packaged(location: str) -> bool:
    """Whether a location names a file that comes with this package, the same on every machine."""
    return location.startswith(_PACKAGE)


def fetch(location: str, count: ByteCount | None = None) -> Path:
    """A local path of a weight file or a folder of shards.

    Args:
        location: a local path, an fsspec URL, hf://owner/name/path (through the hub's own cache), or
            package://path of a file that comes with this package (unpacked into the cache where it is packed). A URL of
            one file may end with #sha256= and 64 hexadecimal digits, which its content must have then.
        count: is told the bytes that arrive; None: nobody is.

    Raises:
        CheckpointError: it cannot be fetched, or is not part of this installation; names it.
    """
    if is_packaged(location):
        return _packaged_path(location)
    try:
        if "://" not in location:
            return Path(absolute(location, Path.cwd()) if location.startswith("~") else location)
        if location.startswith("hf://"):
            return _fetch_from_hub(location.removeprefix("hf://"), count)
        return _fetch_url(location, count or ByteCount())
    except storage_errors(ValueError, ImportError) as error:
        raise CheckpointError(f"{location}: cannot be fetched ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The first line of what is known; fsspec's "not found" over HTTP has its reason in the cause alone."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return redact(next(iter(str(error).strip().splitlines()), type(error).__name__))


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


def _fetch_from_hub(path: str, count: ByteCount | None) -> Path:
    """owner/name/file, or owner/name/folder of shards."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import)

    parts = path.split("/", 2)
    if len(parts) < 3:
        raise ValueError("expected hf://owner/name/file")
    bar = None if count is None else counting_bar(count)
    folder = snapshot_download(
        "/".join(parts[:2]), allow_patterns=[parts[2], f"{parts[2]}/*"], tqdm_class=bar
    )
    return Path(folder) / parts[2]


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to copy.

    Attributes:
        path: within its file system.
        version: differs from that of another content under the same path, as far as the storage tells.
        size: bytes; None where the storage does not say.
        sums: name of a hash -> the digest in hexadecimal that the content must have.
        is_told: whether the version was told by the storage, beyond the file's length.
    """

    path: str
    version: str
    size: int | None
    sums: Mapping[str, str]
    is_told: bool = True


def _fetch_url(location: str, count: ByteCount) -> Path:
    """Copy a file or a folder into the cache, whole or not at all; a source that changed gets a new copy.

    Over HTTP a change shows in the ETag, or else in the time of change and the length. The copy of a server that tells
    none of them stays until it is deleted. A copy of another length than its source's, or that its own form shows to be
    cut off, is made anew. A user, a password or a signature in the address is no part of what names the copy.

    Raises:
        OSError: and what else file systems raise where it cannot be read, or did not arrive as its source says.
        ValueError: a checksum that is none, or of a folder.
    """
    address, sums = _without_sum(location)
    file_system, path = locate(address)
    file_system.invalidate_cache()
    files = _files_under(file_system, path)
    if sums and "" not in files:
        raise ValueError("#sha256= is of one file, and this is a folder")
    sources = {name: _source(file_system, file, sums) for name, file in files.items()}
    versions = [source.version for source in sources.values()]
    # A renewed signature is no other file, where the server tells its files apart; where it does not, a name of the query
    # that looks like a secret's may be all that does.
    is_told = all(source.is_told for source in sources.values())
    named = without_credentials(address) if is_told else address
    key = hashlib.sha256("\n".join([named, *sums.values(), *versions]).encode()).hexdigest()[:16]

    def copy(place: Path) -> None:
        for name, source in sources.items():
            _copy(file_system, source, place / name, count)

    def is_whole(place: Path) -> bool:
        return all(_arrived(source, place / name) for name, source in sources.items())

    return make_once(cache_folder() / key / _base_name(address), copy, is_whole)


def _without_sum(location: str) -> tuple[str, dict[str, str]]:
    """Take the checksum off that ends a location."""
    if "#sha256=" not in location:
        return location, {}
    found = _SHA256.search(location)
    if found is None:
        raise ValueError("#sha256= is followed by 64 hexadecimal digits")
    return location[: found.start()], {"sha256": found[1].lower()}


def _arrived(source: _Source, place: Path) -> bool:
    """Whether a copy looks whole, without reading it: large weights would take seconds each time."""
    size = place.stat().st_size if place.is_file() else None
    return size is not None and source.size in (None, size) and not is_cut_off(place)


def _source(file_system: Any, path: str, sums: Mapping[str, str]) -> _Source:
    info = file_system.info(path)
    size = info.get("size") or None  # some servers answer a question about a file with a length of zero
    if not _is_http(file_system):
        return _Source(path, str(file_system.ukey(path)), size, sums)
    # fsspec takes files over HTTP to be unchanging: its own key is made from the address alone.
    stated = [info.get("ETag")] if info.get("ETag") else [info.get(name) for name in _HTTP_VERSION]
    version = " ".join(map(str, [*stated, size]))
    return _Source(path, version, size, {**stated_sums(info), **sums}, is_told=any(stated))


def _is_http(file_system: Any) -> bool:
    protocol = file_system.protocol
    return "http" in ((protocol,) if isinstance(protocol, str) else protocol)


def _copy(file_system: Any, source: _Source, place: Path, count: ByteCount) -> None:
    """Copy one file.

    Raises:
        OSError: it cannot be read, not all of it arrived, or it has another checksum.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    count.note(source.path, 0, source.size)
    file_system.get_file(source.path, str(place), callback=CountingCallback(count, source.path))
    arrived = place.stat().st_size
    if source.size is not None and arrived != source.size:
        raise OSError(f"{arrived:,} of {source.size:,} bytes arrived; try again")
    if is_cut_off(place):
        raise OSError(f"{arrived:,} bytes arrived, and the file goes on behind them; try again")
    check_sums(place, source.sums)


def _base_name(location: str) -> str:
    """The file's own name: its extension tells its form, so a query must not follow it."""
    return location.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _files_under(file_system: Any, path: str) -> dict[str, str]:
    """Relative name to path of every file of a folder; a file itself has the empty name."""
    if not _is_folder(file_system, path):
        return {"": path}
    return {str(file)[len(path) :].strip("/"): str(file) for file in file_system.find(path)}


def _is_folder(file_system: Any, path: str) -> bool:
    # Over HTTP a folder is a page of links. To look for links, fsspec would read a file of weights as text.
    if _is_http(file_system) and file_system.info(path).get("mimetype") != "text/html":
        return False
    return bool(file_system.isdir(path))
