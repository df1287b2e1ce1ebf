"""The main loop of a run: hand out shards, listen, and let the ledger decide what follows.

`ledger.py` decides, `fleet.py` talks to Ray; both are dull on purpose.
"""

import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from toprovar_batch.worker.errors import OutputFolderError, RunFailedError, UserError
from toprovar_batch.worker.shard_events import Committed, Declined, Progress, Refused, ShardTask
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.words import counted

from .breaker import Breaker, Quarantine
from .engine_watch import EngineWatch
from .fleet import Fleet
from .fleet_events import FleetEvent, Loaded, LoadFailed, Lost, Reported, Waiting, Worker
from .ledger import Assignment, ShardLedger, Trouble
from .load_guard import LoadGuard
from .observer import Observer
from .stop_signals import StopSignals

_POLL_S = 0.5
_SHARES = 4  # a worker is given at most this part of what would be left for it, so that all end together


class Published(Protocol):
    """What the output says; `published.py` has the real one."""

    def find(self, shard_ids: Collection[int]) -> Mapping[int, ShardStats]:
        """Look which of some shards have a whole part that was published in this run."""

    def is_ours(self) -> bool:
        """Whether the output still belongs to the job."""


@dataclass
class Outcome:
    """What a run came to, so far or in the end.

    Attributes:
        committed: stats of every shard published in this run, by shard id.
        failed: shard id -> why it was given up.
        damaged: shard id -> why the part that is there was left alone, when rows of it were to be kept.
        incidents: every failed attempt and load: what, where and why.
        engines: worker name -> the description of its engine, as of its last shard.
        engine_hashes: worker name -> the hash that the footers of its parts carry.
        stopped_by: the signal that ended the run early, or None.
        num_bytes: published.
        num_workers: most workers that were loaded at one time.
    """

    committed: dict[int, ShardStats] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
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
        published: what the output says, whatever a worker said last; None: nobody looks.
        outcome: filled as things happen, so that it is there however the run ends; None makes one.
        together: most shards that a worker is given at a time; more than one where shards are small.
    """

    def __init__(
        self,
        ledger: ShardLedger,
        fleet: Fleet,
        guard: LoadGuard,
        make_task: Callable[[Assignment], ShardTask],
        observer: Observer,
        watch: EngineWatch,
        published: Published | None = None,
        outcome: Outcome | None = None,
        together: int = 1,
    ) -> None:
        self._ledger, self._fleet, self._guard = ledger, fleet, guard
        self._make_task, self._observer, self._watch = make_task, observer, watch
        self._published, self._together = published, together
        self._breaker, self._num_quarantined = Breaker(), 0
        self._told: set[str] = set()
        self._refusing: set[int] = set()  # shards that the output does not take just now
        self._refused: str | None = None  # why it took one not at all
        self._mistake: UserError | None = None  # of a place where the output is not
        self.outcome = outcome or Outcome()

    def run(self) -> Outcome:
        """Work until every shard is published or given up, or the user stops the run.

        Returns:
            What happened; failed shards are in it, not raised.

        Raises:
            UserError: no worker can load the model or reach the output, for a reason that the user can mend.
            RunFailedError: no worker can load the model, for any other reason, or be placed, or none makes an image; or the output
                does not take a part. The shards under way have been finished then.
        """
        with StopSignals() as signals:
            try:
                while self._ledger.num_open and not signals.stopping:
                    if signals.draining or self._refused is not None:
                        if not self._drain(signals.draining):
                            break
                    elif not self._refusing:
                        self._hire()
                        self._hand_out()
                    self._observer.tick()
                    for event in self._fleet.wait(_POLL_S):
                        self._handle(event)
            finally:
                self._fleet.dismiss_all()
                self._believe(self._ledger.unsettled)
        if self._refused is not None:
            raise RunFailedError(f"the output does not take a part: {self._refused}")
        self.outcome.stopped_by = signals.last if self._ledger.num_open else None
        return self.outcome

    def _hire(self) -> None:
        """Start workers while there is room for them and work that none of the coming ones will take."""
        workers = self._fleet.workers
        coming = self._fleet.in_phase("placing", "loading", "idle")
        room = self._fleet.room() - self._num_quarantined
        if room <= 0 and not workers:
            if self._mistake is not None:
                raise self._mistake
            raise RunFailedError(f"no worker is left that makes images: {self._last_reason()}")
        wanted = min(room - len(workers), self._ledger.num_waiting - len(coming))
        self._tell_of_starving()
        if self._guard.exhausted and not workers:
            count = counted(self._guard.failures_in_row, "worker")
            raise RunFailedError(f"{count} in a row could not load: {self._last_reason()}")
        for _ in range(self._guard.may_start(wanted, len(self._fleet.in_phase("placing", "loading")))):
            self._fleet.start_worker()

    def _tell_of_starving(self) -> None:
        """Say what all workers wait for, each time after twice as long; end the run where it will not come."""
        starving = self._fleet.starving()
        if starving is None:
            return
        if starving.for_good:
            raise RunFailedError(f"Ray on this machine has lost its node: there is no {starving.missing}")
        doubling = int(starving.waited_s).bit_length()
        self._say_once(
            f"starving {doubling}",
            f"still waiting for a {starving.missing}, for {starving.waited_s:.0f} seconds now",
        )

    def _last_reason(self) -> str:
        reason: str = self.outcome.incidents[-1]["reason"]
        return reason

    def _quarantine(self, found: Quarantine) -> None:
        """Give the samples of a broken place back, and go on with a worker fewer; end where there is no other place."""
        if found.everywhere:
            raise RunFailedError(
                f"{counted(found.failures, 'worker')} in a row made no image: {found.reason}"
            )
        self._num_quarantined += 1
        self._ledger.give_back(found.shard_ids)
        self.outcome.failed = dict(self._ledger.failed)
        self._observer.say(
            f"{counted(found.failures, 'worker')} in a row made no image on {found.host}, so the run goes on with one worker "
            f"fewer: {found.reason}"
        )

    def _drain(self, by_signal: bool) -> bool:
        """Let the shards under way finish; False when none is left."""
        busy = sum(max(1, len(worker.open)) for worker in self._fleet.in_phase("busy"))
        if busy:
            more = "; press again to stop now" if by_signal else ""
            self._say_once("drain", f"draining: finishing {counted(busy, 'shard')} under way{more}")
        return busy > 0

    def _say_once(self, topic: str, sentence: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self._observer.say(sentence)

    def _hand_out(self) -> None:
        """Give idle workers a shard, and busy ones the shard after before they have nothing to do."""
        for workers, fresh in ((self._fleet.in_phase("idle"), False), (self._fleet.ready_for_more(), True)):
            for worker in workers:
                assignments = self._take(fresh=fresh)
                if assignments:
                    self._fleet.start_shards(worker, [self._make_task(each) for each in assignments])
                for assignment in assignments:
                    self._observer.handed_out(worker.name, assignment)

    def _take(self, *, fresh: bool) -> list[Assignment]:
        """Take the next shard, with those behind it as long as enough are left for all workers."""
        first = self._ledger.take(fresh=fresh)
        if first is None or first.attempt > 1:
            return [first] if first else []
        share = self._ledger.num_waiting // (_SHARES * max(1, self._fleet.room()))
        more = (self._ledger.take(fresh=True) for _ in range(min(self._together - 1, share)))
        return [first, *(assignment for assignment in more if assignment is not None)]

    def _handle(self, event: FleetEvent) -> None:
        self._observer.heard(event)
        match event:
            case Loaded(worker, description):
                self._loaded(worker, description)
            case Waiting(_, state):
                self._say_once(
                    "memory", f"a worker waits for memory of its GPU, for two minutes at most: {state.reason}"
                )
            case LoadFailed(_, reason, mistake):
                self._load_failed(reason, mistake)
            case Reported(worker, shard_id, Committed(stats, num_bytes, engine)):
                self._ledger.commit(shard_id)
                self._refusing.discard(shard_id)
                self.outcome.committed[shard_id] = stats
                self.outcome.num_bytes += num_bytes
                self.outcome.engines[worker.name] = engine
            case Reported(worker, shard_id, Progress() as progress):
                if progress.num_ok:
                    self._breaker.succeeded(worker.name)
                self._observer.progress(shard_id, progress.num_ok, progress.num_error)
            case Reported(_, shard_id, Refused() | Declined() as told):
                self._unpublished(shard_id, told)
            case Lost(mistake=UserError() as mistake):
                self._misplaced(event, mistake)
            case Lost():
                self._lost(event)

    def _loaded(self, worker: Worker, description: Mapping[str, Any]) -> None:
        self._guard.loaded()
        loaded = len(self._fleet.in_phase("idle", "busy"))
        self.outcome.num_workers = max(self.outcome.num_workers, loaded)
        self.outcome.engines[worker.name] = description["engine"]
        self.outcome.engine_hashes[worker.name] = description["engine_hash"]
        for sentence in self._watch.notice(worker.name, description["engine"]):
            self._observer.say(sentence)

    def _load_failed(self, reason: str, mistake: UserError | None) -> None:
        self._record("load", None, reason)
        if mistake is not None and not self._guard.ever_loaded:
            raise mistake
        self._guard.failed()
        when = f"; the next one is tried in {self._guard.wait_s:.0f} seconds" if self._guard.exhausted else ""
        self._observer.say(f"a worker could not load{when}: {reason}")

    def _unpublished(self, shard_id: int, told: Refused | Declined) -> None:
        """Take in what keeps a part from being published."""
        if isinstance(told, Refused):
            self._refuse(shard_id, told.reason, told.tries_left)
            return
        self._ledger.commit(shard_id)  # a part is published, the earlier one
        self.outcome.damaged[shard_id] = told.reason
        self._observer.say(f"shard {shard_id} is left alone, as {told.path} is damaged: {told.reason}")

    def _refuse(self, shard_id: int, reason: str, tries_left: int) -> None:
        """Begin nothing that the output would not take either; the part in question is tried again by its worker."""
        if not tries_left:
            self._record("exception", shard_id, reason)
            self._refusing.discard(shard_id)
            self._ledger.fail(shard_id, (), "exception", reason)
            self.outcome.failed = dict(self._ledger.failed)
            self._refused = reason
            return
        if shard_id not in self._refusing:
            self._refusing.add(shard_id)
            self._observer.say(
                f"shard {shard_id} is kept and its publication tried {counted(tries_left, 'time')} more, and no other shard is "
                f"begun until then: {reason}"
            )

    def _misplaced(self, event: Lost, mistake: UserError) -> None:
        """Go on without a worker whose node does not see the output; anything else is a mistake of the whole run."""
        if (
            not isinstance(mistake, OutputFolderError)
            or self._published is None
            or not self._published.is_ours()
        ):
            raise mistake
        self._mistake = mistake
        self._num_quarantined += 1
        self._record(
            "place", event.shard_id, event.reason, worker=event.worker.name, in_flight=event.in_flight
        )
        self._refusing.discard(event.shard_id)
        self._ledger.release(event.shard_id)
        self._observer.restarted(event.shard_id, event.reason)
        self._observer.say(f"the run goes on with one worker fewer: {mistake}")

    def _believe(self, shard_ids: Collection[int]) -> bool:
        """Count shards as done whose part is there; says whether any is."""
        found = self._published.find(shard_ids) if self._published is not None and shard_ids else {}
        for shard_id, stats in found.items():
            self._ledger.commit(shard_id)
            self.outcome.committed[shard_id] = stats
        self.outcome.failed = dict(self._ledger.failed)
        return bool(found)

    def _lost(self, event: Lost) -> None:
        """Let ledger and breaker draw their conclusions from a lost attempt."""
        worker, shard_id, in_flight, reason = event.worker.name, event.shard_id, event.in_flight, event.reason
        if event.innocent and not event.begun:
            self._ledger.put_back(shard_id)
            return
        if event.innocent:
            self._refusing.discard(shard_id)
            if not self._believe([shard_id]):
                self._ledger.release(shard_id)
                self._observer.restarted(shard_id, f"its worker was lost over another shard: {reason}")
            return
        kind: Trouble = "exception" if event.raised else "death"
        self._record(kind, shard_id, reason, worker=worker, in_flight=in_flight)
        self._refusing.discard(shard_id)
        if not event.raised and not in_flight and self._believe([shard_id]):
            return
        self._ledger.fail(shard_id, in_flight, kind, reason, self._breaker.proof(worker), alone=event.alone)
        self.outcome.failed = dict(self._ledger.failed)
        if event.refused:
            self._refused = reason
            return
        self._observer.restarted(shard_id, reason)
        found = self._breaker.failed(worker, shard_id, in_flight, kind, reason)
        if found is not None:
            self._quarantine(found)

    def _record(self, kind: str, shard_id: int | None, reason: str, **more: Any) -> None:
        self.outcome.incidents.append({"kind": kind, "shard_id": shard_id, "reason": reason, **more})
