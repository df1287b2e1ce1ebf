"""What one shard amounted to: counts, times and errors, kept in its part's footer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.worker.words import counted

TIME_COLUMNS = ("text_ms", "sample_ms", "decode_ms", "encode_ms")
_NAMED_SAMPLES = 3  # sample ids named for each error sentence
_NAMED_ERRORS = 20  # error sentences told apart in one footer; the rest is counted together
OTHER_ERRORS = "other errors"
NO_PRUNING = "none"


@dataclass(slots=True)
class ErrorKind:
    """Rows that failed with the same sentence: how many, and the ids of the first few."""

    count: int = 0
    sample_ids: list[str] = field(default_factory=list)

    def merge(self, other: "ErrorKind") -> None:
        """Add the rows of `other`."""
        self.count += other.count
        self.sample_ids = (self.sample_ids + other.sample_ids)[:_NAMED_SAMPLES]


@dataclass(frozen=True, slots=True)
class Computation:
    """What decides how numbers are rounded: the same sample may give other pixels where one of these differs.

    Attributes:
        dtype: of the transformer's blocks, such as "bfloat16".
        device_type: "cuda" or "cpu".
        device: the kind of GPU or CPU.
        backend: "triton" or "torch".
        threads: of a CPU; None on a GPU.
    """

    dtype: str
    device_type: str
    device: str
    backend: str
    threads: int | None = None

    @classmethod
    def of_engine(cls, description: Mapping[str, Any]) -> Self | None:
        """Read it from an engine's description; None where that does not tell what it computes with."""
        values: dict[str, Any] = {item.name: description.get(item.name) for item in fields(cls)}
        told = all(value for name, value in values.items() if name != "threads")
        return cls(**values) if told else None

    def __str__(self) -> str:
        threads = f" with {counted(self.threads, 'thread')}" if self.threads else ""
        return f"{self.dtype} on {self.device}{threads} by {self.backend}"


@dataclass(slots=True)
class ShardStats:
    """Sums over the rows of one shard, or of many.

    Attributes:
        rows, ok, errors: rows in all, with an image, without one.
        generated: images made by this attempt; the others were kept from an earlier part.
        wall_s: seconds from the shard's arrival at its worker to its last row.
        times_ms: summed `text_ms`, `sample_ms`, `decode_ms`, `encode_ms` of the rows with an image.
        token_layer_fraction: summed over the `fraction_rows` rows that have one.
        fraction_rows: rows with a `token_layer_fraction`.
        pruning_start_scales: rows with an image by the first scale, counted from 0, in which something was pruned;
            those where nothing was are under "none".
        truncated: rows whose prompt or negative prompt was cut; 0 in parts of earlier versions, which do not count them.
        error_kinds: failed rows by their error sentence.
        computed_with: rows with an image by what they were computed with; parts of earlier versions do not tell.
        attempt: which attempt at the shard published it, from 1.
        worker: who published it, host:pid.
        engine: hash of the engine's description in the run's record.
        finished: UTC time of the publication, ISO 8601.
        job: hash of the identity of the job that it was made for; empty in parts of earlier versions.
    """

    rows: int = 0
    ok: int = 0
    errors: int = 0
    generated: int = 0
    wall_s: float = 0.0
    times_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIME_COLUMNS, 0.0))
    token_layer_fraction: float = 0.0
    fraction_rows: int = 0
    pruning_start_scales: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    error_kinds: dict[str, ErrorKind] = field(default_factory=dict)
    computed_with: dict[Computation, int] = field(default_factory=dict)
    attempt: int = 0
    worker: str = ""
    engine: str = ""
    finished: str = ""
    job: str = ""

    def add_rows(self, rows: pa.Table, computation: Computation | None = None) -> None:
        """Count rows of the dataset's schema, computed with `computation` if that is known."""
        good = rows.filter(pc.equal(rows["status"], "ok"))
        self.rows += rows.num_rows
        self.ok += good.num_rows
        self.errors += rows.num_rows - good.num_rows
        if computation is not None:
            self.add_computations({computation: good.num_rows})
        for column in TIME_COLUMNS:
            self.times_ms[column] += pc.sum(good[column]).as_py() or 0.0
        self.token_layer_fraction += pc.sum(good["token_layer_fraction"]).as_py() or 0.0
        self.fraction_rows += good.num_rows - good["token_layer_fraction"].null_count
        self.truncated += pc.sum(rows["prompt_truncated"]).as_py() or 0
        starts = good.select(["pruning_start_scale", "keep_ratio"]).to_pylist()
        for start, ratios in (row.values() for row in starts):
            if start is not None and ratios is not None:
                self._count_start(str(start) if start < len(ratios) else NO_PRUNING)
        bad = rows.select(["sample_id", "error"]).filter(pc.not_equal(rows["status"], "ok"))
        for row in bad.to_pylist():
            self._count_error(row["error"], ErrorKind(1, [row["sample_id"]]))

    def merge(self, other: "ShardStats") -> None:
        """Add the sums of another shard; attempt, worker, engine, finished and job stay."""
        self.rows += other.rows
        self.ok += other.ok
        self.errors += other.errors
        self.generated += other.generated
        self.wall_s += other.wall_s
        for column in TIME_COLUMNS:
            self.times_ms[column] += other.times_ms[column]
        self.token_layer_fraction += other.token_layer_fraction
        self.fraction_rows += other.fraction_rows
        self.truncated += other.truncated
        for start, count in other.pruning_start_scales.items():
            self._count_start(start, count)
        for sentence, kind in other.error_kinds.items():
            self._count_error(sentence, kind)
        self.add_computations(other.computed_with)

    def add_computations(self, images: Mapping[Computation, int]) -> None:
        """Count images by what they were computed with."""
        for computation, count in images.items():
            if count:
                self.computed_with[computation] = self.computed_with.get(computation, 0) + count

    def to_json(self) -> dict[str, Any]:
        """Give a JSON-able record that `from_json` reads back."""
        computed_with = [
            {**asdict(computation), "images": count} for computation, count in self.computed_with.items()
        ]
        return asdict(replace(self, computed_with={})) | {"computed_with": computed_with}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Read a record of `to_json`: unknown keys of a newer version are left out, those an older one lacks are empty."""
        known = {item.name for item in fields(cls)} - {"computed_with"}
        stats = cls(**{name: value for name, value in record.items() if name in known})
        for entry in record.get("computed_with", []):
            computation = Computation.of_engine(entry)
            if computation is not None:
                stats.add_computations({computation: entry["images"]})
        stats.error_kinds = {name: ErrorKind(**kind) for name, kind in stats.error_kinds.items()}  # type: ignore[arg-type]
        return stats

    def _count_start(self, start: str, count: int = 1) -> None:
        self.pruning_start_scales[start] = self.pruning_start_scales.get(start, 0) + count

    def _count_error(self, sentence: str, kind: ErrorKind) -> None:
        if sentence not in self.error_kinds and len(self.error_kinds) >= _NAMED_ERRORS:
            sentence = OTHER_ERRORS
        self.error_kinds.setdefault(sentence, ErrorKind()).merge(kind)
