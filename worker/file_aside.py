"""Files that are written aside before they are published, and the locks that tell whether their process lives."""

import fcntl
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_PREFIX = "toprovar-batch-"
_SUFFIX = ".tmp"


def lock_file(descriptor: int, *, wait: bool = False) -> bool:
    """Take the exclusive lock of an open file; it ends with the file, and with its process.

    Args:
        descriptor: of the file.
        wait: until the lock is free.

    Returns:
        Whether it is held. False where the file system has no locks.

    Raises:
        BlockingIOError: another one holds it; never with `wait`.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


class FileAside:
    """An empty file of a name that nobody else has; leaving the block removes it if it is still there.

    A killed process leaves its file behind. In a folder of the output, the next run sweeps it. In the system's
    temporary folder, the next file aside sweeps it: a file there is locked as long as its process lives.

    Args:
        name: of the file that it becomes.
        scratch: folder of the file, made if it is missing; None for the system's temporary folder.
    """

    def __init__(self, name: str, scratch: str | None) -> None:
        self._name, self._scratch = name, scratch
        self._descriptor: int | None = None

    def __enter__(self) -> Path:
        name = f"{self._name}.{uuid.uuid4().hex}{_SUFFIX}"
        if self._scratch is not None:
            folder = Path(self._scratch)
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / name
            self._path.touch(exist_ok=False)  # readable by whoever may read the folder
            return self._path
        folder = Path(tempfile.gettempdir())
        sweep_orphans(folder)
        self._path = folder / f"{_PREFIX}{name}"
        # The file takes the name that is swept only once it is locked.
        unlocked = self._path.with_suffix(".new")
        self._descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        lock_file(self._descriptor)
        unlocked.rename(self._path)
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)


def sweep_orphans(folder: Path) -> None:
    """Remove this user's files aside whose process is gone; all others stay.

    Args:
        folder: shared by processes and users, such as the system's temporary folder.
    """
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # in use, or just removed by another process, or not ours to open
            _remove_orphan(path)


def _remove_orphan(path: Path) -> None:
    # Neither a link nor a pipe of that name may lead or hold us anywhere.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.getuid() and lock_file(descriptor):
            path.unlink()
    finally:
        os.close(descriptor)
