"""The progress bar of a run."""

import io
import re
import sys
import time
from collections import Counter
from typing import TextIO

from tqdm import tqdm

from toprovar_batch.orchestrator.console import printable
from toprovar_batch.worker.shard_events import Fetching
from toprovar_batch.worker.words import counted

from .fleet_events import Arriving, Dismissed, FleetEvent, Loaded, LoadFailed, Lost, Placed, Waiting, Worker
from .observer import Observer

_REDRAW_S = 0.2
_LINE_S = 30.0
_WARMING = "warming up"


class ProgressBar(Observer):
    """One bar over samples: images/s, failed samples, time left.

    Until the first row there is no bar at 0% but what the workers are at: placed, fetching the model's files, loading,
    warming up. On a terminal it redraws in place; elsewhere (a log file) it writes a plain line every half minute.

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
        self._stages: dict[Worker, str] = {}
        self._stage = ""  # that was told last; none is told once there are rows
        self._has_rows = False
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

    def heard(self, event: FleetEvent) -> None:
        """Tell what the workers are at before the first row."""
        match event:
            case Placed(worker):
                self._stages[worker] = "loading the model"
            case Arriving(worker, state):
                self._stages[worker] = _arrived(state)
            case Waiting(worker):
                self._stages[worker] = "waiting for memory of a GPU"
            case Loaded(worker):
                self._stages[worker] = _WARMING
            case LoadFailed(worker) | Lost(worker) | Dismissed(worker):
                self._stages.pop(worker, None)
            case _:
                return
        self._tell_stage()

    def starts(self, what: str) -> None:
        """Tell what happens before there are workers."""
        self._show_stage(what)

    def _tell_stage(self) -> None:
        stages = Counter(self._stages.values())
        self._show_stage(
            ", ".join(f"{counted(count, 'worker')} {stage}" for stage, count in sorted(stages.items()))
        )

    def _show_stage(self, stage: str) -> None:
        """Show a stage in the place of the bar; a log gets what is new, and bytes every half minute."""
        if self._has_rows or not stage or stage == self._stage:
            return
        only_bytes = _kind(stage) == _kind(self._stage)
        self._stage = stage
        if self._on_terminal:
            self._bar.bar_format = "{desc} [{elapsed}]"
            self._bar.set_description_str(stage)
        elif not only_bytes or time.monotonic() - self._last_line > _LINE_S:
            self._last_line = time.monotonic()
            self.say(stage)

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
            self._bar.write(printable(sentence), file=self._stream)
        else:
            print(printable(sentence), file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.set_postfix(failed=self._errors)
        if not self._on_terminal and self._has_rows:
            self.say(str(self._bar))
        self._bar.close()

    def _advance(self, rows: int, errors: int) -> None:
        if rows > 0 and not self._has_rows:
            self._has_rows = True
            self._bar.unpause()  # what came before is no part of the speed
            if self._on_terminal:
                self._bar.bar_format = None
                self._bar.set_description_str("", refresh=False)
        self._errors += errors
        self._bar.set_postfix(failed=self._errors, refresh=False)
        if rows < 0:
            self._bar.n += rows
            self._bar.last_print_n = min(self._bar.last_print_n, self._bar.n)
        self._bar.update(max(rows, 0))
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_S:
            self._last_line = time.monotonic()
            self.say(str(self._bar))


def _arrived(state: Fetching) -> str:
    """Bytes that have arrived, and how fast."""
    total = "" if state.total is None else f" of {state.total / 1e9:.2f}"
    rate = state.done / state.seconds / 1e6 if state.seconds else 0.0
    return f"fetching weights: {state.done / 1e9:.2f}{total} GB at {rate:.0f} MB/s"


def _kind(stage: str) -> str:
    """A stage without the numbers of its bytes."""
    return re.sub(r"[\d.]+", "#", stage)
