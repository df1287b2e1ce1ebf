"""Files that are written aside before they are published, and the locks that tell whether their process lives."""

import fcntl
import hashlib
import os
import socket
import tempfile
import uuid
from collections.abc import Callable
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

    A killed process leaves its file behind. In a folder of the output, the next run sweeps it. In a folder that is
    nobody's alone, the next file aside sweeps it: a file there is locked as long as its process lives.

    Args:
        name: of the file that it becomes.
        scratch: folder of the file, made if it is missing; None for the system's temporary folder.
        beside: the folder is the target's own, which is there, and whoever may read the target may read the file.
    """

    def __init__(self, name: str, scratch: str | None, *, beside: bool = False) -> None:
        self._name, self._scratch, self._beside = name, scratch, beside
        self._descriptor: int | None = None

    def __enter__(self) -> Path:
        unique = f"{uuid.uuid4().hex}{_SUFFIX}"
        if self._beside and self._scratch is not None:
            # A short name: the target's may be as long as the file system takes.
            return self._locked(Path(self._scratch), f".{_PREFIX}{_machine()}-", unique, 0o666)
        name = f"{self._name}.{unique}"
        if self._scratch is None:
            return self._locked(Path(tempfile.gettempdir()), _PREFIX, name, 0o600)
        folder = Path(self._scratch)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / name
        self._path.touch(exist_ok=False)  # readable by whoever may read the folder
        return self._path

    def _locked(self, folder: Path, prefix: str, name: str, mode: int) -> Path:
        """Make the file with a lock, and remove those of a name with this prefix that have none any more."""
        sweep_orphans(folder, prefix)
        self._path = folder / f"{prefix}{name}"
        # The file takes the name that is swept only once it is locked.
        unlocked = self._path.with_suffix(".new")
        self._descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        lock_file(self._descriptor)
        unlocked.rename(self._path)
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)


def sweep_orphans(folder: Path, prefix: str = _PREFIX) -> None:
    """Remove this user's files aside whose process is gone; all others stay.

    Args:
        folder: shared by processes and users, such as the system's temporary folder.
        prefix: of their names.
    """
    for path in folder.glob(f"{prefix}*{_SUFFIX}"):
        with suppress(OSError):  # in use, or just removed by another process, or not ours to open
            _visit_orphan(path, Path.unlink)


def orphans(folder: Path, prefix: str = _PREFIX) -> list[Path]:
    """This user's files aside whose process is gone, as `sweep_orphans` would remove them."""
    found = []
    for path in sorted(folder.glob(f"{prefix}*{_SUFFIX}")):
        with suppress(OSError):
            if _visit_orphan(path):
                found.append(path)
    return found


def _machine() -> str:
    """Of this machine's name: a folder may be seen by others, and not each file system tells them of locks."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _visit_orphan(path: Path, visit: Callable[[Path], None] = lambda _: None) -> bool:
    """Do something with a file aside while it is ours, if it is this user's and its process is gone; whether it was.

    Raises:
        OSError: it is in use, gone, or not ours to open.
    """
    # Neither a link nor a pipe of that name may lead or hold us anywhere.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_orphan = os.fstat(descriptor).st_uid == os.getuid() and lock_file(descriptor)
        if is_orphan:
            visit(path)
        return is_orphan
    finally:
        os.close(descriptor)
