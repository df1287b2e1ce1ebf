"""How fast a dataset grows, as its footers tell."""

from datetime import UTC, datetime, timedelta

from toprovar_batch.orchestrator.run.rates import growth
from toprovar_batch.worker.shard_stats import ShardStats

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def part(worker, seconds_ago, images=60, wall_s=30.0):
    finished = (NOW - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds")
    return ShardStats(
        rows=images, ok=images, generated=images, wall_s=wall_s, worker=worker, finished=finished
    )


def test_the_speed_now_is_that_of_each_workers_last_shard():
    parts = [part("a:1", 70), part("a:1", 40, wall_s=20.0), part("b:2", 10)]
    rates = growth(parts, samples_left=500, now=NOW)
    assert rates.since == NOW - timedelta(seconds=100)
    assert (rates.average, rates.now, rates.left_s) == (1.8, 5.0, 100.0)
    assert [(name, each.images, each.shards) for name, each in rates.workers.items()] == [
        ("a:1", 120, 2),
        ("b:2", 60, 1),
    ]


def test_a_worker_that_is_long_overdue_adds_no_speed():
    rates = growth([part("a:1", 121), part("b:2", 119)], samples_left=10, now=NOW)
    assert [each.active for each in rates.workers.values()] == [False, True]
    assert (rates.now, rates.left_s) == (2.0, 5.0)
    gone = growth([part("a:1", 1000)], samples_left=10, now=NOW)
    assert (gone.now, gone.left_s) == (0, None)


def test_parts_of_earlier_runs_do_not_count():
    since = NOW - timedelta(seconds=60)
    rates = growth([part("a:1", 500), part("b:2", 10)], samples_left=10, now=NOW, since=since)
    assert (list(rates.workers), rates.average) == (["b:2"], 1.0)
    assert growth([part("a:1", 500), ShardStats()], samples_left=10, now=NOW, since=since) is None
