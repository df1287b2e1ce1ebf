"""The log of a run: what the driver and its workers did, with the ids of shards and samples."""

import logging
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from toprovar_batch.orchestrator.console import printable
from toprovar_batch.orchestrator.output.folder import OutputFolder
from toprovar_batch.orchestrator.output.names import RUNS_FOLDER
from toprovar_batch.worker.shard_events import Committed, Declined, Progress, Refused, Started
from toprovar_batch.worker.words import counted

from .fleet_events import Dismissed, FleetEvent, Loaded, LoadFailed, Lost, Reported
from .ledger import Assignment
from .log_pages import LogPages
from .observer import Observer

_LINE_LENGTH = 4000  # characters of one entry
_ID_LENGTH = 100
_NAMED = 64  # sample ids of one entry


class _OnPages(logging.Handler):
    """Writes entries as lines that any terminal can show, credentials masked."""

    def __init__(self, pages: LogPages) -> None:
        super().__init__()
        self._pages = pages
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write an entry."""
        self._pages.add(printable(self.format(record))[:_LINE_LENGTH])


class Journal(Observer):
    """Writes what it hears into the run's log; leaving its `with` block ends the log.

    Args:
        folder: the output.
        stem: name of the run's record, without its ending.
        begin: the first entry.
        complain: is told once when lines are lost.
    """

    def __init__(
        self, folder: OutputFolder, stem: str, begin: str, complain: Callable[[str], None] | None = None
    ) -> None:
        self._complain, self._complained = complain, False
        self._pages = LogPages(folder, RUNS_FOLDER, stem)
        self._log = logging.Logger(stem)  # noqa: LOG001 - one of the process would pass entries on, and stay
        self._log.addHandler(_OnPages(self._pages))
        self._log.info(begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._log.info("the run ends")
        else:
            self._log.error("the run ends with %s: %s", type(error).__name__, error)
        self._pages.close()
        self.tick()

    def heard(self, event: FleetEvent) -> None:
        """Write what a worker did."""
        match event:
            case Loaded(worker, description):
                device = description["engine"].get("device", "a device that it does not name")
                self._log.info(
                    "%s has loaded on %s, engine %s", worker.name, device, description["engine_hash"]
                )
            case LoadFailed(_, reason):
                self._log.warning("a worker could not load: %s", reason)
            case Lost(worker, shard_id):
                name = "exception" if event.raised else "death"
                what = "worker lost over another shard" if event.innocent else name
                self._log.warning(
                    "shard %d lost by %s (%s): %s; in flight: %s",
                    shard_id,
                    worker.name,
                    what,
                    event.reason,
                    _ids(event.in_flight),
                )
            case Dismissed(worker):
                self._log.info(
                    "%s is ended, and no shard is lost with it", worker.name or "a worker that was loading"
                )
            case Reported(worker, shard_id):
                self._reported(worker.name, shard_id, event)

    def _reported(self, worker: str, shard_id: int, report: Reported) -> None:
        match report.event:
            case Started(sample_ids):
                self._log.info("shard %d enters the engine of %s: %s", shard_id, worker, _ids(sample_ids))
            case Progress() as progress:
                for sample_id, reason in progress.failed.items():
                    self._log.warning(
                        "shard %d, sample %s is an error row: %s", shard_id, _short(sample_id), reason
                    )
            case Refused(reason, tries_left):
                left = counted(tries_left, "try", "tries")
                self._log.warning("shard %d is not taken by the output, %s left: %s", shard_id, left, reason)
            case Declined(path, reason):
                self._log.warning("shard %d is left alone, %s is damaged: %s", shard_id, path, reason)
            case Committed(stats, num_bytes):
                self._log.info(
                    "shard %d published by %s: attempt %d, %s, %d with an image, %d bytes, %.1f s",
                    shard_id,
                    worker,
                    stats.attempt,
                    counted(stats.rows, "row"),
                    stats.ok,
                    num_bytes,
                    stats.wall_s,
                )

    def handed_out(self, worker: str, assignment: Assignment) -> None:
        """Write which attempt at a shard goes where."""
        more = "".join(f"; suspects: {_ids(group)}" for group in assignment.suspects)
        more += f"; set aside: {_ids(assignment.poisoned)}" if assignment.poisoned else ""
        self._log.info(
            "shard %d goes to %s, attempt %d%s", assignment.shard_id, worker, assignment.attempt, more
        )

    def restarted(self, shard_id: int, reason: str) -> None:
        """Write that a shard has to begin again."""
        self._log.warning("shard %d begins again: %s", shard_id, reason)

    def say(self, sentence: str) -> None:
        """Write what the user is told."""
        self._log.info("%s", sentence)

    def tick(self) -> None:
        """Tell once that lines are lost."""
        if self._pages.trouble is not None and not self._complained and self._complain is not None:
            self._complained = True
            self._complain(f"Warning: the run's log cannot be written: {self._pages.trouble}")


def _ids(sample_ids: Collection[str]) -> str:
    """Name samples, the first of them where they are many."""
    shown = [_short(sample_id) for sample_id, _ in zip(sample_ids, range(_NAMED), strict=False)]
    more = f" and {len(sample_ids) - len(shown)} more" if len(sample_ids) > len(shown) else ""
    return (", ".join(shown) or "no sample") + more


def _short(sample_id: str) -> str:
    return sample_id if len(sample_id) <= _ID_LENGTH else f"{sample_id[:_ID_LENGTH]}..."
