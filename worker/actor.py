"""The process that owns one GPU: takes a shard, tells what it is doing, publishes a part file.

Nothing here knows Ray; `orchestrator/run/fleet.py` turns the class into an actor and its `run` into a stream.
"""

import gc
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from toprovar_batch.worker.arrivals import ByteCount, arrivals
from toprovar_batch.worker.arrow_alone import leave_pandas_out
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.gpu_start import begin_gpu_start
from toprovar_batch.worker.kept_part import DamagedPartError
from toprovar_batch.worker.pipeline import Beginning, Finished, PendingResults, Pipeline
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.shard_events import (
    AwaitingMemory,
    Committed,
    Declined,
    Fetching,
    Proven,
    Refused,
    ShardEvent,
    ShardTask,
    Started,
)
from toprovar_batch.worker.shard_stats import Computation
from toprovar_batch.worker.shard_work import ShardWork
from toprovar_batch.worker.worker_errors import DeviceFullError, OutputRefusedError, WorkerError, as_one_line

if TYPE_CHECKING:
    from toprovar_batch.worker.resolved import ResolvedSpec
    from toprovar_batch.worker.specs import RuntimeSpec


_MEMORY_DELAYS_S = (1, 2, 4, 8, 15, 30, 60)
# What every engine can draw; of no job, and dropped.
_PROBE = GenerationRequest("probe", "a red ball", None, 0)


class GenerationEngine(Protocol):
    """What a worker needs of an engine; `worker/engine.py` has the real one."""

    def fetch(self, count: ByteCount) -> None:
        """Bring the model's files to this machine, and count the bytes that arrive."""

    def setup(self) -> None:
        """Load the weights."""

    def plan_batches(self, requests: Sequence[GenerationRequest]) -> list[list[GenerationRequest]]:
        """Cut requests into batches that can run together."""

    def begin(self, batch: Sequence[GenerationRequest]) -> PendingResults:
        """Queue one batch; a request that cannot be met becomes an error result."""

    def describe(self) -> dict[str, Any]:
        """Give a JSON-able record of device, versions and settings, the same at any time and for equal engines."""

    def usage(self) -> dict[str, Any]:
        """Give a JSON-able record of what loading and running took so far."""


def build_engine(spec: "ResolvedSpec", runtime: "RuntimeSpec", num_threads: int) -> GenerationEngine:
    """Make the engine of a worker process; imports torch, loads nothing.

    Args:
        spec: what to generate with.
        runtime: where.
        num_threads: CPU threads of torch beside a GPU; see `runtime.set_threads`.

    Raises:
        ModelSpecError: a GPU is requested and there is none.
    """
    if runtime.device == "cuda":
        begin_gpu_start()
    # The driver imports this module and must stay light.
    from toprovar_batch.worker.engine import Engine  # noqa: PLC0415
    from toprovar_batch.worker.generator import Generator  # noqa: PLC0415
    from toprovar_batch.worker.runtime import resolve_device, set_threads  # noqa: PLC0415

    set_threads(resolve_device(runtime.device), num_threads)
    return Engine(Generator(spec, runtime))


class GenerationWorker:
    """One engine and the shards it works through.

    Args:
        engine_factory: makes the engine; called in `setup`, so that the constructor stays cheap.
    """

    def __init__(self, engine_factory: Callable[[], GenerationEngine]) -> None:
        self._engine_factory = engine_factory
        self._unloaded: GenerationEngine | None = None
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._open: list[ShardWork] = []
        self._publishing: ShardWork | None = None
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._last_completed = float("-inf")  # when a shard last had all its rows, on the monotonic clock
        self._at = -1  # the shard that is worked on, to be told with an exception
        self._has_made = False  # an image, in the engine's life

    def load(self) -> Iterator[Fetching | AwaitingMemory | dict[str, Any]]:
        """Fetch the model's files, and load the engine.

        A GPU whose memory others hold is waited for, two minutes at most: workers of a driver that was killed live on for
        some seconds.

        Yields:
            What has arrived of the files, while they do, what is waited for, and in the end what `setup` returns.

        Raises:
            UserError, WorkerError: as `setup`, or a file cannot be had.
        """
        leave_pandas_out()
        with as_one_line():
            self._unloaded = self._engine_factory()
            yield from arrivals(self._unloaded.fetch)
        for wait_s in _MEMORY_DELAYS_S:
            try:
                ready = self.setup()
            except DeviceFullError as error:
                waiting = AwaitingMemory(str(error), wait_s)
            else:
                yield ready
                return
            yield waiting
            gc.collect()  # past the handler, nothing holds what was loaded of the model
            time.sleep(wait_s)
        yield self.setup()

    def setup(self) -> dict[str, Any]:
        """Load the engine.

        Returns:
            `worker` (its name), `engine` (the engine's description and usage) and `engine_hash`, of the description
            alone: equal engines have equal hashes.

        Raises:
            ModelSpecError: the model cannot be built as described.
            CheckpointError: a weight file does not fit.
            DeviceFullError: others hold the GPU's memory.
            WorkerError: anything else went wrong.
        """
        with as_one_line():
            engine, self._unloaded = self._unloaded or self._engine_factory(), None
            engine.setup()
            description = engine.describe()
        self._engine = engine
        self._pipeline = Pipeline(engine.begin)
        self._engine_hash = _digest(description)
        self._computation = Computation.of_engine(description)
        return {"worker": self._name, "engine_hash": self._engine_hash, "engine": self._record_of_engine()}

    def _record_of_engine(self) -> dict[str, Any]:
        """Say what the engine is, and what it took so far."""
        return {**self._engine.describe(), **self._engine.usage()}

    def stream(self, tasks: Sequence[ShardTask]) -> Iterator[list[tuple[int, ShardEvent]]]:
        """Work through shards, one behind the other, see `work`.

        Each answer costs a round trip to the driver, so `Committed` goes along with what is told next. All else is told
        before the worker goes on: which samples are in its engine must be known at any moment.

        Args:
            tasks: the shards; none of them finishes what is under way.

        Yields:
            Events in their order, each with its shard's id.

        Raises:
            UserError, WorkerError: as `work`; what happened before has been told then.
        """
        untold: list[tuple[int, ShardEvent]] = []
        try:
            for task in tasks or (None,):
                for told in self.work(task):
                    untold.append(told)
                    if not isinstance(told[1], Committed):
                        yield untold
                        untold = []
        except (UserError, WorkerError):
            if untold:
                yield untold
            raise
        if untold:
            yield untold

    def run(self, task: ShardTask) -> Iterator[ShardEvent]:
        """Work through one shard and publish its part, see `work`."""
        for step in (task, None):
            for _, event in self.work(step):
                yield event

    def work(self, task: ShardTask | None) -> Iterator[tuple[int, ShardEvent]]:
        """Begin all batches of a shard; those of the shard before are finished meanwhile, and its part is published.

        So the device has work across the end of a shard. Whoever has no further shard calls `work(None)`.

        Args:
            task: the shard and how to treat it; None finishes what is under way. A shard that is tried again has
                nothing beside it: all that is under way is finished and published before.

        Yields:
            A shard's id, with its events. `Proven` comes last where the engine raised before its first image and makes one
            of another prompt: the samples are guilty then, and not the place. `Started` comes before a batch enters the engine, `Progress` once it has its
            results, and `Committed` once the part is visible. `Refused` tells that the part is kept to be published
            later, or given up where no try is left and other shards are under way. `Alive` tells that storage takes long. `Declined` comes alone where an earlier part to keep rows of is
            damaged. Up to three batches are in the engine: two on the device and one that is encoded. Of suspects
            there is one.

        Raises:
            OutputFolderError: the output is a folder of another machine, or does not belong to the job any more.
            OutputRefusedError: the part cannot be written, or not be published after all tries.
            WorkerError: the engine raised, made nothing of several samples, or gave other samples back than it
                took. Nothing is published of that shard in any case; `shard_id` of the exception tells which it is.
        """
        self._at = -1 if task is None else task.shard_id
        try:
            with as_one_line():
                if task is None or task.attempt > 1 or task.suspects:
                    yield from self._finish_all()
                if task is not None:
                    yield from self._begin(task)
        except (UserError, WorkerError) as error:
            error.shard_id = self._at  # travels with the exception
            with suppress(WorkerError, UserError), as_one_line():
                yield from self._settle()  # a part that is on its way has no part in this
            if (
                not isinstance(error, UserError | OutputRefusedError)
                and not self._has_made
                and self._can_make()
            ):
                yield error.shard_id, Proven()
            for shard in self._open:
                shard.close()
            raise

    def _begin(self, task: ShardTask) -> Iterator[tuple[int, ShardEvent]]:
        self._at = task.shard_id
        shard = ShardWork(task, self._name, self._engine_hash, self._computation)
        self._open.append(shard)
        try:
            for event in shard.open():
                yield task.shard_id, event
        except DamagedPartError as error:
            self._open.remove(shard)
            shard.close()
            yield task.shard_id, Declined(error.path, str(error))
            return
        batches = self._plan(shard.requests, task.suspects)
        shard.batches_left = len(batches)
        for number, (batch, overlap) in enumerate(batches, 1):
            for step in self._pipeline.add(batch, overlap=overlap, owner=shard):
                yield from self._told(step, last=number == len(batches))
        if not batches:
            yield from self._complete(shard)

    def _told(self, step: Beginning | Finished, *, last: bool = False) -> Iterator[tuple[int, ShardEvent]]:
        """Tell what became of a batch; after the last one of a shard its part is on the way."""
        shard: ShardWork = step.owner
        shard_id = self._at = shard.task.shard_id
        match step:
            case Beginning(batch):
                yield shard_id, Started(tuple(request.sample_id for request in batch), last)
            case Finished(batch, results):
                progress = shard.take(batch, results)
                self._has_made |= progress.num_ok > 0
                yield shard_id, progress  # before writing: a full disk is not the samples' fault
                shard.write(results)
                if shard.batches_left == 0:
                    yield from self._complete(shard)
        if self._publishing is not None and self._publishing.is_done:
            yield from self._settle()

    def _complete(self, shard: ShardWork) -> Iterator[tuple[int, ShardEvent]]:
        """Let the part of a shard that has all its rows be published; at most one is on the way at a time."""
        yield from self._settle()
        self._at = shard.task.shard_id
        self._last_completed = shard.complete(self._last_completed, self._publisher)
        self._publishing = shard

    def _settle(self) -> Iterator[tuple[int, ShardEvent]]:
        """Wait until the part that is on the way is published."""
        if self._publishing is None:
            return
        shard, self._publishing = self._publishing, None
        shard_id = self._at = shard.task.shard_id
        try:
            for event in shard.publish():
                yield shard_id, event
        except OutputRefusedError as error:
            self._open.remove(shard)
            if not self._open:
                raise
            yield (
                shard_id,
                Refused(str(error), 0),
            )  # others are under way, and their images are not to be lost
            return
        self._open.remove(shard)
        yield shard_id, Committed(shard.stats, shard.num_bytes, self._record_of_engine(), shard.write_s)

    def _can_make(self) -> bool:
        """Whether the engine makes an image of a prompt that nobody doubts, after it raised over others."""
        with suppress(Exception):
            pending = self._engine.begin([_PROBE])
            pending.wait_until_made()
            return pending.results()[0].status == "ok"
        return False

    def _finish_all(self) -> Iterator[tuple[int, ShardEvent]]:
        for step in self._pipeline.drain():
            yield from self._told(step)
        yield from self._settle()

    def _plan(
        self, requests: Sequence[GenerationRequest], suspects: Sequence[Sequence[str]]
    ) -> list[tuple[Sequence[GenerationRequest], bool]]:
        """Cut a shard into batches, each with whether it may overlap; those of a group of suspects may not."""
        groups = [[request for request in requests if request.sample_id in group] for group in suspects]
        named = {sample_id for group in suspects for sample_id in group}
        rest = self._plan_batches([request for request in requests if request.sample_id not in named])
        alone = rest[:1] if groups else []
        alone += [batch for group in groups for batch in self._plan_batches(group)]
        others = rest[1:] if groups else rest
        return [*((batch, False) for batch in alone), *((batch, True) for batch in others)]

    def _plan_batches(self, requests: Sequence[GenerationRequest]) -> list[list[GenerationRequest]]:
        return self._engine.plan_batches(requests) if requests else []


def _digest(description: Mapping[str, Any]) -> str:
    """Hash an engine's description, so that a footer can name the one in the run's record."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
