"""The main loop of a run: hand out shards, listen, and let the ledger decide what follows.

`ledger.py` decides, `fleet.py` talks to Ray; both are dull on purpose.
"""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from toprovar_batch.worker.actor import Committed, Progress, ShardTask
from toprovar_batch.worker.errors import RunFailedError, UserError
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.words import counted

from .engine_watch import EngineWatch
from .fleet import Fleet, FleetEvent, Loaded, LoadFailed, Lost, Reported
from .ledger import Assignment, LoadGuard, ShardLedger, Trouble
from .stop_signals import StopSignals

_POLL_S = 0.5


class Observer(Protocol):
    """Who shows the run to the user."""

    def progress(self, shard_id: int, num_ok: int, num_error: int) -> None:
        """Samples of a shard got their rows."""

    def restarted(self, shard_id: int, reason: str) -> None:
        """An attempt at a shard failed; its rows so far do not count."""

    def say(self, sentence: str) -> None:
        """Tell something that matters."""


@dataclass
class Outcome:
    """What a run came to, so far or in the end.

    Attributes:
        committed: stats of every shard published in this run, by shard id.
        failed: shard id -> why it was given up.
        incidents: every failed attempt and load: what, where and why.
        engines: worker name -> the description of its engine, as of its last shard.
        engine_hashes: worker name -> the hash that the footers of its parts carry.
        stopped_by: the signal that ended the run early, or None.
        num_bytes: published.
        num_workers: most workers that were loaded at one time.
    """

    committed: dict[int, ShardStats] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    engine_hashes: dict[str, str] = field(default_factory=dict)
    stopped_by: signal.Signals | None = None
    num_bytes: int = 0
    num_workers: int = 0

    def without(self, missing: Mapping[int, str]) -> "Outcome":
        """The same, but for shards that turned out to be not there.

        Args:
            missing: shard id -> why it counts as given up.
        """
        committed = {shard_id: stats for shard_id, stats in self.committed.items() if shard_id not in missing}
        return replace(self, committed=committed, failed={**self.failed, **missing})


class Dispatcher:
    """One run over the shards of a ledger.

    Args:
        ledger: the shards to do.
        fleet: the workers.
        guard: counts failures to load.
        make_task: turns an assignment into what a worker needs.
        observer: shows what happens.
        watch: tells what the user should know of the engines.
        outcome: filled as things happen, so that it is there however the run ends; None makes one.
    """

    def __init__(
        self,
        ledger: ShardLedger,
        fleet: Fleet,
        guard: LoadGuard,
        make_task: Callable[[Assignment], ShardTask],
        observer: Observer,
        watch: EngineWatch,
        outcome: Outcome | None = None,
    ) -> None:
        self._ledger, self._fleet, self._guard = ledger, fleet, guard
        self._make_task, self._observer, self._watch = make_task, observer, watch
        self._told: set[str] = set()
        self.outcome = outcome or Outcome()

    def run(self) -> Outcome:
        """Work until every shard is published or given up, or the user stops the run.

        Returns:
            What happened; failed shards are in it, not raised.

        Raises:
            UserError: no worker can load the model or reach the output, for a reason that the user can mend.
            RunFailedError: no worker can load the model, for any other reason.
        """
        with StopSignals() as signals:
            try:
                while self._ledger.num_open and not signals.stopping:
                    if not signals.draining:
                        self._hire()
                        self._hand_out()
                    elif not self._drain():
                        break
                    for event in self._fleet.wait(_POLL_S):
                        self._handle(event)
            finally:
                self._fleet.dismiss_all()
        self.outcome.stopped_by = signals.last if self._ledger.num_open else None
        return self.outcome

    def _hire(self) -> None:
        """Start workers while there is room for them and work that none of the coming ones will take."""
        workers = self._fleet.workers
        coming = self._fleet.in_phase("placing", "loading", "idle")
        wanted = min(self._fleet.room() - len(workers), self._ledger.num_waiting - len(coming))
        missing = self._fleet.starving_for()
        if missing is not None:
            self._say_once("starving", f"still waiting for {missing}")
        if self._guard.may_start:
            for _ in range(wanted):
                self._fleet.start_worker()
        elif not workers:
            last = self.outcome.incidents[-1]["reason"]
            raise RunFailedError(
                f"{counted(self._guard.failures_in_row, 'worker')} in a row could not load: {last}"
            )

    def _drain(self) -> bool:
        """Let the shards under way finish; False when none is left."""
        busy = len(self._fleet.in_phase("busy"))
        if busy:
            self._say_once(
                "drain", f"draining: finishing {counted(busy, 'shard')} under way; press again to stop now"
            )
        return busy > 0

    def _say_once(self, topic: str, sentence: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self._observer.say(sentence)

    def _hand_out(self) -> None:
        for worker in self._fleet.in_phase("idle"):
            assignment = self._ledger.take()
            if assignment is not None:
                self._fleet.start_shard(worker, self._make_task(assignment))

    def _handle(self, event: FleetEvent) -> None:
        match event:
            case Loaded(worker, description):
                self._guard.loaded()
                loaded = len(self._fleet.in_phase("idle", "busy"))
                self.outcome.num_workers = max(self.outcome.num_workers, loaded)
                self.outcome.engines[worker.name] = description["engine"]
                self.outcome.engine_hashes[worker.name] = description["engine_hash"]
                for sentence in self._watch.notice(worker.name, description["engine"]):
                    self._observer.say(sentence)
            case LoadFailed(_, reason, mistake):
                self._guard.failed()
                self._record("load", None, reason)
                if mistake is not None and not self._guard.ever_loaded:
                    raise mistake
            case Reported(worker, shard_id, Committed(stats, num_bytes, engine)):
                self._ledger.commit(shard_id)
                self.outcome.committed[shard_id] = stats
                self.outcome.num_bytes += num_bytes
                self.outcome.engines[worker.name] = engine
            case Reported(_, shard_id, Progress() as progress):
                self._observer.progress(shard_id, progress.num_ok, progress.num_error)
            case Lost(mistake=UserError() as mistake):
                raise mistake
            case Lost(worker, shard_id, in_flight, raised, reason):
                kind: Trouble = "exception" if raised else "death"
                self._record(kind, shard_id, reason, worker=worker.name, in_flight=in_flight)
                self._ledger.fail(shard_id, in_flight, kind, reason)
                self.outcome.failed = dict(self._ledger.failed)
                self._observer.restarted(shard_id, reason)

    def _record(self, kind: str, shard_id: int | None, reason: str, **more: Any) -> None:
        self.outcome.incidents.append({"kind": kind, "shard_id": shard_id, "reason": reason, **more})
