"""Reading published files back: checksums on, and with the fault told from broken content or from the storage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .credentials import redact

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
"""What reading broken content raises, where it is no `UnreachableError`."""
T = TypeVar("T")


class UnreachableError(Exception):
    """The storage did not give what was asked of it; says nothing about the content."""


class _WatchedFile:
    """What pyarrow needs of a file; remembers when the storage below it failed.

    pyarrow raises OSError for broken content and for broken storage alike.
    """

    closed = False

    def __init__(self, file: Any) -> None:
        self._file = file
        self.trouble: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        return self._watch(self._file.read, size)

    def seek(self, *where: int) -> int:
        return self._watch(self._file.seek, *where)

    def tell(self) -> int:
        return self._watch(self._file.tell)

    def close(self) -> None:
        self.closed = True

    def _watch(self, call: Callable[..., T], *arguments: int) -> T:
        try:
            return call(*arguments)
        except ValueError:  # an impossible place: broken content sends pyarrow there
            raise
        except Exception as error:
            self.trouble = error
            raise


@contextmanager
def open_parquet(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, checksums on.

    Args:
        filesystem: holds the file.
        path: within `filesystem`.

    Raises:
        UnreachableError: the storage failed, here or inside the block.
    """
    watched = None
    try:
        with filesystem.open(path, "rb") as file:
            watched = _WatchedFile(file)
            with pq.ParquetFile(watched, page_checksum_verification=True) as part:
                yield part
    except Exception as error:  # every file system raises errors of its own kind
        if watched is None or watched.trouble is not None:
            raise UnreachableError(first_words(error)) from error
        raise


def first_words(error: Exception) -> str:
    """The beginning of an exception's text, on one line."""
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__
