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
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toprovar_batch.worker.errors import OutputFolderError, UserError
from toprovar_batch.worker.part_file import PartWriter, image_path, read_stats, result_rows
from toprovar_batch.worker.pipeline import Beginning, Finished, PendingResults, run_batches
from toprovar_batch.worker.request import GenerationRequest, GenerationResult
from toprovar_batch.worker.shard_stats import Computation, ShardStats
from toprovar_batch.worker.storage import locate

if TYPE_CHECKING:
    from toprovar_batch.worker.resolved import ResolvedSpec
    from toprovar_batch.worker.specs import RuntimeSpec


_SENTENCE_LENGTH = 500  # characters of an exception that reach an error row


class WorkerError(RuntimeError):
    """Whatever a worker raised, as one line "Type: text" that any process can unpickle."""


class GenerationEngine(Protocol):
    """What a worker needs of an engine; `worker/engine.py` has the real one."""

    def setup(self) -> None:
        """Load the weights."""

    def plan_batches(
        self, requests: Sequence[GenerationRequest], batch_size: int | None = None
    ) -> list[list[GenerationRequest]]:
        """Cut requests into batches that can run together."""

    def begin(self, batch: Sequence[GenerationRequest]) -> PendingResults:
        """Queue one batch; a request that cannot be met becomes an error result."""

    def describe(self) -> dict[str, Any]:
        """Give a JSON-able record of device, versions and settings, the same at any time and for equal engines."""

    def usage(self) -> dict[str, Any]:
        """Give a JSON-able record of what loading and running took so far."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One attempt at one shard.

    Attributes:
        shard_id: position of the shard in the job.
        samples: its rows of the plan.
        schema: of the dataset.
        target: local path or fsspec URL of its part.
        scratch: folder for the unfinished part, or None for the system's.
        labels: columns with one value for the whole job (`model`, `policy`).
        attempt: counted from 1.
        isolated: generate one image at a time, and none beside it, so that a death names its sample.
        poisoned: sample id -> why it must not reach the engine again.
        kept: address of an earlier part of this shard whose good rows are kept, or None.
        witness: a file in the output folder that must be visible here; None for remote outputs.
    """

    shard_id: int
    samples: pa.Table
    schema: pa.Schema
    target: str
    scratch: str | None
    labels: Mapping[str, str]
    attempt: int = 1
    isolated: bool = False
    poisoned: Mapping[str, str] = field(default_factory=dict)
    kept: str | None = None
    witness: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """These samples enter the engine, where those of earlier batches may be; a death from here on may be theirs."""

    sample_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """These samples left the engine (or never had to enter it)."""

    sample_ids: tuple[str, ...]
    num_ok: int

    @property
    def num_error(self) -> int:
        """How many have no image."""
        return len(self.sample_ids) - self.num_ok


@dataclass(frozen=True, slots=True)
class Committed:
    """The shard's part is published."""

    stats: ShardStats
    num_bytes: int
    engine: dict[str, Any]  # the engine's description and its usage after the shard


ShardEvent = Started | Progress | Committed


def build_engine(spec: "ResolvedSpec", runtime: "RuntimeSpec", num_threads: int) -> GenerationEngine:
    """Make the engine of a worker process; imports torch, loads nothing.

    Args:
        spec: what to generate with.
        runtime: where.
        num_threads: CPU threads of torch in this process.
    """
    import torch  # noqa: PLC0415 - the driver imports this module and must stay light

    from toprovar_batch.worker.engine import Engine  # noqa: PLC0415
    from toprovar_batch.worker.generator import Generator  # noqa: PLC0415

    torch.set_num_threads(num_threads)
    return Engine(Generator(spec, runtime))


class GenerationWorker:
    """One engine and the shards it works through.

    Args:
        engine_factory: makes the engine; called in `setup`, so that the constructor stays cheap.
    """

    def __init__(self, engine_factory: Callable[[], GenerationEngine]) -> None:
        self._engine_factory = engine_factory
        self._name = f"{socket.gethostname()}:{os.getpid()}"

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
        with _as_one_line():
            self._engine = self._engine_factory()
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
            `Started` before a batch enters the engine, `Progress` once it has its results, and `Committed` once the part
            is visible. Unless the task is isolated, up to three batches are in the engine: two on the device and one
            that is encoded.

        Raises:
            OutputFolderError: the output is a folder of another machine.
            WorkerError: the engine raised or gave other samples back than it took, or the part cannot be
                written; nothing is published then.
        """
        with _as_one_line():
            yield from self._run(task)

    def _run(self, task: ShardTask) -> Iterator[ShardEvent]:
        if task.witness is not None and not Path(task.witness).exists():
            raise OutputFolderError(
                f"{task.witness}: not visible to worker {self._name}; a cluster needs an output that all nodes "
                "share, such as s3://"
            )
        stats = ShardStats(attempt=task.attempt, worker=self._name, engine=self._engine_hash)
        start = time.monotonic()
        with PartWriter(task.target, task.schema, task.scratch) as part:
            todo, written = task.samples, []
            for rows in _kept_rows(task, stats):
                part.write(rows)
                stats.add_rows(rows)
                written += rows["sample_id"].to_pylist()
                todo = todo.filter(pc.invert(pc.is_in(todo["sample_id"], rows["sample_id"].combine_chunks())))
            stats.generated = todo.num_rows
            for event, rows in self._generate(task, todo):
                yield event  # before writing: a full disk is not the samples' fault; and the device has work meanwhile
                if rows is not None:
                    part.write(rows)
                    stats.add_rows(rows, self._computation)
                    written += rows["sample_id"].to_pylist()
            stats.wall_s = time.monotonic() - start
            stats.finished = datetime.now(UTC).isoformat(timespec="seconds")
            _check_ids(written, task.samples["sample_id"].to_pylist(), "the shard's rows")
            num_bytes = part.publish({"shard_id": task.shard_id, **stats.to_json()})
        yield Committed(stats, num_bytes, self._record_of_engine())

    def _generate(self, task: ShardTask, todo: pa.Table) -> Iterator[tuple[ShardEvent, pa.Table | None]]:
        """Turn the samples left to do into rows, batch by batch; hopeless samples go first."""
        positions = {sample_id: row for row, sample_id in enumerate(todo["sample_id"].to_pylist())}

        def rows_of(results: Sequence[GenerationResult]) -> pa.Table:
            samples = todo.take([positions[result.sample_id] for result in results])
            return result_rows(samples, [self._record(result, task) for result in results], task.schema)

        requests, hopeless = _split(todo, task.poisoned)
        if hopeless:
            yield Progress(tuple(result.sample_id for result in hopeless), 0), rows_of(hopeless)
        batches = self._engine.plan_batches(requests, 1 if task.isolated else None)
        for step in run_batches(self._engine.begin, batches, overlap=not task.isolated):
            sample_ids = tuple(request.sample_id for request in step.batch)
            match step:
                case Beginning():
                    yield Started(sample_ids), None
                case Finished(results=results):
                    _check_ids([result.sample_id for result in results], sample_ids, "the engine's results")
                    num_ok = sum(result.status == "ok" for result in results)
                    yield Progress(sample_ids, num_ok), rows_of(results)

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


@contextmanager
def _as_one_line() -> Iterator[None]:
    """Raise what the block raises in a form that survives the way to the driver; users' mistakes as they are.

    An exception that cannot be pickled, or unpickled, would arrive as a page of traceback.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:_SENTENCE_LENGTH]
        raise WorkerError(line.encode(errors="backslashreplace").decode()) from error


def _check_ids(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Refuse samples that are lost, foreign or there twice; two such mistakes can leave the number right.

    Raises:
        RuntimeError: naming the first few.
    """
    missing = Counter(wanted) - Counter(found)
    surplus = Counter(found) - Counter(wanted)
    if missing or surplus:
        lost, more = (", ".join(list(ids)[:3]) or "none" for ids in (missing, surplus))
        raise RuntimeError(f"{what} are not its samples: {lost} missing, {more} too many")


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


def _kept_rows(task: ShardTask, stats: ShardStats) -> Iterator[pa.Table]:
    """Read the good rows of the shard's earlier part, a row group at a time; `stats` gets what they were computed with."""
    if task.kept is None:
        return
    filesystem, path = locate(task.kept)
    with filesystem.open(path, "rb") as file, pq.ParquetFile(file) as part:
        stats.add_computations(ShardStats.from_json(read_stats(part.metadata)).computed_with)
        for group in range(part.num_row_groups):
            rows = part.read_row_group(group).select(task.schema.names).cast(task.schema)
            yield rows.filter(pc.equal(rows["status"], "ok"))


def _digest(description: Mapping[str, Any]) -> str:
    """Hash an engine's description, so that a footer can name the one in the run's record."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
