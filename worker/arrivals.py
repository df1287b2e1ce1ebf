"""How many bytes of a model's files have arrived, told while they do."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from fsspec.callbacks import Callback

from .shard_events import Fetching

_TELL_S = 1.0


class ByteCount:
    """Bytes of several files that several threads fetch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Any, tuple[int, int | None]] = {}

    def note(self, file: Any, done: int, total: int | None) -> None:
        """Say how many bytes of a file are there; `total` is None where nobody knows how many it has."""
        with self._lock:
            self._files[file] = done, total

    def sums(self) -> tuple[int, int | None]:
        """Bytes that are there, and those of all files that have told their size; None where none has."""
        with self._lock:
            files = list(self._files.values())
        totals = [total for _, total in files if total is not None]
        return sum(done for done, _ in files), sum(totals) if totals else None


class CountingCallback(Callback):
    """Tells a count what fsspec has copied of a file."""

    def __init__(self, count: ByteCount, file: Any) -> None:
        super().__init__()
        self._count, self._file = count, file

    def call(self, *_arguments: Any, **_named: Any) -> None:
        """Take over fsspec's numbers."""
        self._count.note(self._file, self.value, self.size)


def counting_bar(count: ByteCount) -> type[Any]:
    """A class of progress bars for the Hugging Face Hub that draws nothing and tells a count of bytes."""
    from tqdm.auto import tqdm  # noqa: PLC0415 - only where something is fetched

    class CountingBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            named.pop("name", None)  # the hub's own
            super().__init__(*arguments, **named | {"disable": False, "file": _Nowhere()})
            self._tell()

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            self._tell()
            return drawn

        def _tell(self) -> None:
            # The hub has two bars over the same bytes, one of what is received and one of what is written.
            if self.unit == "B" and not str(self.desc).startswith("Reconstruct"):
                count.note(id(self), int(self.n), None if self.total is None else int(self.total))

    return CountingBar


class _Nowhere:
    """A stream for a bar that nobody looks at."""

    def write(self, _text: str) -> None:
        pass

    def flush(self) -> None:
        pass


def arrivals(fetch: Callable[[ByteCount], None], every_s: float = _TELL_S) -> Iterator[Fetching]:
    """Fetch in a thread, and tell of what has arrived.

    Args:
        fetch: brings files here and counts their bytes.
        every_s: seconds between two of what is told.

    Yields:
        What has arrived so far, whenever more has; nothing where all is there at once.

    Raises:
        Exception: whatever `fetch` raises.
    """
    count, start, told = ByteCount(), time.monotonic(), 0
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as thread:
        fetched = thread.submit(fetch, count)
        while not wait([fetched], every_s).done:
            done, total = count.sums()
            if done > told:
                told = done
                yield Fetching(done, total, time.monotonic() - start)
    fetched.result()
