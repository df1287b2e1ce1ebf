"""What the summary of a run says of its speed."""

from datetime import UTC, datetime

from toprovar_batch.orchestrator.run.outcome import Outcome
from toprovar_batch.orchestrator.run.record import run_record
from toprovar_batch.orchestrator.run.summary import RunSummary
from toprovar_batch.worker.shard_stats import ShardStats


def make_summary(generated, seconds, worker_seconds, num_workers):
    run = ShardStats(rows=generated, ok=generated, generated=generated, wall_s=worker_seconds)
    return RunSummary("out", generated, 1, run, run, 1, seconds, num_workers, 0)


def test_the_steady_speed_is_that_of_all_workers_and_the_overall_one_counts_loading():
    summary = make_summary(generated=120, seconds=20.0, worker_seconds=24.0, num_workers=2)
    assert (summary.overall_speed, summary.steady_speed, summary.worker_speed) == (6, 10, 5)
    said = "6.00 images/s overall, loading included; 10.00 images/s steady, 5.00 a worker"
    assert any(line.endswith(said) for line in summary.lines("again"))
    record = run_record(summary, Outcome(), datetime.now(UTC))
    speeds = [f"{kind}images_per_second" for kind in ("", "steady_", "worker_")]
    assert [record[key] for key in speeds] == [6, 10, 5]


def test_no_time_is_no_speed():
    summary = make_summary(generated=1, seconds=0.0, worker_seconds=0.0, num_workers=1)
    assert any(line.endswith("too fast to tell") for line in summary.lines("again"))
    assert (summary.overall_speed, summary.steady_speed) == (0, 0)
