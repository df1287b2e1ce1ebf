"""Decides which shard goes next, how, and when to give up. No Ray, no files, no clock."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Trouble = Literal["death", "exception"]

# Alone in the engine this often at a death, a sample is the cause; a death may also come from outside (a node
# that leaves), an exception hardly, so one is enough there.
_STRIKES: dict[Trouble, int] = {"death": 2, "exception": 1}


@dataclass(frozen=True, slots=True)
class Assignment:
    """The next attempt at a shard.

    Attributes:
        shard_id: which.
        attempt: counted from 1.
        isolated: run one sample at a time.
        poisoned: sample id -> sentence for its error row; these must not reach an engine again.
    """

    shard_id: int
    attempt: int
    isolated: bool
    poisoned: Mapping[str, str]


@dataclass(slots=True)
class _ShardState:
    attempt: int = 0
    fruitless: int = 0  # failed attempts since one last told us something
    isolated: bool = False
    strikes: Counter[str] = field(default_factory=Counter)
    poisoned: dict[str, str] = field(default_factory=dict)


class ShardLedger:
    """What is to do, under way, done and given up.

    A shard that failed goes to the end of the line and runs isolated from then on. A sample that failed alone
    is poisoned and becomes an error row. A shard fails for good after `max_attempts` failures in a row that
    found no poisoned sample. So any number of poisoned samples in one shard is found in the end.

    Args:
        shard_ids: the shards to do, in order.
        max_attempts: fruitless attempts a shard may have.
    """

    def __init__(self, shard_ids: Iterable[int], max_attempts: int) -> None:
        self._waiting = deque(shard_ids)
        self._max_attempts = max_attempts
        self._states = {shard_id: _ShardState() for shard_id in self._waiting}
        self._running: set[int] = set()
        self.failed: dict[int, str] = {}
        self.num_failures = 0

    @property
    def num_waiting(self) -> int:
        """Shards that nobody works on."""
        return len(self._waiting)

    @property
    def num_open(self) -> int:
        """Shards neither published nor given up."""
        return len(self._waiting) + len(self._running)

    def take(self) -> Assignment | None:
        """Hand out the next shard; None when none waits."""
        if not self._waiting:
            return None
        shard_id = self._waiting.popleft()
        self._running.add(shard_id)
        state = self._states[shard_id]
        state.attempt += 1
        return Assignment(shard_id, state.attempt, state.isolated, dict(state.poisoned))

    def commit(self, shard_id: int) -> None:
        """Note that a shard's part is published."""
        self._running.remove(shard_id)

    def fail(self, shard_id: int, in_flight: Collection[str], trouble: Trouble, reason: str) -> None:
        """Note that an attempt failed, and decide what becomes of the shard.

        Args:
            shard_id: which.
            in_flight: ids of the samples that were in the engine.
            trouble: the worker died (or hung and was killed), or it raised.
            reason: what is known about it, without a full stop.
        """
        self._running.remove(shard_id)
        self.num_failures += 1
        state = self._states[shard_id]
        state.fruitless += 1
        if state.isolated:
            self._blame(state, in_flight, trouble, reason)
        state.isolated = True
        if state.fruitless >= self._max_attempts:
            self.failed[shard_id] = f"{state.fruitless} attempts failed, the last one because {reason}"
        else:
            self._waiting.append(shard_id)

    def _blame(self, state: _ShardState, in_flight: Collection[str], trouble: Trouble, reason: str) -> None:
        for sample_id in in_flight:
            state.strikes[sample_id] += 1
            if state.strikes[sample_id] < _STRIKES[trouble]:
                continue
            state.poisoned[sample_id] = (
                f"killed its worker twice when generated alone: {reason}" if trouble == "death" else reason
            )
            state.fruitless = 0


class LoadGuard:
    """Decides what failing to load a model means.

    Args:
        max_failures: failures in a row after which no further worker is started.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self.failures_in_row = 0
        self.ever_loaded = False

    def loaded(self) -> None:
        """Note that a worker is ready."""
        self.failures_in_row = 0
        self.ever_loaded = True

    def failed(self) -> None:
        """Note that a worker could not load."""
        self.failures_in_row += 1

    @property
    def may_start(self) -> bool:
        """Whether another worker is worth a try."""
        return self.failures_in_row < self._max_failures
