"""Addresses of files: which file system holds them, and what file systems raise."""

import re
import sys
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .credentials import redact

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_CHAIN = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*::)+[A-Za-z][A-Za-z0-9+.\-]*://")
_EXTRAS = {"s3": "toprovar-batch[s3]", "s3a": "toprovar-batch[s3]"}
_LOCAL = ("file://", "local://")


def is_url(address: str) -> bool:
    """Whether an address has a protocol (s3://, hf://, memory://), so is no plain local path."""
    return _URL.match(address) is not None or _CHAIN.match(address) is not None


def absolute(path: str, folder: Path) -> str:
    """A local path made absolute, `~` and `~name` expanded; what is relative counts from `folder`.

    Raises:
        ValueError: there is no such user, or nobody knows where their folder is.
    """
    try:
        return str((folder / Path(path).expanduser()).absolute())
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise ValueError(
            f"no home folder is known for {user}; write ./{user} for a name like this"
        ) from error


def locate(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Find the file system behind an address, and the path within it.

    `::` in a local name is part of the name. In a URL it is refused, since fsspec would take what follows for the
    address of another file system.

    Args:
        address: local path or fsspec URL.

    Raises:
        ImportError: the protocol needs a package that is not installed.
        ValueError: no file system has this protocol, a URL holds `::`, or no such user is known.
    """
    if not is_url(address) or address.startswith(_LOCAL):
        protocol = next((name for name in _LOCAL if address.startswith(name)), "")
        return LocalFileSystem(), absolute(address.removeprefix(protocol), Path.cwd())
    if "::" in address:
        raise ValueError("holds ::, which is refused in a URL; name one file or folder of one file system")
    protocol = address.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise ValueError(
            f"nothing is known of {protocol}://; name a path, or a URL such as s3:// or https://"
        )
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        mend = f"pip install {_EXTRAS[protocol]}" if protocol in _EXTRAS else explain_storage(error)
        raise ImportError(f"{protocol}:// needs another package: {mend}") from error
    return filesystem, str(path)


def read_bytes(address: str) -> bytes:
    """All of a small file; a local one may be a pipe, of which fsspec would look for the end first.

    Raises:
        ImportError, ValueError: as `locate`.
        OSError: and what else file systems raise where it cannot be read.
    """
    filesystem, path = locate(address)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path).read_bytes()
    with filesystem.open(path, "rb") as file:
        return bytes(file.read())


def what_happened(error: Exception) -> Exception:
    """The error itself, or what fsspec's HTTP calls "not found" although the server never said so."""
    cause: BaseException = error
    while isinstance(cause, FileNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    aiohttp = sys.modules.get("aiohttp")
    unasked = aiohttp is not None and isinstance(cause, aiohttp.ClientError | TimeoutError)
    return cause if unasked and isinstance(cause, Exception) and getattr(cause, "status", 0) != 404 else error


def storage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Exceptions by which file systems say that they cannot be reached, read or written, and `others`."""
    botocore = sys.modules.get("botocore.exceptions")  # there once s3fs is in use
    aiohttp = sys.modules.get("aiohttp")  # there once fsspec's HTTP is in use
    # These are there once the Hugging Face Hub's file system is in use.
    hub = [sys.modules.get(name) for name in ("httpx", "httpx2")]
    return (
        OSError,
        NotImplementedError,
        *others,
        *([botocore.BotoCoreError] if botocore else []),
        *([aiohttp.ClientError] if aiohttp else []),
        *(httpx.HTTPError for httpx in hub if httpx),
    )


def explain_storage(error: Exception) -> str:
    """The first line of what a file system says, or the kind of the error where it says nothing."""
    return redact(next(iter(str(error).strip().splitlines()), type(error).__name__)).rstrip(".")
