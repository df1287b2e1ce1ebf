"""What a run came to."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from toprovar_batch.worker.shard_stats import ShardStats


@dataclass
class Outcome:
    """What a run came to, so far or in the end.

    Attributes:
        committed: stats of every shard published in this run, by shard id.
        failed: shard id -> why it was given up.
        damaged: shard id -> why the part that is there was left alone, when rows of it were to be kept.
        incidents: every failed attempt and load: what, where and why.
        engines: worker name -> the description of its engine, as of its last shard.
        engine_hashes: worker name -> the hash that the footers of its parts carry.
        stopped_by: the signal that ended the run early, or None.
        num_bytes: published.
        num_workers: most workers that were loaded at one time.
        begun: whether workers were asked for; without it, nothing has run.
    """

    committed: dict[int, ShardStats] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    engine_hashes: dict[str, str] = field(default_factory=dict)
    stopped_by: signal.Signals | None = None
    num_bytes: int = 0
    num_workers: int = 0
    begun: bool = False

    def without(self, missing: Mapping[int, str]) -> "Outcome":
        """The same, but for shards that turned out to be not there.

        Args:
            missing: shard id -> why it counts as given up.
        """
        committed = {shard_id: stats for shard_id, stats in self.committed.items() if shard_id not in missing}
        return replace(self, committed=committed, failed={**self.failed, **missing})
