"""Streams that may be closed or full without ending the run that reports on them."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class ForgivingStream:
    """Passes everything on to a stream until that fails, and nothing from then on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # full, a pipe without a reader; closed
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush, or lose the text."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        # What the stream still holds would fail again when the interpreter ends, and change the exit code.
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = io.StringIO()


@contextlib.contextmanager
def forgiving(name: str) -> Iterator[None]:
    """Make "stderr" or "stdout" forgiving for the length of the block; also where the process has none."""
    former = getattr(sys, name)
    if former is None:
        # It takes the descriptor of the stream, so that no file of the run gets it, and with it what others write there.
        former = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it stays for the process
    setattr(sys, name, ForgivingStream(former))
    try:
        yield
    finally:
        setattr(sys, name, former)
