"""A worker as the driver sees it, and what is heard of it. No Ray."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.shard_events import (
    Alive,
    AwaitingMemory,
    Committed,
    Declined,
    Fetching,
    Progress,
    Proven,
    Refused,
    ShardEvent,
    Started,
)


@dataclass(eq=False, slots=True)
class Worker:
    """One actor and what it is at.

    Attributes:
        actor: Ray's handle.
        phase: waiting for a node with room, loading its model, without or with a shard.
        source: what Ray will answer on next: a reference, or the stream of what it works on; None when idle.
        queued: the stream of the shards that come after.
        open: shards that it was given and has not published -> ids of their samples in its engine, of several batches, in
            the order in which they entered.
        unbegun: of these, those of which nothing was heard yet.
        crosses: its last shard may have another one behind it in the engine.
        may_go_on: all samples of its shards have entered its engine, and another shard may follow them.
        last_sign: when it last answered, on the monotonic clock.
        loading_since: when it was told to load, on the same clock.
        name: host:pid, once it has loaded.
        node: Ray's id of its node, once it has one.
        leaving: its node is about to be taken away, so it gets no shard any more.
    """

    actor: Any
    source: Any
    phase: Literal["placing", "loading", "idle", "busy"] = "placing"
    queued: Any = None
    open: dict[int, tuple[str, ...]] = field(default_factory=dict)
    unbegun: set[int] = field(default_factory=set)
    may_go_on: bool = False
    crosses: bool = False
    last_sign: float = field(default_factory=time.monotonic)
    loading_since: float = field(default_factory=time.monotonic)
    name: str = ""
    node: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Starving:
    """All workers wait for a `missing` thing, named without its article, for `waited_s` seconds now.

    `for_good` where it will not come.
    """

    missing: str
    waited_s: float
    for_good: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """The worker has found a node with room, and loads."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class Arriving:
    """Files of the model arrive on the worker's machine."""

    worker: Worker
    state: Fetching


@dataclass(frozen=True, slots=True)
class Waiting:
    """The worker waits until others give back the memory of its GPU."""

    worker: Worker
    state: AwaitingMemory


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker is ready for shards; `description` is what its `setup` gave."""

    worker: Worker
    description: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker is gone; `mistake` is set when the user can mend it."""

    worker: Worker
    reason: str
    mistake: UserError | None


@dataclass(frozen=True, slots=True)
class Reported:
    """The worker's shard moved on."""

    worker: Worker
    shard_id: int
    event: ShardEvent


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker is gone, and with it an attempt at one of its shards; there is one such event for each."""

    worker: Worker
    shard_id: int
    in_flight: tuple[str, ...]
    raised: bool  # an exception, not a death
    reason: str
    mistake: UserError | None = None  # set when the user can mend it
    refused: bool = False  # by the output, which does not take the shard's part
    innocent: bool = False  # it happened over another shard of the worker
    begun: bool = True  # without it, the worker had not come to the shard
    alone: bool = True  # no other shard had samples in the engine


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The worker was ended, and no attempt was lost with it: another one was first, or its node is to leave."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class HeadLost:
    """The cluster's head is not there, and Ray is about to end this process."""

    reason: str


FleetEvent = Placed | Arriving | Waiting | Loaded | LoadFailed | Reported | Lost | Dismissed | HeadLost


def follow(worker: Worker, shard_id: int, event: ShardEvent) -> None:
    """Note what an event says of a worker."""
    worker.unbegun.discard(shard_id)
    if _is_last(event):
        del worker.open[shard_id]
        if not worker.open:
            worker.phase, worker.source, worker.may_go_on = "idle", None, False
        return
    worker.open[shard_id] = _still_in_flight(worker.open[shard_id], event)
    # Nothing follows a shard while another one that the worker was given stands behind it.
    is_last = isinstance(event, Started) and event.last and not worker.unbegun
    worker.may_go_on |= is_last and worker.crosses


def _is_last(event: ShardEvent) -> bool:
    """Whether nothing more will be heard of a shard after an event of it."""
    return isinstance(event, Committed | Declined) or (isinstance(event, Refused) and not event.tries_left)


def _still_in_flight(before: tuple[str, ...], event: ShardEvent) -> tuple[str, ...]:
    """The samples of a shard that are in an engine after an event of it."""
    match event:
        case Started(sample_ids):
            return (*before, *sample_ids)
        case Progress(sample_ids):
            done = frozenset(sample_ids)
            return tuple(sample_id for sample_id in before if sample_id not in done)
        case Alive() | Proven():
            return before
        case Refused() | Committed() | Declined():
            return ()
