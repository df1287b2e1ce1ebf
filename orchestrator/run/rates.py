"""How fast a dataset grows, from the footers of its parts alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from toprovar_batch.worker.shard_stats import ShardStats

_GRACE_S = (
    60.0  # a worker that is later than its last shard took, twice over and by this, is taken to be gone
)


@dataclass(frozen=True, slots=True)
class WorkerRate:
    """What one worker has published since a moment.

    Attributes:
        images: that it made.
        shards: that it published.
        images_per_second: over its last shard.
        silent_s: seconds since its last part was finished.
        active: whether another part of it is to be expected.
    """

    images: int
    shards: int
    images_per_second: float
    silent_s: float
    active: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a dataset grows.

    Attributes:
        since: when the first of the counted shards was begun.
        average: images a second from then until now; 0 where nothing is known.
        now: images a second of the workers that are active, each over its last shard.
        left_s: seconds until all samples have their rows at that speed; None where nobody works.
        workers: by name, in the order of their names.
    """

    since: datetime
    average: float
    now: float
    left_s: float | None
    workers: dict[str, WorkerRate]


def growth(
    parts: Iterable[ShardStats], samples_left: int, now: datetime, since: datetime | None = None
) -> Rates | None:
    """Work out how fast parts were published.

    Args:
        parts: of the dataset.
        samples_left: samples without a row.
        now: with a time zone.
        since: parts that were finished before do not count; None counts all.

    Returns:
        The rates; None where no part counts.
    """
    by_worker: dict[str, list[tuple[datetime, ShardStats]]] = {}
    for part in parts:
        finished = datetime.fromisoformat(part.finished) if part.finished else None
        if finished is not None and (since is None or finished >= since):
            by_worker.setdefault(part.worker, []).append((finished, part))
    if not by_worker:
        return None
    begun = min(
        finished - timedelta(seconds=part.wall_s)
        for published in by_worker.values()
        for finished, part in published
    )
    start = begun if since is None else since
    workers = {name: _rate(published, now) for name, published in sorted(by_worker.items())}
    seconds = (now - start).total_seconds()
    speed = sum(worker.images_per_second for worker in workers.values() if worker.active)
    images = sum(worker.images for worker in workers.values())
    return Rates(
        start,
        images / seconds if seconds > 0 else 0.0,
        speed,
        samples_left / speed if speed else None,
        workers,
    )


def _rate(published: Sequence[tuple[datetime, ShardStats]], now: datetime) -> WorkerRate:
    """The rate of one worker from its parts, each with the time of its publication."""
    finished, last = max(published, key=lambda each: each[0])
    silent_s = (now - finished).total_seconds()
    return WorkerRate(
        sum(part.generated for _, part in published),
        len(published),
        last.generated / last.wall_s if last.wall_s else 0.0,
        silent_s,
        silent_s <= 2 * last.wall_s + _GRACE_S,
    )
