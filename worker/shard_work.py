"""One shard on its way through a worker: its requests, its rows, its counts, and the part that they become."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .credentials import redact
from .errors import OutputFolderError
from .kept_part import keep_rows
from .part_file import PartWriter, image_path, result_rows
from .part_identity import recorded_job
from .publishing import publish_again, seal_and_show, with_signs
from .request import GenerationRequest, GenerationResult
from .shard_checks import check_ids, check_some_made
from .shard_events import Alive, Progress, Refused, ShardTask
from .shard_stats import TIME_COLUMNS, Computation, ShardStats
from .worker_errors import writing

_SAMPLE_COLUMNS = ["sample_id", "prompt", "negative_prompt", "seed", "h_div_w", "prompt_error"]


class ShardWork:
    """A shard from its task to its part. The calls come in the order: open, take and write, complete, publish.

    Args:
        task: the shard and how to treat it.
        worker: its name.
        engine_hash: of the engine's description.
        computation: what the engine computes with, if it tells.

    Attributes:
        requests: what is left for the engine, after `open`.
        batches_left: of them, those that the engine has not given back; set by the caller.
        stats: counts, complete once the part is sealed.
        num_bytes: of the part, once it is sealed.
        write_s: seconds of writing rows, and of publishing the part at the first try.
    """

    def __init__(
        self, task: ShardTask, worker: str, engine_hash: str, computation: Computation | None
    ) -> None:
        self.task, self._worker, self._computation = task, worker, computation
        self.stats = ShardStats(attempt=task.attempt, worker=worker, engine=engine_hash, job=task.job)
        self.requests: list[GenerationRequest] = []
        self.batches_left = 0
        self.num_bytes = 0
        self.write_s = 0.0
        self._start = time.monotonic()
        self._was_there = False  # the job's record, when it was looked for
        self._outcomes: Counter[str | None] = Counter()  # by error; None: an image
        self._written: list[str] = []
        self._stack = ExitStack()
        self._publication: Future[str | None] | None = None

    def open(self) -> Iterator[Alive | Progress]:
        """Begin the part: with the rows that are kept, and those that are errors beforehand.

        Raises:
            OutputFolderError: the output is a folder of another machine, or does not belong to the job any more.
            DamagedPartError: rows of an earlier part were to be kept, and it is damaged.
            OutputRefusedError: the part cannot be written.
        """
        yield from with_signs(self._check_owner)
        task = self.task
        with writing():
            self._part = self._stack.enter_context(PartWriter(task.target, task.schema, task.scratch))
        todo = task.samples
        if task.kept is not None:
            self._written = yield from with_signs(lambda: keep_rows(task, self._part, self.stats))
            todo = todo.filter(pc.invert(pc.is_in(todo["sample_id"], pa.array(self._written, pa.string()))))
        self._todo = todo
        self._positions = {sample_id: row for row, sample_id in enumerate(todo["sample_id"].to_pylist())}
        self.requests, hopeless = _split(todo, task.poisoned)
        if hopeless:
            yield _progress(hopeless)
            self.write(hopeless)

    def close(self) -> None:
        """Remove what is not published."""
        self._stack.close()

    def take(self, batch: Sequence[GenerationRequest], results: Sequence[GenerationResult]) -> Progress:
        """Look at what the engine gave for a batch.

        Raises:
            RuntimeError: it gave other samples back than it took.
        """
        sample_ids = tuple(request.sample_id for request in batch)
        check_ids([result.sample_id for result in results], sample_ids, "the engine's results")
        self.batches_left -= 1
        self._outcomes.update(result.error for result in results)
        progress = _progress(results)
        self.stats.generated += progress.num_ok
        return progress

    def write(self, results: Sequence[GenerationResult]) -> None:
        """Turn results into rows of the part.

        Raises:
            OutputRefusedError: the part cannot be written.
        """
        samples = self._todo.take([self._positions[result.sample_id] for result in results])
        rows = result_rows(samples, [self._record(result) for result in results], self.task.schema)
        start = time.monotonic()
        with writing():
            self._part.write(rows)
        self.write_s += time.monotonic() - start
        self.stats.add_rows(rows, self._computation)
        self._written += rows["sample_id"].to_pylist()

    def complete(self, since: float, thread: ThreadPoolExecutor) -> float:
        """Check that all rows are there, and begin to publish the part.

        Args:
            since: when the worker's last shard had all its rows; the time before was that shard's.
            thread: publishes it.

        Returns:
            When this one had, on the monotonic clock.

        Raises:
            RuntimeError: the engine made nothing of several samples, or rows are lost or there twice.
        """
        check_some_made(self._outcomes)
        now = time.monotonic()
        self.stats.wall_s = now - max(self._start, since)
        self.stats.finished = datetime.now(UTC).isoformat(timespec="seconds")
        check_ids(self._written, self.task.samples["sample_id"].to_pylist(), "the shard's rows")
        self._publication = thread.submit(self._seal_and_show)
        return now

    @property
    def is_done(self) -> bool:
        """Whether the first try to publish has an end, good or bad."""
        return self._publication is not None and self._publication.done()

    def publish(self) -> Iterator[Alive | Refused]:
        """Wait until the part is published.

        Raises:
            OutputFolderError: the output does not belong to the job any more.
            OutputRefusedError: it cannot be written, or not be published after all tries.
        """
        assert self._publication is not None
        with self._stack:
            refused = yield from with_signs(self._publication)
            if refused is not None:
                yield from publish_again(self._part, refused, self.task.publish_delays_s)

    def _seal_and_show(self) -> str | None:
        self._check_owner()  # here and not before: a storage that is asked may take long to answer
        record = {"shard_id": self.task.shard_id, **self.stats.to_json()}
        start = time.monotonic()
        self.num_bytes, refused = seal_and_show(self._part, record)
        self.write_s += time.monotonic() - start
        return refused

    def _check_owner(self) -> None:
        """Keep a part out of a folder that was deleted, or that another job has begun since."""
        task = self.task
        if task.record is None:
            return
        try:
            found = recorded_job(task.record)
        except ValueError as error:
            raise OutputFolderError(
                f"{task.record}: was damaged while the job ran; submit the job again, which mends it"
            ) from error
        if found is None and self._was_there:
            raise OutputFolderError(
                f"{task.record}: was deleted while the job ran; submit the job again to begin anew"
            )
        if found is None:
            raise OutputFolderError(
                f"{task.record}: not visible to worker {self._worker}; a cluster needs an output that all nodes "
                "share, such as s3://, and that nobody deletes while a job runs"
            )
        if found != task.job:
            raise OutputFolderError(f"{task.record}: belongs to another job now; choose another output")
        self._was_there = True

    def _record(self, result: GenerationResult) -> dict[str, Any]:
        """Give the result's columns of the dataset."""
        record: dict[str, Any] = {"status": result.status, "error": result.error and redact(result.error)}
        statistics = result.statistics
        if result.status == "ok":
            path = image_path(result.sample_id, result.format)
            record["image"] = {"bytes": result.image, "path": path}
            record |= {name: getattr(result, name) for name in ("width", "height", "format")}
            record |= {} if statistics is None else statistics.columns()
        elif statistics is not None:  # of an image that failed only this means something; the rest is null
            record["prompt_truncated"] = statistics.prompt_truncated
        return {**record, **self.task.labels, "attempt": self.task.attempt, "worker": self._worker}


def _progress(results: Sequence[GenerationResult]) -> Progress:
    """Tell of results: which samples, their errors, and what their images took."""
    made = [
        result.statistics for result in results if result.status == "ok" and result.statistics is not None
    ]
    fractions = (statistics.token_layer_fraction for statistics in made)
    return Progress(
        tuple(result.sample_id for result in results),
        sum(result.status == "ok" for result in results),
        {result.sample_id: redact(result.error or "") for result in results if result.status != "ok"},
        {column: sum(getattr(statistics, column) for statistics in made) for column in TIME_COLUMNS},
        tuple(fraction for fraction in fractions if fraction is not None),
    )


def _split(
    samples: pa.Table, poisoned: Mapping[str, str]
) -> tuple[list[GenerationRequest], list[GenerationResult]]:
    """Part the samples into requests for the engine and errors that are known beforehand."""
    requests, hopeless = [], []
    for row in samples.select(_SAMPLE_COLUMNS).to_pylist():
        error = row.pop("prompt_error") or poisoned.get(row["sample_id"])
        if error is None:
            requests.append(GenerationRequest(**row))
        else:
            hopeless.append(GenerationResult.failed(row["sample_id"], error))
    return requests, hopeless
