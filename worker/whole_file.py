"""Files that a command writes where the user names them: there whole, or as they were before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from .file_aside import FileAside
from .part_file import publish_file


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path to write at; what is there when the block ends takes the target's place in one step.

    When the block raises, the target stays as it was, or stays missing. A link stays a link, and a file keeps its
    mode. What is no file, such as /dev/stdout, is written itself. What a killed process left beside a file is removed by
    the next that writes there.

    Args:
        target: the file to write; its folder must be there.

    Raises:
        OSError: the folder is missing or cannot be written, or the file that is there is read-only.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    place = Path(os.path.realpath(target))
    if not place.parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(place.parent))
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(13, "Permission denied", str(place))
    with FileAside(place.name, str(place.parent), beside=True) as aside:
        yield aside
        if place.exists():
            shutil.copymode(place, aside)
        publish_file(aside, LocalFileSystem(), str(place))


def write_whole(target: Path, text: str) -> None:
    """Write a text file in UTF-8, as `whole_file` does.

    Raises:
        OSError: likewise.
    """
    with whole_file(target) as path:
        path.write_text(text, encoding="utf-8")
