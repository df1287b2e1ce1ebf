"""What a driver gives a worker, and what it hears: a shard's task, and the events on its way to a published part."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from .shard_stats import ShardStats


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
        suspects: groups of sample ids; no sample of another group is in the engine beside one, so that a death
            names its group. One batch of the other samples goes before them, to see that the worker works.
        poisoned: sample id -> why it must not reach the engine again.
        kept: address of an earlier part of this shard whose good rows are kept, or None.
        job: hash of the identity of the job, for the part's footer.
        record: address of the output's `_job/job.json`, which must name this job when the shard begins and when its
            part is published; None: nobody looks.
        publish_delays_s: seconds before each further try to publish a part that the output refused.
    """

    shard_id: int
    samples: pa.Table
    schema: pa.Schema
    target: str
    scratch: str | None
    labels: Mapping[str, str]
    attempt: int = 1
    suspects: tuple[tuple[str, ...], ...] = ()
    poisoned: Mapping[str, str] = field(default_factory=dict)
    kept: str | None = None
    job: str = ""
    record: str | None = None
    publish_delays_s: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 60)


@dataclass(frozen=True, slots=True)
class Fetching:
    """Files of the model are on their way to the worker's machine.

    Attributes:
        done: bytes that have arrived.
        total: bytes of the files that are under way; None where no source has told yet.
        seconds: since the first was asked for.
    """

    done: int
    total: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class AwaitingMemory:
    """Others hold memory of the worker's GPU; loading is tried again.

    Attributes:
        reason: a sentence without a full stop.
        wait_s: seconds until then.
    """

    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """These samples enter the engine, where those of earlier batches may be; a death from here on may be theirs.

    With the `last` ones of its shard, the worker can take another shard.
    """

    sample_ids: tuple[str, ...]
    last: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """These samples left the engine (or never had to enter it).

    Attributes:
        sample_ids: which.
        num_ok: how many have an image.
        failed: sample id -> the sentence of its error row.
        times_ms: sums of `text_ms`, `sample_ms`, `decode_ms` and `encode_ms` over the images.
        token_layer_fractions: of the images that have one.
    """

    sample_ids: tuple[str, ...]
    num_ok: int
    failed: Mapping[str, str] = field(default_factory=dict, compare=False)
    times_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    token_layer_fractions: tuple[float, ...] = field(default=(), compare=False)

    @property
    def num_error(self) -> int:
        """How many have no image."""
        return len(self.sample_ids) - self.num_ok


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker waits for storage, which may take long."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The engine has raised before its first image, and has made one since that belongs to nobody: the samples are guilty."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The output did not take the shard's part, which is kept and tried again; without tries left it is given up."""

    reason: str
    tries_left: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The shard's part is published."""

    stats: ShardStats
    num_bytes: int
    engine: dict[str, Any]  # the engine's description and its usage after the shard
    write_s: float = field(
        default=0.0, compare=False
    )  # writing rows, and publishing the part at the first try


@dataclass(frozen=True, slots=True)
class Declined:
    """The shard's earlier part, whose good rows were to be kept, is damaged: it stays as it is, for the user to see."""

    path: str
    reason: str


ShardEvent = Started | Progress | Alive | Proven | Refused | Committed | Declined
