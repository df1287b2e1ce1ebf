"""Who is at which shard since when, and which shard is worth a second attempt beside the first. No Ray, no files; the clock is given."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .fleet_events import Worker

_TIMES = 2.0  # a shard that takes so many times as long as the others
_LEAST_S = 10.0  # and at least so much longer, has a straggler
_KNOWN = 3  # shards whose time is known before one is called slow


@dataclass(slots=True)
class _Running:
    """The attempts at one shard.

    Attributes:
        since: when the first was handed out.
        plain: a first attempt, without suspects: its time says something, and another may run beside it.
        rows: worker -> rows with and without an image that it has told of.
        shown: whose rows the user sees.
    """

    since: float
    plain: bool
    rows: dict[Worker, list[int]]
    shown: Worker


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that the user is to see more than before; fewer, where a number is below 0."""

    num_ok: int = 0
    num_error: int = 0


@dataclass(frozen=True, slots=True)
class Won:
    """What a published shard leaves behind.

    Attributes:
        losers: workers with another attempt at it.
        rows: that the user has not seen of it.
    """

    losers: list[Worker] = field(default_factory=list)
    rows: Rows = field(default_factory=Rows)


class Attempts:
    """Counts the attempts that run.

    Args:
        clock: gives seconds.

    Attributes:
        tried_again: shards at which two workers were at a time; which of their parts is there, the output tells.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[int, _Running] = {}
        self.tried_again: set[int] = set()
        self._seconds: list[float] = []

    def begin(self, worker: Worker, shard_id: int, *, plain: bool) -> None:
        """Note that a worker was given a shard."""
        running = self._running.setdefault(shard_id, _Running(self._clock(), plain, {}, worker))
        running.rows[worker] = [0, 0]
        if len(running.rows) > 1:
            self.tried_again.add(shard_id)

    def runs(self, worker: Worker, shard_id: int) -> bool:
        """Whether a worker's attempt still counts; not where another one was published first."""
        return shard_id in self._running and worker in self._running[shard_id].rows

    def told(self, worker: Worker, shard_id: int, rows: Rows) -> bool:
        """Note rows that a worker tells of; says whether the user is to see them."""
        running = self._running[shard_id]
        running.rows[worker][0] += rows.num_ok
        running.rows[worker][1] += rows.num_error
        return running.shown is worker

    def end(self, worker: Worker, shard_id: int) -> Rows | None:
        """Note that an attempt failed.

        Returns:
            None where it was the last one at its shard; else what the user is to see now of the other one.
        """
        running = self._running[shard_id]
        lost = running.rows.pop(worker)
        if not running.rows:
            del self._running[shard_id]
            return None
        if running.shown is not worker:
            return Rows()
        running.shown, other = next(iter(running.rows.items()))
        return Rows(other[0] - lost[0], other[1] - lost[1])

    def win(self, worker: Worker, shard_id: int) -> Won:
        """Note that a worker's part is published, or that there is nothing to publish; ends all attempts at the shard."""
        running = self._running.pop(shard_id)
        if running.plain:
            self._seconds.append(self._clock() - running.since)
        seen, made = running.rows[running.shown], running.rows[worker]
        losers = [other for other in running.rows if other is not worker]
        return Won(losers, Rows(made[0] - seen[0], made[1] - seen[1]))

    def straggler(self) -> int | None:
        """The shard that has run longest of those that run alone and far longer than others took; None where none does."""
        if len(self._seconds) < _KNOWN:
            return None
        usual = statistics.median(self._seconds)
        latest = self._clock() - max(_TIMES * usual, usual + _LEAST_S)
        slow = [
            (running.since, shard_id)
            for shard_id, running in self._running.items()
            if running.plain and len(running.rows) == 1 and running.since < latest
        ]
        return min(slow)[1] if slow else None
