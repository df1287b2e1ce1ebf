"""The workers of a run as Ray actors: start them, feed them, hear from them, bury them.

Every decision is the caller's (`dispatch.py`); this module turns Ray's calls and exceptions into a few events.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import ray
from ray._private.state import state
from ray.exceptions import RayError, RayTaskError

from toprovar_batch.worker.actor import GenerationEngine, GenerationWorker
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.shard_events import (
    AwaitingMemory,
    Fetching,
    ShardTask,
)
from toprovar_batch.worker.words import counted
from toprovar_batch.worker.worker_errors import OutputRefusedError, WorkerError

from .cluster_head import ClusterHead
from .fleet_events import (
    Arriving,
    Dismissed,
    FleetEvent,
    HeadLost,
    Loaded,
    LoadFailed,
    Lost,
    Placed,
    Reported,
    Starving,
    Waiting,
    Worker,
    follow,
)

_RESOURCES_EVERY_S = 1.0
_PATIENCE_S = 20.0  # a worker that finds no node for longer is worth a word to the user
_PAUSE_S = (
    10.0  # a driver that has not listened for longer was itself stopped: a suspended process, a closed lid
)
_CPU_WORKERS = 4  # on CPUs, unless the job says otherwise: more of them rarely help a small model


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
        self._dismissed: list[Worker] = []  # of whose end nobody was told yet
        self._factory = engine_factory
        self._num_workers = num_workers
        self._on_gpus, self._may_grow = on_gpus, may_grow
        self._cpus = cpus_per_worker
        self._stall_timeout_s = stall_timeout_s
        self._load_timeout_s = load_timeout_s
        self._room, self._room_known = 1, float("-inf")
        self._draining_known = float("-inf")
        self._head = ClusterHead(lambda: ray.get_runtime_context().gcs_address)
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
        if time.monotonic() - self._room_known > _RESOURCES_EVERY_S and self._head.answers():
            total = ray.cluster_resources()
            on_cpus = min(_CPU_WORKERS, int(total.get("CPU", 0)) // self._cpus)
            self._room = max(1, int(total.get("GPU", 0)) if self._on_gpus else on_cpus)
            self._room_known = time.monotonic()
        return self._room

    def start_worker(self) -> None:
        """Start one more worker; it answers with `Loaded` or `LoadFailed`."""
        actor = self._actor_class.remote(self._factory)
        self.workers.append(Worker(actor, actor.__ray_call__.remote(_node_of)))

    def leave_nodes(self) -> list[Worker]:
        """Give up nodes that are about to be taken away: workers without a shard end, others get no further one.

        Returns:
            The workers of such nodes that were not known before.
        """
        found = []
        if time.monotonic() - self._draining_known > _RESOURCES_EVERY_S and self._head.answers():
            self._draining_known = time.monotonic()
            draining = _draining_nodes()
            found = [worker for worker in self.workers if worker.node in draining and not worker.leaving]
        for worker in found:
            worker.leaving = True
        for worker in [worker for worker in self.workers if worker.leaving and worker.phase != "busy"]:
            self.dismiss(worker)
        return found

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
        if not self._head.answers():
            return True  # nobody knows
        total = ray.cluster_resources()
        return total.get("CPU", 0) >= self._cpus and total.get("GPU", 0) >= int(self._on_gpus)

    def in_phase(self, *phases: str) -> list[Worker]:
        """The workers that are in one of the phases."""
        return [worker for worker in self.workers if worker.phase in phases]

    def ready_for_more(self) -> list[Worker]:
        """The workers that can be given a shard while they finish the one before; its batches follow at once."""
        ready = [worker for worker in self.workers if worker.may_go_on and worker.queued is None]
        return [worker for worker in ready if not worker.leaving]

    def start_shards(self, worker: Worker, tasks: Sequence[ShardTask]) -> None:
        """Give an idle worker its next shards, or one that is ready for more the shards after.

        Args:
            worker: who gets them.
            tasks: one at least; several only of shards that nobody has tried yet.
        """
        self._call(worker, tasks)
        if worker.phase == "idle":
            worker.phase, worker.last_sign = "busy", time.monotonic()
        worker.open |= {task.shard_id: () for task in tasks}
        worker.unbegun |= {task.shard_id for task in tasks}
        worker.may_go_on = False
        worker.crosses = tasks[-1].attempt == 1  # what is tried again has nothing beside it in the engine

    def _call(self, worker: Worker, tasks: Sequence[ShardTask]) -> None:
        # Backpressure of one: the worker goes on only when its last event was read, so a death never swallows
        # the event that names the samples in flight.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        stream = worker.actor.stream.options(**options).remote(tasks)
        if worker.source is None:
            worker.source = stream
        else:
            worker.queued = stream

    def wait(self, timeout_s: float) -> Iterator[FleetEvent]:
        """Give the events that are there within `timeout_s`, and those of workers that fell silent or were dismissed."""
        self._forgive_pause()
        dismissed, self._dismissed = self._dismissed, []
        yield from map(Dismissed, dismissed)
        if reason := self._head.why_lost():
            yield HeadLost(reason)
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
                yield from self._bury(worker, f"it was not loaded after {self._load_timeout_s:g} seconds")
        for worker in self.in_phase("busy"):
            if self._is_silent(worker, self._stall_timeout_s):
                yield from self._bury(
                    worker, f"it gave no sign of life for {self._stall_timeout_s:g} seconds"
                )

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
        """Kill a worker and forget it; the next `wait` tells of it."""
        self._dismissed.append(worker)
        self._end(worker)

    def dismiss_all(self) -> None:
        """Kill every worker, at once."""
        for worker in list(self.workers):
            self.dismiss(worker)

    def _end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        ray.kill(worker.actor)

    def _next_phase(self, worker: Worker) -> Iterator[FleetEvent]:
        """Follow a worker from its place on a node over its loading to its first shard."""
        try:
            answer = ray.get(worker.source if worker.phase == "placing" else next(worker.source))
        except StopIteration:
            yield from self._bury(worker, "it ended without having loaded")
        except RayTaskError as error:
            yield from self._bury(worker, _sentence(error), error)
        except RayError as error:
            yield from self._bury(worker, _sentence(error))
        else:
            if worker.phase == "placing":
                worker.phase, worker.loading_since, worker.node = "loading", time.monotonic(), answer
                worker.source = worker.actor.load.options(num_returns="streaming").remote()
                yield Placed(worker)
            elif isinstance(answer, Fetching):
                yield Arriving(worker, answer)
            elif isinstance(answer, AwaitingMemory):
                yield Waiting(worker, answer)
            else:
                worker.phase, worker.source, worker.name = "idle", None, answer["worker"]
                yield Loaded(worker, answer)

    def _next_event(self, worker: Worker) -> Iterator[FleetEvent]:
        try:
            events = ray.get(next(worker.source))
        except StopIteration:
            self._next_stream(worker)
        except RayTaskError as error:
            # The process may be damaged (a GPU in an error state fails everything after it): start afresh.
            yield from self._bury(worker, _sentence(error), error)
        except RayError as error:
            yield from self._bury(worker, _sentence(error))
        else:
            for shard_id, event in events:
                follow(worker, shard_id, event)
                yield Reported(worker, shard_id, event)

    def _next_stream(self, worker: Worker) -> None:
        """All batches of a shard have begun: go on with the next one, or finish what is under way."""
        worker.source, worker.queued = worker.queued, None
        if worker.source is None:
            worker.may_go_on = False
            self._call(worker, ())

    def _bury(self, worker: Worker, reason: str, error: RayTaskError | None = None) -> Iterator[FleetEvent]:
        """Forget a worker and tell of each of its shards; `error` is what it raised, None if it died or was killed."""
        if worker not in self.workers:  # dismissed by who has just heard of another one
            return
        self._end(worker)
        cause = None if error is None else error.cause
        mistake = cause if isinstance(cause, UserError) else None
        if worker.phase != "busy":
            yield LoadFailed(worker, reason, mistake)
            return
        guilty = getattr(cause, "shard_id", -1)
        busy = [shard_id for shard_id, in_flight in worker.open.items() if in_flight]
        begun = [shard_id for shard_id in worker.open if shard_id not in worker.unbegun]
        suspected = {guilty} & worker.open.keys() or busy or begun or list(worker.open)[:1]
        for shard_id, in_flight in worker.open.items():
            innocent = shard_id not in suspected
            refused = isinstance(cause, OutputRefusedError) and not innocent
            yield Lost(
                worker,
                shard_id,
                in_flight,
                error is not None,
                reason,
                None if innocent else mistake,
                refused,
                innocent,
                alone=len(busy) <= 1,
                begun=shard_id not in worker.unbegun,
            )


def _node_of(_worker: GenerationWorker) -> str:
    """Ray's id of the node of the actor that runs this."""
    return ray.get_runtime_context().get_node_id()


def _draining_nodes() -> Collection[str]:
    """Ids of the nodes that Ray was told to empty, as before a spot node is taken away.

    Ray has no public call for it; its own libraries for training and data use this one.
    """
    ask = getattr(state, "get_draining_nodes", None)
    return ask() if ask is not None else ()


def _sentence(error: RayError) -> str:
    """Say in one line why a worker failed."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, WorkerError):
            return str(cause)
        text = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(error)
        return " ".join(text.split())[:500]
    if "error raised in its creation task" in str(
        error
    ):  # a node lacks a package, for example: the last line says it
        return str(error).strip().splitlines()[-1].strip()[:500]
    text = " ".join(str(error).split())
    if "connection error code 2" in text:  # all that Ray knows of a process that is suddenly not there
        return "its process died"
    detail = re.search(r"exit detail: (.*?)(?: Some common causes|$)", text)
    return f"its process died ({(detail[1] if detail else text)[:200].rstrip('. ')})"
