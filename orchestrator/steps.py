"""What a command that computes for minutes is at, told on stderr; what it found goes to stdout and is not touched."""

import io
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from .console import printable

_LINE_S = 30.0


class Steps:
    """One step after the other, each with a number of equal pieces; this one says nothing."""

    def begin(self, what: str, pieces: int = 0) -> None:
        """Begin a step; the one before has ended.

        Args:
            what: the user waits for.
            pieces: that the step will count; 0 where it has none.
        """

    def advance(self) -> None:
        """Count a piece of the step."""

    def end(self) -> None:
        """End the step; nothing of it stays in the way of what is printed next."""


SILENT = Steps()


class ToldSteps(Steps):
    """Tells steps as `submit` tells its own: a bar in place on a terminal, elsewhere plain lines.

    A log gets a line where a step begins, and one every half minute while its pieces are counted.

    Args:
        stream: where to; stderr where it is None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._last_line = 0.0

    def begin(self, what: str, pieces: int = 0) -> None:
        """Begin a step, and tell it."""
        self.end()
        what = printable(what)
        bar: tqdm[Any] = tqdm(
            total=pieces or None,
            desc=what,
            file=self._stream if self._on_terminal else io.StringIO(),
            leave=False,
            dynamic_ncols=self._on_terminal,
            ascii=None if self._on_terminal else True,
            bar_format=None if pieces else "{desc} [{elapsed}]",
        )
        self._bar = bar
        if not self._on_terminal:
            self._say(what)

    def advance(self) -> None:
        """Count a piece, and tell it where the last line is long ago."""
        if self._bar is None:
            return
        self._bar.update()
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_S:
            self._say(str(self._bar))

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(line, file=self._stream, flush=True)
