"""The progress bar of a run."""

import io
import sys
import time
from collections import Counter
from typing import TextIO

from tqdm import tqdm

from .observer import Observer

_REDRAW_S = 0.2
_LINE_S = 30.0


class ProgressBar(Observer):
    """One bar over samples: images/s, failed samples, time left.

    On a terminal it redraws in place; elsewhere (a log file) it writes a plain line every half minute.

    Args:
        total: samples of the job.
        done: of them, published by earlier runs.
        errors: of these, error rows.
        stream: where to draw.
    """

    def __init__(self, total: int, done: int, errors: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._errors = errors
        self._under_way: dict[int, Counter[str]] = {}
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            file=self._stream if self._on_terminal else io.StringIO(),
            unit="image",
            dynamic_ncols=self._on_terminal,
            ascii=None if self._on_terminal else True,
            mininterval=_REDRAW_S if self._on_terminal else float("inf"),
            postfix={"failed": errors},
        )

    def progress(self, shard_id: int, num_ok: int, num_error: int) -> None:
        """Count rows of a shard that is under way."""
        self._under_way.setdefault(shard_id, Counter()).update(rows=num_ok + num_error, errors=num_error)
        self._advance(num_ok + num_error, num_error)

    def restarted(self, shard_id: int, reason: str) -> None:
        """Take the rows of a shard back that has to begin again."""
        lost = self._under_way.pop(shard_id, Counter())
        self._advance(-lost["rows"], -lost["errors"])
        self.say(f"shard {shard_id} begins again: {reason}")

    def say(self, sentence: str) -> None:
        """Write a line above the bar."""
        if self._on_terminal:
            self._bar.write(sentence, file=self._stream)
        else:
            print(sentence, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.set_postfix(failed=self._errors)
        if not self._on_terminal:
            self.say(str(self._bar))
        self._bar.close()

    def _advance(self, rows: int, errors: int) -> None:
        self._errors += errors
        self._bar.set_postfix(failed=self._errors, refresh=False)
        if rows < 0:
            self._bar.n += rows
            self._bar.last_print_n = min(self._bar.last_print_n, self._bar.n)
        self._bar.update(max(rows, 0))
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_S:
            self._last_line = time.monotonic()
            self.say(str(self._bar))
