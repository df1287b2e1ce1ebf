"""What a run, or a whole dataset, amounts to in a few lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from toprovar_batch.orchestrator.output.parts import damaged_sentence, mend_sentence, unreachable_sentence
from toprovar_batch.orchestrator.output.reading import reading_call
from toprovar_batch.worker.shard_stats import NO_PRUNING, ShardStats
from toprovar_batch.worker.words import counted


def hopeless_sentence(which: str) -> str:
    """Say of failed rows that only other prompts help."""
    return f"no try mends {which}, as their prompts cannot be used; put mended prompts into a job with another output"


def total(stats: Iterable[ShardStats]) -> ShardStats:
    """Add the stats of shards up."""
    sums = ShardStats()
    for shard in stats:
        sums.merge(shard)
    return sums


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        output: the folder.
        num_samples: of the job.
        num_shards: of the job.
        dataset: sums over all published parts, also those of earlier runs.
        this_run: sums over the parts that this run published.
        finished_shards: published parts.
        wall_s: seconds this run generated, its loading included.
        num_workers: most workers that were loaded at one time in this run.
        num_lost: attempts of this run whose worker died, hung or raised.
        num_load_failures: workers of this run that could not load.
        flat_batches: of this run, in which every picture is of one colour.
        num_hopeless: samples of prompts that cannot be used, which are errors in every run.
        nameless_parts: published parts of earlier versions, which do not name their job.
        failed: shard id -> why it was given up.
        damaged: shard id -> why its part is damaged.
        unreachable: shard id -> why its part could not be read now.
        paths: shard id -> path of its part, of those that are damaged or unreachable.
        retry_errors: whether this run generated error rows again.
        stopped_by: name of the signal that ended the run early, or None.
        error: what ended the run early, or None.
    """

    output: str
    num_samples: int
    num_shards: int
    dataset: ShardStats
    this_run: ShardStats
    finished_shards: int
    wall_s: float
    num_workers: int
    num_lost: int
    num_load_failures: int = 0
    flat_batches: int = 0
    num_hopeless: int = 0
    nameless_parts: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    unreachable: dict[int, str] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    retry_errors: bool = False
    stopped_by: str | None = None
    error: BaseException | None = None

    @property
    def is_complete(self) -> bool:
        """Every shard has a readable part, and none was given up that was to be done again."""
        troubles = self.failed or self.damaged or self.unreachable or self.error
        return self.finished_shards == self.num_shards and not troubles

    @property
    def only_errors(self) -> bool:
        """There are rows, and none has an image."""
        return self.dataset.errors > 0 and not self.dataset.ok

    def lines(self, go_on: str) -> Iterator[str]:
        """Write the summary for a person, line by line; `go_on` is the command that continues the job."""
        data = self.dataset
        yield f"{counted(data.ok, 'image')}, {data.errors:,} failed, of {counted(self.num_samples, 'sample')}; {self.finished_shards} of {counted(self.num_shards, 'shard')}"
        yield from error_lines(data)
        yield from truncation_lines(data)
        yield from computation_lines(data)
        yield from nameless_lines(self.nameless_parts)
        if self.flat_batches:
            flat = counted(self.flat_batches, "batch holds pictures", "batches hold pictures")
            yield f"{flat} of one colour alone: look at them, and check the weights and dtype"
        yield from self._speed_lines()
        for shard_id, reason in sorted(self.failed.items())[:5]:
            yield f"  shard {shard_id} given up: {reason}"
        for sentence, parts in ((damaged_sentence, self.damaged), (unreachable_sentence, self.unreachable)):
            for shard_id, reason in sorted(parts.items())[:5]:
                yield f"  {sentence(self.paths.get(shard_id, f'the part of shard {shard_id}'), reason)}"
        if self.stopped_by:
            yield f"stopped by {self.stopped_by}; what is finished stays"
        if self.damaged:
            yield mend_sentence(self.output)
        yield from self._advice(go_on)
        yield f"dataset: {self.output}"
        if self.is_complete:
            yield f"read it with datasets.{reading_call(self.output)} or as Parquet; docs/dataset.md shows how"

    def _advice(self, go_on: str) -> Iterator[str]:
        if not self.is_complete:
            yield f"go on with: {go_on}{' --retry-errors' if self.retry_errors else ''}"
        elif self.dataset.errors > self.num_hopeless:
            yield f"try the failed samples again with: {go_on} --retry-errors"
            if self.num_hopeless:
                yield hopeless_sentence(f"{self.num_hopeless:,} of them")
        elif self.dataset.errors:
            yield hopeless_sentence("the failed samples")

    def _speed_lines(self) -> Iterator[str]:
        run = self.this_run
        troubles = [
            f", {counted(count, *names)}"
            for names, count in (
                (("lost attempt",), self.num_lost),
                (("worker that could not load", "workers that could not load"), self.num_load_failures),
            )
            if count
        ]
        if run.generated:
            yield (
                f"this run: {counted(run.generated, 'image')} in {self.wall_s:.0f} s with {counted(self.num_workers, 'worker')}: "
                f"{self._speed()}{''.join(troubles)}"
            )
            yield from time_lines(run)
        elif troubles or run.rows:
            yield f"this run: no images in {self.wall_s:.0f} s{''.join(troubles)}"
        elif self.is_complete:
            yield "this run: nothing was left to do"

    @property
    def overall_speed(self) -> float:
        """Images a second of the whole run, loading and waiting included; 0 where it is unknown."""
        return self.this_run.generated / self.wall_s if self.wall_s else 0.0

    @property
    def worker_speed(self) -> float:
        """Images a second of one worker while it has a shard; 0 where it is unknown."""
        run = self.this_run
        return run.generated / run.wall_s if run.wall_s else 0.0

    @property
    def steady_speed(self) -> float:
        """Images a second of all workers while each has a shard; 0 where it is unknown."""
        return self.worker_speed * self.num_workers

    def _speed(self) -> str:
        if not self.overall_speed or not self.worker_speed:
            return "too fast to tell"
        return (
            f"{self.overall_speed:.2f} images/s overall, loading included; {self.steady_speed:.2f} images/s steady, "
            f"{self.worker_speed:.2f} a worker"
        )


def computation_lines(stats: ShardStats) -> Iterator[str]:
    """Say what the images were computed with; several where the dataset mixes them."""
    counts = stats.computed_with.items()
    if len(counts) == 1:
        yield f"computed in {next(iter(stats.computed_with))}"
    elif counts:
        yield "computed in " + ", ".join(
            f"{computation} ({counted(count, 'image')})" for computation, count in counts
        )


def truncation_lines(stats: ShardStats) -> Iterator[str]:
    """Say how many samples were made of the beginning of their prompts alone."""
    if stats.truncated:
        named = counted(stats.truncated, "sample has a prompt", "samples have prompts")
        yield f"{named} longer than the text encoder takes, and only the beginning was read; see column prompt_truncated"


def nameless_lines(count: int) -> Iterator[str]:
    """Say how many parts cannot tell which job they are of."""
    if count:
        named = counted(
            count,
            "part of an earlier version does not name its job",
            "parts of an earlier version do not name their job",
        )
        yield f"{named}; status --verify compares samples and seeds"


def time_lines(stats: ShardStats) -> Iterator[str]:
    """Say where an image's time went, and what the policy saved."""
    if stats.ok:
        split = ", ".join(f"{name[:-3]} {value / stats.ok:.0f}" for name, value in stats.times_ms.items())
        yield f"milliseconds an image: {split}"
    if stats.fraction_rows:
        saved = 1 - stats.token_layer_fraction / stats.fraction_rows
        if saved > 0:
            yield f"token-layers saved by the policy: {saved:.1%}"
            if stats.pruning_start_scales:
                yield f"pruning starts at {_start_scales(stats.pruning_start_scales)}"


def _start_scales(counts: dict[str, int]) -> str:
    """Say how many images are pruned from which scale on."""
    pruned = sorted((int(start), count) for start, count in counts.items() if start != NO_PRUNING)
    parts = [f"scale {start} in {counted(count, 'image')}" for start, count in pruned]
    if NO_PRUNING in counts:
        parts.append(f"none in {counts[NO_PRUNING]:,}")
    return ", ".join(parts)


def error_lines(stats: ShardStats) -> Iterator[str]:
    """Name the most frequent errors, each with its first samples."""
    kinds = sorted(stats.error_kinds.items(), key=lambda item: -item[1].count)
    for sentence, kind in kinds[:5]:
        more = " ..." if kind.count > len(kind.sample_ids) else ""
        yield f"  {kind.count:,} x {sentence[:160]} ({', '.join(kind.sample_ids)}{more})"
    if len(kinds) > 5:
        yield f"  and {counted(len(kinds) - 5, 'other kind', 'other kinds')} of errors"


def stats_record(stats: ShardStats) -> dict[str, Any]:
    """Give the sums that mean something over many shards, JSON-able."""
    record = stats.to_json()
    for name in ("attempt", "worker", "engine", "finished", "job"):
        del record[name]
    return record
