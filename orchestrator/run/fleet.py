"""The workers of a run as Ray actors: start them, feed them, hear from them, bury them.

Every decision is the caller's (`dispatch.py`); this module turns Ray's calls and exceptions into a few events.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from toprovar_batch.worker.actor import GenerationEngine, GenerationWorker
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.shard_events import (
    Alive,
    Committed,
    Declined,
    Fetching,
    Progress,
    Refused,
    ShardEvent,
    ShardTask,
    Started,
)
from toprovar_batch.worker.words import counted
from toprovar_batch.worker.worker_errors import OutputRefusedError, WorkerError

_RESOURCES_EVERY_S = 1.0
_PATIENCE_S = 20.0  # a worker that finds no node for longer is worth a word to the user
_PAUSE_S = (
    10.0  # a driver that has not listened for longer was itself stopped: a suspended process, a closed lid
)
_CPU_WORKERS = 4  # on CPUs, unless the job says otherwise: more of them rarely help a small model


@dataclass(eq=False, slots=True)
class Worker:
    """One actor and what it is at.

    Attributes:
        actor: Ray's handle.
        phase: waiting for a node with room, loading its model, without or with a shard.
        source: what Ray will answer on next: a reference, or the stream of a running shard; None when idle.
        shard_id: of the running shard.
        in_flight: ids of the samples in its engine, of several batches, in the order in which they entered.
        last_sign: when it last answered, on the monotonic clock.
        loading_since: when it was told to load, on the same clock.
        name: host:pid, once it has loaded.
    """

    actor: Any
    source: Any
    phase: Literal["placing", "loading", "idle", "busy"] = "placing"
    shard_id: int = -1
    in_flight: tuple[str, ...] = ()
    last_sign: float = field(default_factory=time.monotonic)
    loading_since: float = field(default_factory=time.monotonic)
    name: str = ""


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
    """The worker is gone, and with it an attempt at its shard."""

    worker: Worker
    shard_id: int
    in_flight: tuple[str, ...]
    raised: bool  # an exception, not a death
    reason: str
    mistake: UserError | None = None  # set when the user can mend it
    refused: bool = False  # by the output, which does not take the shard's part


FleetEvent = Placed | Arriving | Loaded | LoadFailed | Reported | Lost


class Fleet:
    """The actors of one run.

    Args:
        engine_factory: makes the engine inside a worker.
        on_gpus: a GPU a worker; else only CPUs.
        num_workers: how many; None: one for every GPU the cluster has, or a few on CPUs.
        cpus_per_worker: CPU cores reserved for each.
        stall_timeout_s: a worker with a shard that is silent for longer is killed.
        load_timeout_s: a worker that needs longer to load, and to fetch what it loads, is killed.
        may_grow: nodes may join; without it, what Ray has lost does not come back.
    """

    def __init__(
        self,
        engine_factory: Callable[[], GenerationEngine],
        *,
        on_gpus: bool,
        num_workers: int | None,
        cpus_per_worker: int,
        stall_timeout_s: float,
        load_timeout_s: float,
        may_grow: bool = True,
    ) -> None:
        self.workers: list[Worker] = []
        self._factory = engine_factory
        self._num_workers = num_workers
        self._on_gpus, self._may_grow = on_gpus, may_grow
        self._cpus = cpus_per_worker
        self._stall_timeout_s = stall_timeout_s
        self._load_timeout_s = load_timeout_s
        self._room, self._room_known = 0, float("-inf")
        self._listened = time.monotonic()
        # Attempts are counted by the ledger, so Ray must not restart or retry anything on its own.
        self._actor_class = ray.remote(GenerationWorker).options(
            num_cpus=cpus_per_worker, num_gpus=int(on_gpus), max_restarts=0, max_task_retries=0
        )

    def room(self) -> int:
        """How many workers the cluster has room for now; nodes may come and go.

        At least one, so that a cluster that grows on demand sees the demand.
        """
        if self._num_workers is not None:
            return self._num_workers
        if time.monotonic() - self._room_known > _RESOURCES_EVERY_S:
            total = ray.cluster_resources()
            on_cpus = min(_CPU_WORKERS, int(total.get("CPU", 0)) // self._cpus)
            self._room = max(1, int(total.get("GPU", 0)) if self._on_gpus else on_cpus)
            self._room_known = time.monotonic()
        return self._room

    def start_worker(self) -> None:
        """Start one more worker; it answers with `Loaded` or `LoadFailed`."""
        actor = self._actor_class.remote(self._factory)
        self.workers.append(Worker(actor, actor.__ray_ready__.remote()))

    def starving(self) -> Starving | None:
        """What every worker has been waiting for all too long; None when one of them has it."""
        newest = max((worker.last_sign for worker in self.workers), default=time.monotonic())
        waited_s = time.monotonic() - newest
        if len(self.in_phase("placing")) < len(self.workers) or waited_s < _PATIENCE_S:
            return None
        gpu = "1 GPU and " if self._on_gpus else ""
        missing = f"node with {gpu}{counted(self._cpus, 'free CPU')} for each worker"
        return Starving(missing, waited_s, for_good=not self._may_grow and not self._has_room())

    def _has_room(self) -> bool:
        """Whether the nodes that live could hold a worker if nothing else ran on them."""
        total = ray.cluster_resources()
        return total.get("CPU", 0) >= self._cpus and total.get("GPU", 0) >= int(self._on_gpus)

    def in_phase(self, *phases: str) -> list[Worker]:
        """The workers that are in one of the phases."""
        return [worker for worker in self.workers if worker.phase in phases]

    def start_shard(self, worker: Worker, task: ShardTask) -> None:
        """Give an idle worker its next shard."""
        # Backpressure of one: the worker goes on only when its last event was read, so a death never swallows
        # the event that names the samples in flight.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        worker.source = worker.actor.run.options(**options).remote(task)
        worker.phase, worker.shard_id, worker.in_flight = "busy", task.shard_id, ()
        worker.last_sign = time.monotonic()

    def wait(self, timeout_s: float) -> Iterator[FleetEvent]:
        """Give the events that are there within `timeout_s`, and those of workers that fell silent."""
        self._forgive_pause()
        waiting = sorted(self.workers, key=lambda worker: worker.last_sign)  # who was heard longest ago first
        sources = {worker.source: worker for worker in waiting if worker.source is not None}
        if not sources:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(sources), timeout=timeout_s, fetch_local=False)
        self._forgive_pause()
        for source in ready:
            worker = sources[source]
            worker.last_sign = time.monotonic()
            yield from self._next_event(worker) if worker.phase == "busy" else self._next_phase(worker)
        for worker in self.in_phase("loading"):
            if self._is_silent(worker, self._load_timeout_s, worker.loading_since):
                yield self._bury(worker, f"it was not loaded after {self._load_timeout_s:g} seconds")
        for worker in self.in_phase("busy"):
            if self._is_silent(worker, self._stall_timeout_s):
                yield self._bury(worker, f"it gave no sign of life for {self._stall_timeout_s:g} seconds")

    def _forgive_pause(self) -> None:
        """Count silence anew where the driver itself was stopped, so that nobody could be heard."""
        now = time.monotonic()
        if now - self._listened > _PAUSE_S:
            for worker in self.workers:
                worker.last_sign = worker.loading_since = now
        self._listened = now

    def _is_silent(self, worker: Worker, timeout_s: float, since: float | None = None) -> bool:
        """Whether a worker has said nothing for too long, or since `since`, and nothing of it waits to be read."""
        if time.monotonic() - (worker.last_sign if since is None else since) <= timeout_s:
            return False
        return not ray.wait([worker.source], timeout=0, fetch_local=False)[0]

    def dismiss(self, worker: Worker) -> None:
        """Kill a worker and forget it."""
        self.workers.remove(worker)
        ray.kill(worker.actor)

    def dismiss_all(self) -> None:
        """Kill every worker, at once."""
        for worker in list(self.workers):
            self.dismiss(worker)

    def _next_phase(self, worker: Worker) -> Iterator[FleetEvent]:
        """Follow a worker from its place on a node over its loading to its first shard."""
        try:
            answer = ray.get(worker.source if worker.phase == "placing" else next(worker.source))
        except StopIteration:
            yield self._bury(worker, "it ended without having loaded")
        except RayTaskError as error:
            yield self._bury(worker, _sentence(error), mistake=_mistake(error))
        except RayError as error:
            yield self._bury(worker, _sentence(error))
        else:
            if worker.phase == "placing":
                worker.phase, worker.loading_since = "loading", time.monotonic()
                worker.source = worker.actor.load.options(num_returns="streaming").remote()
                yield Placed(worker)
            elif isinstance(answer, Fetching):
                yield Arriving(worker, answer)
            else:
                worker.phase, worker.source, worker.name = "idle", None, answer["worker"]
                yield Loaded(worker, answer)

    def _next_event(self, worker: Worker) -> Iterator[FleetEvent]:
        try:
            event = ray.get(next(worker.source))
        except StopIteration:
            yield self._bury(worker, "it ended without publishing", raised=True)
        except RayTaskError as error:
            # The process may be damaged (a GPU in an error state fails everything after it): start afresh.
            refused = isinstance(error.cause, OutputRefusedError)
            yield self._bury(worker, _sentence(error), raised=True, mistake=_mistake(error), refused=refused)
        except RayError as error:
            yield self._bury(worker, _sentence(error))
        else:
            worker.in_flight = _still_in_flight(worker.in_flight, event)
            if isinstance(event, Committed | Declined):
                worker.phase, worker.source = "idle", None
            yield Reported(worker, worker.shard_id, event)

    def _bury(
        self,
        worker: Worker,
        reason: str,
        *,
        raised: bool = False,
        mistake: UserError | None = None,
        refused: bool = False,
    ) -> FleetEvent:
        self.dismiss(worker)
        if worker.phase != "busy":
            return LoadFailed(worker, reason, mistake)
        return Lost(worker, worker.shard_id, worker.in_flight, raised, reason, mistake, refused)


def _still_in_flight(before: tuple[str, ...], event: ShardEvent) -> tuple[str, ...]:
    """The samples that are in an engine after an event of its shard."""
    match event:
        case Started(sample_ids):
            return (*before, *sample_ids)
        case Progress(sample_ids):
            done = frozenset(sample_ids)
            return tuple(sample_id for sample_id in before if sample_id not in done)
        case Alive():
            return before
        case Refused() | Committed() | Declined():
            return ()


def _mistake(error: RayTaskError) -> UserError | None:
    return error.cause if isinstance(error.cause, UserError) else None


def _sentence(error: RayError) -> str:
    """Say in one line why a worker failed."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, WorkerError):
            return str(cause)
        text = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(error)
        return " ".join(text.split())[:500]
    text = " ".join(str(error).split())
    if "connection error code 2" in text:  # all that Ray knows of a process that is suddenly not there
        return "its process died"
    detail = re.search(r"exit detail: (.*?)(?: Some common causes|$)", text)
    return f"its process died ({(detail[1] if detail else text)[:200].rstrip('. ')})"
