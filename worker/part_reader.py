"""Reading published files back: checksums on, and with the fault told from broken content or from the storage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .credentials import redact
from .errors import OutputFolderError

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)
"""What reading broken content raises, where it is no `UnreachableError`."""
# What fsspec says where a server answers a range with the whole file, or tells no length.
_NO_RANGES = ("support range requests", "streaming HTTP file")
T = TypeVar("T")


class UnreachableError(Exception):
    """The storage did not give what was asked of it; says nothing about the content."""


class NoRangesError(OutputFolderError):
    """A web server that gives files only whole, so that nothing can be said about a part of them."""


class _WatchedFile:
    """What pyarrow needs of a file; remembers when the storage below it failed.

    pyarrow raises OSError for broken content and for broken storage alike.
    """

    closed = False

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path
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
        except ValueError as error:
            if any(words in str(error) for words in _NO_RANGES):
                raise NoRangesError(
                    f"{self._path}: its web server gives files only whole (it has no range requests), and a dataset is "
                    "read in pieces; name a server that has them, or copy the dataset to a folder"
                ) from error
            raise  # an impossible place: broken content sends pyarrow there
        except Exception as error:
            self.trouble = error
            raise


class _ReadHere(pq.ParquetFile):
    """Reads in the thread that asks, once it is opened without a buffer to read ahead.

    A thread of Arrow's own that lets go of a file in Python while the interpreter ends takes the whole process down.
    """

    def read(self, *arguments: Any, **options: Any) -> pa.Table:
        return super().read(*arguments, **{"use_threads": False, **options})

    def read_row_group(self, *arguments: Any, **options: Any) -> pa.Table:
        return super().read_row_group(*arguments, **{"use_threads": False, **options})

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = super().iter_batches(
            *arguments, **{"use_threads": False, **options}
        )
        return batches


@contextmanager
def open_parquet(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, checksums on.

    Args:
        filesystem: holds the file.
        path: within `filesystem`.

    Raises:
        UnreachableError: the storage failed, here or inside the block.
        NoRangesError: it is a web server that gives files only whole.
    """
    watched = None
    try:
        with filesystem.open(path, "rb") as file:
            watched = _WatchedFile(file, str(filesystem.unstrip_protocol(path)))
            with _ReadHere(watched, pre_buffer=False, page_checksum_verification=True) as part:
                yield part
    except NoRangesError:
        raise
    except Exception as error:  # every file system raises errors of its own kind
        if watched is None or watched.trouble is not None:
            raise UnreachableError(first_words(error)) from error
        raise


def first_words(error: Exception) -> str:
    """The beginning of an exception's text, on one line."""
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__
