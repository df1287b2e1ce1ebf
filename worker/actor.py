"""The process that owns one GPU: takes a shard, tells what it is doing, publishes a part file.

Nothing here knows Ray; `orchestrator/run/fleet.py` turns the class into an actor and its `run` into a stream.
"""

import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.worker.arrivals import ByteCount, arrivals
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.kept_part import DamagedPartError, keep_rows
from toprovar_batch.worker.part_file import PartWriter, image_path, result_rows
from toprovar_batch.worker.part_identity import recorded_job
from toprovar_batch.worker.pipeline import Beginning, Finished, PendingResults, run_batches
from toprovar_batch.worker.publishing import publish, with_signs
from toprovar_batch.worker.request import GenerationRequest, GenerationResult
from toprovar_batch.worker.shard_checks import check_ids, check_some_made
from toprovar_batch.worker.shard_events import (
    Committed,
    Declined,
    Fetching,
    Progress,
    ShardEvent,
    ShardTask,
    Started,
)
from toprovar_batch.worker.shard_stats import Computation, ShardStats
from toprovar_batch.worker.worker_errors import as_one_line, writing

if TYPE_CHECKING:
    from toprovar_batch.worker.resolved import ResolvedSpec
    from toprovar_batch.worker.specs import RuntimeSpec


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

    def load(self) -> Iterator[Fetching | dict[str, Any]]:
        """Fetch the model's files, and load the engine.

        Yields:
            What has arrived of the files, while they do, and in the end what `setup` returns.

        Raises:
            UserError, WorkerError: as `setup`, or a file cannot be had.
        """
        with as_one_line():
            self._unloaded = self._engine_factory()
            yield from arrivals(self._unloaded.fetch)
        yield self.setup()

    def setup(self) -> dict[str, Any]:
        """Load the engine.

        Returns:
            `worker` (its name), `engine` (the engine's description and usage) and `engine_hash`, of the description
            alone: equal engines have equal hashes.

        Raises:
            ModelSpecError: the model cannot be built as described.
            CheckpointError: a weight file does not fit.
            WorkerError: anything else went wrong.
        """
        with as_one_line():
            self._engine = self._unloaded or self._engine_factory()
            self._engine.setup()
            description = self._engine.describe()
        self._engine_hash = _digest(description)
        self._computation = Computation.of_engine(description)
        return {"worker": self._name, "engine_hash": self._engine_hash, "engine": self._record_of_engine()}

    def _record_of_engine(self) -> dict[str, Any]:
        """Say what the engine is, and what it took so far."""
        return {**self._engine.describe(), **self._engine.usage()}

    def run(self, task: ShardTask) -> Iterator[ShardEvent]:
        """Work through one shard and publish its part.

        Args:
            task: the shard and how to treat it.

        Yields:
            `Started` before a batch enters the engine, `Progress` once it has its results, `Refused` where the part is
            kept to be published later, and `Committed` once it is visible. `Declined` alone where an earlier part to keep
            rows of is damaged, and `Alive` while storage takes long. Up to three batches are in the engine: two on the device and one that is encoded. Of
            suspects there is one.

        Raises:
            OutputFolderError: the output is a folder of another machine, or does not belong to the job any more.
            OutputRefusedError: the part cannot be written, or not be published after all tries.
            WorkerError: the engine raised, made nothing of several samples, or gave other samples back than it
                took. Nothing is published in either case.
        """
        with as_one_line():
            yield from self._run(task)

    def _run(self, task: ShardTask) -> Iterator[ShardEvent]:
        self._check_owner(task)
        stats = ShardStats(attempt=task.attempt, worker=self._name, engine=self._engine_hash, job=task.job)
        start = time.monotonic()
        with ExitStack() as stack:
            with writing():
                part = stack.enter_context(PartWriter(task.target, task.schema, task.scratch))
            try:
                written = yield from with_signs(lambda: keep_rows(task, part, stats))
            except DamagedPartError as error:
                yield Declined(error.path, str(error))
                return
            todo = task.samples.filter(
                pc.invert(pc.is_in(task.samples["sample_id"], pa.array(written, pa.string())))
            )
            stats.generated = todo.num_rows
            for event, rows in self._generate(task, todo):
                yield event  # before writing: a full disk is not the samples' fault; and the device has work meanwhile
                if rows is not None:
                    with writing():
                        part.write(rows)
                    stats.add_rows(rows, self._computation)
                    written += rows["sample_id"].to_pylist()
            stats.wall_s = time.monotonic() - start
            stats.finished = datetime.now(UTC).isoformat(timespec="seconds")
            check_ids(written, task.samples["sample_id"].to_pylist(), "the shard's rows")
            self._check_owner(task)
            with writing():
                num_bytes = yield from with_signs(
                    lambda: part.seal({"shard_id": task.shard_id, **stats.to_json()})
                )
            yield from publish(part, task.publish_delays_s)
        yield Committed(stats, num_bytes, self._record_of_engine())

    def _check_owner(self, task: ShardTask) -> None:
        """Keep a part out of a folder that was deleted, or that another job has begun since."""
        if task.record is None:
            return
        found = recorded_job(task.record)
        if found is None:
            raise OutputFolderError(
                f"{task.record}: not visible to worker {self._name}; a cluster needs an output that all nodes "
                "share, such as s3://, and that nobody deletes while a job runs"
            )
        if found != task.job:
            raise OutputFolderError(f"{task.record}: belongs to another job now; choose another output")

    def _generate(self, task: ShardTask, todo: pa.Table) -> Iterator[tuple[ShardEvent, pa.Table | None]]:
        """Turn the samples left to do into rows, batch by batch; hopeless samples go first."""
        positions = {sample_id: row for row, sample_id in enumerate(todo["sample_id"].to_pylist())}

        def rows_of(results: Sequence[GenerationResult]) -> pa.Table:
            samples = todo.take([positions[result.sample_id] for result in results])
            return result_rows(samples, [self._record(result, task) for result in results], task.schema)

        requests, hopeless = _split(todo, task.poisoned)
        outcomes: Counter[str | None] = Counter()  # None: an image
        if hopeless:
            yield Progress(tuple(result.sample_id for result in hopeless), 0), rows_of(hopeless)
        for step in self._steps(requests, task.suspects):
            sample_ids = tuple(request.sample_id for request in step.batch)
            match step:
                case Beginning():
                    yield Started(sample_ids), None
                case Finished(results=results):
                    check_ids([result.sample_id for result in results], sample_ids, "the engine's results")
                    num_ok = sum(result.status == "ok" for result in results)
                    yield Progress(sample_ids, num_ok), rows_of(results)
                    outcomes.update(result.error for result in results)
        check_some_made(outcomes)

    def _steps(
        self, requests: Sequence[GenerationRequest], suspects: Sequence[Sequence[str]]
    ) -> Iterator[Beginning | Finished]:
        """Take requests through the engine; those of a group of suspects with nothing beside them."""
        groups = [[request for request in requests if request.sample_id in group] for group in suspects]
        named = {sample_id for group in suspects for sample_id in group}
        rest = self._plan_batches([request for request in requests if request.sample_id not in named])
        alone = rest[:1] if groups else []
        alone += [batch for group in groups for batch in self._plan_batches(group)]
        yield from run_batches(self._engine.begin, alone, overlap=False)
        yield from run_batches(self._engine.begin, rest[1:] if groups else rest, overlap=True)

    def _plan_batches(self, requests: Sequence[GenerationRequest]) -> list[list[GenerationRequest]]:
        return self._engine.plan_batches(requests) if requests else []

    def _record(self, result: GenerationResult, task: ShardTask) -> dict[str, Any]:
        """Give the result's columns of the dataset."""
        record: dict[str, Any] = {"status": result.status, "error": result.error}
        statistics = result.statistics
        if result.status == "ok":
            path = image_path(result.sample_id, result.format)
            record["image"] = {"bytes": result.image, "path": path}
            record |= {name: getattr(result, name) for name in ("width", "height", "format")}
            record |= {} if statistics is None else statistics.columns()
        elif statistics is not None:  # of an image that failed only this means something; the rest is null
            record["prompt_truncated"] = statistics.prompt_truncated
        return {**record, **task.labels, "attempt": task.attempt, "worker": self._name}


def _split(
    samples: pa.Table, poisoned: Mapping[str, str]
) -> tuple[list[GenerationRequest], list[GenerationResult]]:
    """Part the samples into requests for the engine and errors that are known beforehand."""
    requests, hopeless = [], []
    columns = ["sample_id", "prompt", "negative_prompt", "seed", "h_div_w", "prompt_error"]
    for row in samples.select(columns).to_pylist():
        error = row.pop("prompt_error") or poisoned.get(row["sample_id"])
        if error is None:
            requests.append(GenerationRequest(**row))
        else:
            hopeless.append(GenerationResult.failed(row["sample_id"], error))
    return requests, hopeless


def _digest(description: Mapping[str, Any]) -> str:
    """Hash an engine's description, so that a footer can name the one in the run's record."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
