"""Metrics of a run through Ray, which exports them to Prometheus beside its own; `docs/cluster.md` has the table.

The driver counts for all workers: it hears of each batch, and a worker that is killed would take its last counts along.
Without Ray's agent for metrics (`ray[default]`) Ray drops what it is given, and a run goes on as ever.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ray.util.metrics import Counter, Gauge

from toprovar_batch.worker.credentials import redact
from toprovar_batch.worker.shard_events import Committed, Progress

from .fleet_events import Dismissed, FleetEvent, Loaded, Lost, Reported
from .observer import Observer

EXPORT_PREFIX = "ray_"  # Ray puts it before the names of all metrics
_REFRESH_S = 5.0  # Ray forgets a gauge that was not set within 20 seconds
_ON_THE_DEVICE = ("text_ms", "sample_ms", "decode_ms")


class Metric(NamedTuple):
    """What a metric is: how it counts, what, and by which labels."""

    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ("job_name", "worker")


METRICS = {
    "toprovar_images_total": Metric("counter", "images made, those of attempts that failed later included"),
    "toprovar_errors_total": Metric("counter", "samples that became error rows, likewise"),
    "toprovar_phase_seconds_total": Metric(
        "counter", "time of text, sample, decode, encode and write", ("job_name", "worker", "phase")
    ),
    "toprovar_token_layer_ratio": Metric(
        "gauge", "token-layers that ran over those of the dense model, mean of the last batch"
    ),
    "toprovar_busy_ratio": Metric(
        "gauge", "time of text, sample and decode over wall time, of the shards published so far"
    ),
    "toprovar_shards_total": Metric("counter", "shards published"),
    "toprovar_published_bytes_total": Metric("counter", "bytes of published parts"),
    "toprovar_lost_attempts_total": Metric("counter", "attempts at shards whose worker died, hung or raised"),
    "toprovar_workers": Metric("gauge", "workers that have loaded the model", ("job_name",)),
}
"""Name -> metric; the names as Prometheus has them, but for `EXPORT_PREFIX`."""

Make = Callable[[str, str, tuple[str, ...]], Any]


class RunMetrics(Observer):
    """Counts what it hears of workers.

    Args:
        job_name: label of all metrics.
        counter: makes a counter, with `inc(value, tags)`, of a name, a meaning and the names of its labels.
        gauge: makes a gauge, likewise, with `set(value, tags)`.
        clock: in seconds.
    """

    def __init__(
        self,
        job_name: str,
        counter: Make = Counter,
        gauge: Make = Gauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job_name = redact(job_name)
        make = {"counter": counter, "gauge": gauge}
        self._metrics = {
            name: make[kind](name, meaning, labels) for name, (kind, meaning, labels) in METRICS.items()
        }
        self._clock = clock
        self._refreshed = clock()
        self._loaded: set[str] = set()
        self._gauges: dict[tuple[str, str], float] = {}  # by name and worker
        self._device_s: defaultdict[tuple[str, int], float] = defaultdict(float)  # by worker and shard
        self._published: dict[str, tuple[float, float]] = {}  # worker -> seconds on the device, and in all

    def heard(self, event: FleetEvent) -> None:
        """Count an event."""
        match event:
            case Loaded(worker):
                self._loaded.add(worker.name)
                self._set("toprovar_workers", len(self._loaded))
            case Lost(worker):
                self._add("toprovar_lost_attempts_total", 0 if event.innocent else 1, worker.name)
                self._forget(worker.name)
            case Dismissed(worker):
                self._forget(worker.name)
            case Reported(worker, shard_id, Progress() as progress):
                self._progressed(worker.name, shard_id, progress)
            case Reported(worker, shard_id, Committed() as committed):
                self._committed(worker.name, shard_id, committed)

    def tick(self) -> None:
        """Set all gauges again, every few seconds."""
        now = self._clock()
        if now - self._refreshed >= _REFRESH_S:
            self._refreshed = now
            for (name, worker), value in self._gauges.items():
                self._set(name, value, worker)

    def _forget(self, worker: str) -> None:
        """Let the gauges of a worker that is gone end; Ray forgets them."""
        for key in [key for key in self._device_s if key[0] == worker]:
            del self._device_s[key]
        self._gauges = {key: value for key, value in self._gauges.items() if key[1] != worker}
        self._loaded.discard(worker)
        self._set("toprovar_workers", len(self._loaded))

    def _progressed(self, worker: str, shard_id: int, progress: Progress) -> None:
        self._add("toprovar_images_total", progress.num_ok, worker)
        self._add("toprovar_errors_total", progress.num_error, worker)
        for column, milliseconds in progress.times_ms.items():
            phase = column.removesuffix("_ms")
            self._add("toprovar_phase_seconds_total", milliseconds / 1e3, worker, phase=phase)
        device_ms = sum(progress.times_ms.get(column, 0.0) for column in _ON_THE_DEVICE)
        self._device_s[worker, shard_id] += device_ms / 1e3
        fractions = progress.token_layer_fractions
        if fractions:
            self._set("toprovar_token_layer_ratio", sum(fractions) / len(fractions), worker)

    def _committed(self, worker: str, shard_id: int, committed: Committed) -> None:
        self._add("toprovar_shards_total", 1, worker)
        self._add("toprovar_published_bytes_total", committed.num_bytes, worker)
        self._add("toprovar_phase_seconds_total", committed.write_s, worker, phase="write")
        device_s, wall_s = self._published.get(worker, (0.0, 0.0))
        # One shard's share means little: the batches of the next begin within its wall time.
        device_s += self._device_s.pop((worker, shard_id), 0.0)
        wall_s += committed.stats.wall_s
        self._published[worker] = device_s, wall_s
        if wall_s > 0:
            self._set("toprovar_busy_ratio", device_s / wall_s, worker)

    def _add(self, name: str, value: float, worker: str, **labels: str) -> None:
        if value > 0:  # Ray takes nothing else
            self._metrics[name].inc(value, {"job_name": self._job_name, "worker": worker, **labels})

    def _set(self, name: str, value: float, worker: str = "") -> None:
        self._gauges[name, worker] = value
        tags = {"job_name": self._job_name} | ({"worker": worker} if worker else {})
        self._metrics[name].set(float(value), tags)
