"""Who hears what happens in a run: the progress bar, the log, the metrics."""

from collections.abc import Sequence

from .fleet_events import FleetEvent
from .ledger import Assignment


class Observer:
    """Hears everything, and does nothing with it; observers override what they care for."""

    def heard(self, event: FleetEvent) -> None:
        """A worker loaded, reported or was lost; told before anything is made of it."""

    def handed_out(self, worker: str, assignment: Assignment) -> None:
        """A worker begins an attempt at a shard."""

    def progress(self, shard_id: int, num_ok: int, num_error: int) -> None:
        """Samples of a shard got their rows."""

    def restarted(self, shard_id: int, reason: str) -> None:
        """An attempt at a shard failed; its rows so far do not count."""

    def say(self, sentence: str) -> None:
        """Tell something that matters."""

    def tick(self) -> None:
        """Time has passed; told about every second, as long as the run goes on."""


class Observers(Observer):
    """Several observers that hear the same, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        """Take over the observers."""
        self._observers = observers

    def heard(self, event: FleetEvent) -> None:
        """Pass it on."""
        for each in self._observers:
            each.heard(event)

    def handed_out(self, worker: str, assignment: Assignment) -> None:
        """Pass it on."""
        for each in self._observers:
            each.handed_out(worker, assignment)

    def progress(self, shard_id: int, num_ok: int, num_error: int) -> None:
        """Pass it on."""
        for each in self._observers:
            each.progress(shard_id, num_ok, num_error)

    def restarted(self, shard_id: int, reason: str) -> None:
        """Pass it on."""
        for each in self._observers:
            each.restarted(shard_id, reason)

    def say(self, sentence: str) -> None:
        """Pass it on."""
        for each in self._observers:
            each.say(sentence)

    def tick(self) -> None:
        """Pass it on."""
        for each in self._observers:
            each.tick()
