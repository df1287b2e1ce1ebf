"""Copies that the workers of a machine share: made once, and there whole or not at all."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from .file_aside import lock_file


def make_once(
    target: Path, write: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists
) -> Path:
    """Make a file or folder of a cache, unless it is there and whole.

    The workers of a machine start together: one writes, the others wait for its copy. On a file system without locks
    each writes its own, and the first to finish places it.

    Args:
        target: in a folder that holds nothing else; the folder is made if it is missing.
        write: makes the file or folder at the path it is given; the parent exists.
        is_whole: tells of what is at `target` whether it may stay. What may not is made anew; whoever has it open can
            read on.

    Returns:
        `target`.

    Raises:
        OSError: the cache cannot be written, or what `write` raises; nothing is left then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        alone = lock_file(lock.fileno(), wait=True)
        if target.exists():
            if is_whole(target):
                return target
            target.rename(target.parent / f"partial-{uuid.uuid4().hex}")
        if alone:
            for leftover in target.parent.glob("partial*"):  # of workers that were killed
                _remove(leftover)
        partial = target.parent / f"partial-{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            write(partial / target.name)
            _place(partial / target.name, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _place(copy: Path, target: Path) -> None:
    """Move a finished copy to its place; without locks another worker's may be there already, and is as good."""
    try:
        copy.rename(target)
    except OSError:
        if not target.exists():
            raise


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)
