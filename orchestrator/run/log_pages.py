"""Where the lines of a run's log go: pages of bounded size beside its record, on any storage."""

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from toprovar_batch.orchestrator.output.folder import OutputFolder
from toprovar_batch.worker.storage import storage_errors

PAGE_BYTES = 1 << 20
NUM_PAGES = 16  # the oldest goes when there are more
UPLOAD_EVERY_S = 10.0
_PATIENCE_S = 30.0  # for the last upload, at the end of a run
_PAGE_NAME = re.compile(r"(\d{8}T\d{6}Z-\d+)(?:\.(\d+))?\.log")


def page_name(stem: str, number: int) -> str:
    """Name a page of the run whose record is `stem`.json; counted from 1."""
    return f"{stem}.log" if number == 1 else f"{stem}.{number}.log"


def newest_pages(names: Iterable[str]) -> list[str]:
    """Choose the pages of the latest run among the names of files, in the order in which they were written."""
    pages = [match for match in map(_PAGE_NAME.fullmatch, names) if match]
    latest = max((match[1] for match in pages), default=None)
    own = (match for match in pages if match[1] == latest)
    return [match[0] for match in sorted(own, key=lambda match: int(match[2] or 1))]


class LogPages:
    """Takes lines, and never raises: a log that cannot be written ends no run.

    A local page grows line by line. Elsewhere the page under way is written anew every ten seconds, if it has grown, by a
    thread. So a driver that is killed keeps all lines, or those of up to ten seconds before.

    Args:
        folder: holds the pages.
        names: of the folder in `folder`.
        stem: of the pages' names.
        upload_every_s: seconds between uploads.

    Attributes:
        trouble: why lines were lost, or None.
    """

    def __init__(
        self,
        folder: OutputFolder,
        names: tuple[str, ...],
        stem: str,
        upload_every_s: float = UPLOAD_EVERY_S,
    ) -> None:
        self._folder, self._names, self._stem = folder, names, stem
        self._every_s = upload_every_s
        self.trouble: str | None = None
        self._number, self._size = 0, PAGE_BYTES
        self._file: FileIO | None = None
        self._lock = threading.Lock()
        self._unsent: dict[int, bytearray] = {}  # remote pages by number; the last one stays and grows
        self._stored: set[int] = set()
        self._has_grown, self._closed = False, threading.Event()
        self._uploader: threading.Thread | None = None
        if not folder.is_local:
            self._uploader = threading.Thread(target=self._upload_until_closed, name="run-log", daemon=True)
            self._uploader.start()

    def add(self, line: str) -> None:
        """Add a line, which has no end of its own."""
        text = f"{line}\n".encode(errors="backslashreplace")
        try:
            if self._folder.is_local:
                self._write(text)
            else:
                self._keep(text)
        except (OSError, ValueError) as error:  # a ValueError: the file could not be opened again
            self.trouble = str(error)

    def close(self) -> None:
        """Write what is left; waits half a minute at most."""
        self._closed.set()
        if self._uploader is not None:
            self._uploader.join(_PATIENCE_S)
        if self._file is not None:
            self._file.close()

    def _path(self, number: int) -> str:
        return self._folder.inside(*self._names, page_name(self._stem, number))

    def _is_full(self, text: bytes) -> bool:
        """Count a line in; says whether it begins a page."""
        begins = self._size + len(text) > PAGE_BYTES
        self._size = len(text) + (0 if begins else self._size)
        self._number += begins
        return begins

    def _write(self, text: bytes) -> None:
        if self._is_full(text) or self._file is None:
            path = Path(self._path(self._number))
            if self._file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._file.close()
            self._file = FileIO(path, "a")  # unbuffered: what is written survives the process
            Path(self._path(self._number - NUM_PAGES)).unlink(missing_ok=True)
        self._file.write(text)

    def _keep(self, text: bytes) -> None:
        with self._lock:
            if self._is_full(text):
                self._unsent[self._number] = bytearray()
                for number in list(self._unsent):  # the storage may not answer for long
                    if number <= self._number - NUM_PAGES:
                        del self._unsent[number]
            self._unsent[self._number] += text
            self._has_grown = True

    def _upload_until_closed(self) -> None:
        while not self._closed.wait(self._every_s):
            self._upload()
        self._upload()

    def _upload(self) -> None:
        """Write all pages that have grown, and remove the oldest."""
        with self._lock:
            if not self._has_grown:
                return
            self._has_grown = False
            pages = {number: bytes(page) for number, page in self._unsent.items()}
        filesystem, last = self._folder.filesystem, max(pages)
        try:
            for number, page in pages.items():
                filesystem.pipe_file(self._path(number), page)
                self._stored.add(number)
                if number < last:  # it is full
                    with self._lock:
                        self._unsent.pop(number, None)
            for number in sorted(self._stored):
                if number <= last - NUM_PAGES:
                    with suppress(FileNotFoundError):
                        filesystem.rm_file(self._path(number))
                    self._stored.discard(number)
        except storage_errors(ValueError) as error:
            self._has_grown = True
            self.trouble = str(error)
