"""Gives workers the shards that come next, several of the small ones, and those that take too long elsewhere."""

from collections.abc import Callable

from toprovar_batch.worker.shard_events import ShardTask

from .attempts import Attempts
from .fleet import Fleet
from .ledger import Assignment, ShardLedger
from .observer import Observer

_ROWS_TOGETHER = 16  # a worker is given smaller shards several at a time, since each time costs
_SHARES = 4  # a worker is given at most this part of what would be left for it, so that all end together


class HandingOut:
    """Keeps the workers of a fleet busy.

    Args:
        ledger: the shards to do.
        fleet: the workers.
        make_task: turns an assignment into what a worker needs.
        observer: hears of each assignment.
        attempts: knows who is at which shard.
        together: most shards that a worker is given at a time; more than one where shards are small.
    """

    def __init__(
        self,
        ledger: ShardLedger,
        fleet: Fleet,
        make_task: Callable[[Assignment], ShardTask],
        observer: Observer,
        attempts: Attempts,
        together: int,
    ) -> None:
        self._ledger, self._fleet, self._make_task = ledger, fleet, make_task
        self._observer, self._attempts, self._together = observer, attempts, together

    def hand_out(self) -> None:
        """Give idle workers a shard, and busy ones the shard after before they have nothing to do."""
        for workers, fresh in ((self._fleet.in_phase("idle"), False), (self._fleet.ready_for_more(), True)):
            for worker in workers:
                assignments = self._take(fresh=fresh)
                if assignments:
                    self._fleet.start_shards(worker, [self._make_task(each) for each in assignments])
                for assignment in assignments:
                    plain = assignment.attempt == 1
                    self._attempts.begin(worker, assignment.shard_id, plain=plain)
                    self._observer.handed_out(worker.name, assignment)

    def help_stragglers(self) -> None:
        """Let workers without work try a shard that takes all too long elsewhere; the part that is first counts."""
        for worker in self._fleet.in_phase("idle") if not self._ledger.num_waiting else ():
            shard_id = self._attempts.straggler()
            if shard_id is None:
                return
            assignment = self._ledger.take_again(shard_id)
            self._fleet.start_shards(worker, [self._make_task(assignment)])
            self._attempts.begin(worker, shard_id, plain=False)
            self._observer.handed_out(worker.name, assignment)
            self._observer.say(
                f"shard {shard_id} takes far longer than the others, so worker {worker.name} tries it, too; the first part counts"
            )

    def _take(self, *, fresh: bool) -> list[Assignment]:
        """Take the next shard, with those behind it as long as enough are left for all workers."""
        first = self._ledger.take(fresh=fresh)
        if first is None or first.attempt > 1:
            return [first] if first else []
        share = self._ledger.num_waiting // (_SHARES * max(1, self._fleet.room()))
        more = (self._ledger.take(fresh=True) for _ in range(min(self._together - 1, share)))
        return [first, *(assignment for assignment in more if assignment is not None)]


def shards_together(shard_size: int) -> int:
    """Most shards of so many samples that a worker is given at a time."""
    return max(1, _ROWS_TOGETHER // shard_size)
