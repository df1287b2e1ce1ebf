"""A local output folder that a run begins, and that goes again where nothing ran in it."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .names import JOB_FILE, JOB_FOLDER, LOCK_FILE, RUNS_FOLDER, SAMPLES_FILE

if TYPE_CHECKING:
    from .folder import OutputFolder


class Beginning:
    """What stands where an output is to be; made before anything is written there.

    Its `with` block is entered under the folder's lock. Where an exception ends the block, a new folder is removed in
    which no run has left a record or log. Only what a run puts there before these goes; what others put there stays.

    Args:
        folder: a local one.

    Attributes:
        is_new: whether the folder is not there yet, or empty.
    """

    def __init__(self, folder: "OutputFolder") -> None:
        self._path = Path(folder.path)
        self.is_new = not self._path.exists() or not any(self._path.iterdir())
        places = (self._path, *self._path.parents)
        self._missing = [place for place in places if not place.exists()]  # innermost first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runs = self._path.joinpath(*RUNS_FOLDER)
        if kind is not None and self.is_new and not any(runs.glob("*")):
            self._remove()

    def _remove(self) -> None:
        path = self._path
        scratch = path / JOB_FOLDER / "tmp"
        for name in (("README.md",), SAMPLES_FILE, JOB_FILE, LOCK_FILE):  # the lock last
            with suppress(OSError):
                path.joinpath(*name).unlink()
        for place in (scratch, path.joinpath(*RUNS_FOLDER), path / JOB_FOLDER, *self._missing):
            with suppress(OSError):  # there is something else in it, or it was never made
                place.rmdir()
