"""Decides which shard goes next, how, and when to give up. No Ray, no files, no clock."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from toprovar_batch.worker.words import counted

Trouble = Literal["death", "exception"]
Proof = Literal["worker", "run", "nobody"]

# Alone in the engine this often at a death, a sample is the cause; a death may also come from outside (a node
# that leaves), an exception hardly, so one is enough there if its worker has been seen to make images.
_STRIKES = 2
_SINGLED_OUT = 8  # suspects that run one by one
_WHOLE_ATTEMPTS = 2  # most deaths come from outside, so a shard is repeated whole before it is searched

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The next attempt at a shard.

    Attributes:
        shard_id: which.
        attempt: counted from 1.
        suspects: groups of sample ids, each to run with nothing beside it in the engine, in this order.
        poisoned: sample id -> sentence for its error row; these must not reach an engine again.
    """

    shard_id: int
    attempt: int
    suspects: tuple[Group, ...]
    poisoned: Mapping[str, str]


@dataclass(slots=True)
class _ShardState:
    attempt: int = 0
    failures: int = 0
    fruitless: int = 0  # failed attempts that told us nothing, since a sample was last found guilty
    suspects: list[Group] = field(default_factory=list)
    strikes: Counter[str] = field(default_factory=Counter)
    poisoned: dict[str, str] = field(default_factory=dict)


class ShardLedger:
    """What is to do, under way, done and given up.

    A shard that failed goes to the end of the line, and is repeated whole. From its second failure on, the samples
    that were in the engine are suspects. They run in pieces with nothing beside them, and the samples of a piece that fails
    run alone. All others go on in batches. A sample that failed alone is poisoned and becomes an error row.

    A failure that cuts a group or strikes a sample tells something. A shard fails for good after `max_attempts`
    others in which no poisoned sample was found. So any number of poisoned samples in one shard is found in the end.

    Args:
        shard_ids: the shards to do, in order.
        max_attempts: fruitless attempts a shard may have.
    """

    def __init__(self, shard_ids: Iterable[int], max_attempts: int) -> None:
        self._waiting = deque(shard_ids)
        self._max_attempts = max_attempts
        self._states: defaultdict[int, _ShardState] = defaultdict(_ShardState)
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

    def take(self, *, fresh: bool = False) -> Assignment | None:
        """Hand out the next shard; None when none waits.

        Args:
            fresh: only one that nobody has tried yet; what is tried again needs an engine for itself.
        """
        if not self._waiting or (fresh and self._states[self._waiting[0]].attempt):
            return None  # the fresh ones stand first, for what has failed goes to the end of the line
        shard_id = self._waiting.popleft()
        self._running.add(shard_id)
        state = self._states[shard_id]
        state.attempt += 1
        return Assignment(shard_id, state.attempt, tuple(state.suspects), dict(state.poisoned))

    def take_again(self, shard_id: int) -> Assignment:
        """Hand out a shard that is under way once more, to be tried beside the first attempt."""
        state = self._states[shard_id]
        state.attempt += 1
        return Assignment(shard_id, state.attempt, tuple(state.suspects), dict(state.poisoned))

    @property
    def unsettled(self) -> list[int]:
        """Shards that somebody worked on, and that were not noted as published."""
        return sorted(self._running | self.failed.keys())

    def commit(self, shard_id: int) -> None:
        """Note that a shard's part is published, even if it was given up."""
        self._running.discard(shard_id)
        self.failed.pop(shard_id, None)

    def release(self, shard_id: int) -> None:
        """Put a shard back that could not be worked on, for a reason that has nothing to do with it."""
        self._running.remove(shard_id)
        self._waiting.append(shard_id)

    def put_back(self, shard_id: int) -> None:
        """Take back that a shard was handed out, for nobody has begun it."""
        self._running.remove(shard_id)
        self._states[shard_id].attempt -= 1
        if self._states[shard_id].attempt:
            self._waiting.append(shard_id)
        else:
            self._waiting.appendleft(shard_id)  # the fresh ones stand first

    def fail(
        self,
        shard_id: int,
        in_flight: Collection[str],
        trouble: Trouble,
        reason: str,
        proof: Proof = "worker",
        *,
        alone: bool = True,
    ) -> None:
        """Note that an attempt failed, and decide what becomes of the shard.

        Args:
            shard_id: which.
            in_flight: ids of the samples that were in the engine.
            trouble: the worker died (or hung and was killed), or it raised.
            reason: what is known about it, without a full stop.
            proof: who has been seen to make images: this worker, another of the run, or nobody. A sample is found
                guilty only beside others that are made.
            alone: no samples of another shard were in the engine.
        """
        self._running.remove(shard_id)
        self.num_failures += 1
        state = self._states[shard_id]
        state.failures += 1
        group = tuple(in_flight)
        if len(group) == 1 and alone:
            self._strike(state, group[0], trouble, reason, proof)
        elif not (group and _narrow(state.suspects, group)):
            state.fruitless += 1
            if group and state.failures >= _WHOLE_ATTEMPTS:
                state.suspects += _pieces(group)
        if state.fruitless >= self._max_attempts:
            self.failed[shard_id] = (
                f"{counted(state.fruitless, 'attempt')} failed, the last one because {reason}"
            )
        else:
            self._waiting.append(shard_id)

    def give_back(self, shard_ids: Iterable[int]) -> None:
        """Forget what failures have told of shards, for the samples had no part in them."""
        for shard_id in shard_ids:
            state = self._states[shard_id]
            self._states[shard_id] = _ShardState(attempt=state.attempt)
            if self.failed.pop(shard_id, None) is not None:
                self._waiting.append(shard_id)

    def _strike(
        self, state: _ShardState, sample_id: str, trouble: Trouble, reason: str, proof: Proof
    ) -> None:
        """Note that a sample was alone in the engine when something happened."""
        state.strikes[sample_id] += 1
        if not _narrow(state.suspects, (sample_id,)):
            state.suspects.append((sample_id,))
        enough = 1 if trouble == "exception" and proof == "worker" else _STRIKES
        if state.strikes[sample_id] < enough or proof == "nobody":
            state.fruitless += state.failures == 1 or state.strikes[sample_id] >= _STRIKES
            return
        state.suspects = [group for group in state.suspects if group != (sample_id,)]
        state.poisoned[sample_id] = (
            f"killed its worker twice when generated alone: {reason}" if trouble == "death" else reason
        )
        state.fruitless = 0


def _narrow(suspects: list[Group], in_flight: Group) -> bool:
    """Draw the conclusions from samples in flight at a failure; False where they were not of one group.

    The groups before theirs came through. The groups after it did not run; they go first next time, for a worker that
    has made images has been seen to work. Of their own group only the samples in flight are cut.
    """
    for index, group in enumerate(suspects):
        if set(in_flight) <= set(group):
            others = tuple(sample_id for sample_id in group if sample_id not in in_flight)
            suspects[:] = [*suspects[index + 1 :], *([others] if others else []), *_pieces(in_flight)]
            return True
    return False


def _pieces(group: Group) -> list[Group]:
    """Cut a group: a death names the piece at fault however many there are, so few deaths are as cheap as many pieces allow.

    A death costs the loading of a model, and a piece that its images are made apart from others. So some tens of samples
    become pieces of about the square root of their number, and a batch or less single samples.
    """
    size = 1 if len(group) <= _SINGLED_OUT else math.isqrt(len(group))
    return [group[start : start + size] for start in range(0, len(group), size)]
