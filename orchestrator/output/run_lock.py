"""One driver at a time on a local output folder."""

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.file_aside import lock_file


@dataclass(frozen=True, slots=True)
class Holder:
    """The driver that held a folder last: where it runs, or ran, and since when."""

    host: str
    pid: int
    since: str

    @property
    def is_alive(self) -> bool | None:
        """Whether its process lives; None where that is another machine's to know."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            return True
        return True


def last_holder(path: Path) -> Holder | None:
    """Read who held a lock last, without taking it; None where nobody did, or it is just being written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Holder(str(record["host"]), int(record["pid"]), str(record["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class RunLock:
    """A lock on a file that ends with the process that holds it, however that ends.

    Two drivers in one folder harm nothing: parts have fixed names and appear whole. They only do the same work
    twice. So a file system without locks is used without one, and then neither driver is alone.

    Args:
        path: of the lock file; it stays behind, and says who held it last.
        passing: for one that only looks or tidies: what the file said of the last run comes back at the end.

    Attributes:
        held: whether no other driver is in the folder; False where the file system has no locks.
    """

    def __init__(self, path: Path, *, passing: bool = False) -> None:
        self._path, self._passing = path, passing
        self._before: str | None = None
        self.held = False

    def __enter__(self) -> Self:
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            self.held = lock_file(self._file.fileno())
        except BlockingIOError:
            holder = self._holder()
            self._file.close()
            raise OutputFolderError(
                f"{self._path.parents[1]}: another run is writing here ({holder}); wait for it or stop it"
            ) from None
        if not self.held:
            return self
        if self._passing:
            self._file.seek(0)
            self._before = self._file.read()
        self._file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": now}, self._file)
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            self._file.truncate(0)
            self._file.write(self._before)
        self._file.close()

    @property
    def in_place(self) -> bool:
        """Whether it is held and still what other drivers find: a folder may be deleted and begun again."""
        try:
            return self.held and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            record = json.loads(self._file.read())
        except json.JSONDecodeError:  # the holder is just writing it
            return "just started"
        return f"process {record['pid']} on {record['host']} since {record['since']}"
