"""The main loop of a run: hand out shards, listen, and let the ledger decide what follows.

`ledger.py` decides, `fleet.py` talks to Ray; both are dull on purpose.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from toprovar_batch.worker.errors import OutputFolderError, RunFailedError, UserError
from toprovar_batch.worker.shard_events import (
    Committed,
    Declined,
    Progress,
    Proven,
    Refused,
    ShardEvent,
    ShardTask,
)
from toprovar_batch.worker.words import counted

from .attempts import Attempts, Rows
from .breaker import Breaker, Quarantine
from .engine_watch import EngineWatch
from .fleet import Fleet
from .fleet_events import FleetEvent, HeadLost, Loaded, LoadFailed, Lost, Reported, Waiting, Worker
from .handing_out import HandingOut
from .hiring import Hiring
from .ledger import Assignment, ShardLedger, Trouble
from .load_guard import LoadGuard
from .observer import Observer
from .outcome import Outcome
from .published import Published
from .stop_signals import StopSignals

_POLL_S = 0.5


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
        attempts: knows who is at which shard.
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
        attempts: Attempts | None = None,
    ) -> None:
        self._ledger, self._fleet, self._guard = ledger, fleet, guard
        self._observer, self._watch, self._published = observer, watch, published
        self._attempts = attempts or Attempts()
        self._breaker = Breaker()
        self._told: set[str] = set()
        self._refusing: set[int] = set()  # shards that the output does not take just now
        self._refused: str | None = None  # why it took one not at all
        self.outcome = outcome or Outcome()
        self._handing_out = HandingOut(ledger, fleet, make_task, observer, self._attempts, together)
        self._hiring = Hiring(ledger, fleet, guard, self.outcome, self._say_once)

    def run(self) -> Outcome:
        """Work until every shard is published or given up, or the user stops the run.

        Returns:
            What happened; failed shards are in it, not raised.

        Raises:
            UserError: no worker can load the model or reach the output, for a reason that the user can mend.
            RunFailedError: no worker can load the model, for any other reason, or be placed, or none makes an image; Ray's head is
                lost; or the output does not take a part: then the shards under way have been finished.
        """
        self.outcome.begun = True
        with StopSignals() as signals:
            try:
                while self._ledger.num_open and not signals.stopping:
                    if signals.draining or self._refused is not None:
                        if not self._drain(signals.draining):
                            break
                    elif not self._refusing:
                        self._hiring.hire()
                        self._handing_out.hand_out()
                        self._handing_out.help_stragglers()
                    self._observer.tick()
                    for event in self._fleet.wait(_POLL_S):
                        self._handle(event)
            finally:
                self._fleet.dismiss_all()
                self._believe({*self._ledger.unsettled, *self._attempts.tried_again})
        if self._refused is not None:
            raise RunFailedError(f"the output does not take a part: {self._refused}")
        self.outcome.stopped_by = signals.last if self._ledger.num_open else None
        return self.outcome

    def _quarantine(self, found: Quarantine) -> None:
        """Give the samples of a broken place back, and go on with a worker fewer; end where there is no other place."""
        if found.everywhere:
            raise RunFailedError(
                f"{counted(found.failures, 'worker')} in a row made no image: {found.reason}"
            )
        self._hiring.places_lost += 1
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

    def _handle(self, event: FleetEvent) -> None:
        self._observer.heard(event)
        match event:
            case Loaded(worker, description):
                self._loaded(worker, description)
            case Waiting(_, state):
                wait = f"a worker waits for memory of its GPU, for two minutes at most: {state.reason}"
                self._say_once("memory", wait)
            case LoadFailed(_, reason, mistake):
                self._load_failed(reason, mistake)
            case Reported() | Lost() if not self._attempts.runs(event.worker, event.shard_id):
                pass  # another attempt at the shard was published first
            case Reported(worker, shard_id, told):
                self._reported(worker, shard_id, told)
            case Lost(mistake=UserError() as mistake):
                self._misplaced(event, mistake)
            case Lost():
                self._lost(event)
            case HeadLost(reason):
                raise RunFailedError(reason)

    def _reported(self, worker: Worker, shard_id: int, event: ShardEvent) -> None:
        match event:
            case Committed(stats, num_bytes, engine):
                self._settle(worker, shard_id)
                self.outcome.committed[shard_id] = stats
                self.outcome.num_bytes += num_bytes
                self.outcome.engines[worker.name] = engine
            case Progress():
                if event.num_ok:
                    self._breaker.succeeded(worker.name)
                rows = Rows(event.num_ok, event.num_error)
                if self._attempts.told(worker, shard_id, rows):
                    self._show(shard_id, rows)
            case Proven():
                self._breaker.succeeded(worker.name)
            case Refused() | Declined():
                self._unpublished(worker, shard_id, event)

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

    def _show(self, shard_id: int, rows: Rows) -> None:
        if rows != Rows():
            self._observer.progress(shard_id, rows.num_ok, rows.num_error)

    def _settle(self, worker: Worker, shard_id: int) -> None:
        """Note that a shard's part is there, and end other attempts at it."""
        self._ledger.commit(shard_id)
        self._refusing.discard(shard_id)
        won = self._attempts.win(worker, shard_id)
        self._show(shard_id, won.rows)
        for loser in won.losers:
            if not any(self._attempts.runs(loser, open_id) for open_id in loser.open):
                self._fleet.dismiss(loser)  # else its part takes the place of an equal one

    def _unpublished(self, worker: Worker, shard_id: int, told: Refused | Declined) -> None:
        """Take in what keeps a part from being published."""
        if isinstance(told, Refused):
            self._refuse(worker, shard_id, told.reason, told.tries_left)
            return
        self._settle(worker, shard_id)  # a part is published, the earlier one
        self.outcome.damaged[shard_id] = told.reason
        self._observer.say(f"shard {shard_id} is left alone, as {told.path} is damaged: {told.reason}")

    def _refuse(self, worker: Worker, shard_id: int, reason: str, tries_left: int) -> None:
        """Begin nothing that the output would not take either; the part in question is tried again by its worker."""
        if not tries_left:
            self._record("exception", shard_id, reason)
            self._refusing.discard(shard_id)
            if self._attempts.end(worker, shard_id) is None:
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
        self._hiring.mistake = mistake
        self._hiring.places_lost += 1
        self._record(
            "place", event.shard_id, event.reason, worker=event.worker.name, in_flight=event.in_flight
        )
        self._refusing.discard(event.shard_id)
        other = self._attempts.end(event.worker, event.shard_id)
        if other is None:
            self._ledger.release(event.shard_id)
            self._observer.restarted(event.shard_id, event.reason)
        else:
            self._show(event.shard_id, other)
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
        other = self._attempts.end(event.worker, shard_id)
        if other is not None:  # nothing is lost while another one is at the shard
            self._record(
                "exception" if event.raised else "death", shard_id, reason, worker=worker, in_flight=in_flight
            )
            self._show(shard_id, other)
            return
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
        if found := self._breaker.failed(worker, shard_id, in_flight, kind, reason):
            self._quarantine(found)

    def _record(self, kind: str, shard_id: int | None, reason: str, **more: Any) -> None:
        self.outcome.incidents.append({"kind": kind, "shard_id": shard_id, "reason": reason, **more})
