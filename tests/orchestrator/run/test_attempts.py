"""Who is at which shard, and which shard takes too long, on a clock that a test moves."""

import pytest

from toprovar_batch.orchestrator.run.attempts import Attempts, Rows, Won
from toprovar_batch.orchestrator.run.fleet_events import Worker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    """Three shards of 20 seconds each are done, and another worker has begun shard 9."""
    attempts = Attempts(clock)
    worker = make_worker()
    for shard_id in range(3):
        attempts.begin(worker, shard_id, plain=True)
        clock.now += 20
        attempts.win(worker, shard_id)
    return attempts


def make_worker():
    return Worker(actor=None, source=None)


@pytest.mark.parametrize(("seconds", "found"), [(40, None), (41, 9)])
def test_a_shard_that_takes_twice_as_long_as_the_others_is_a_straggler(attempts, clock, seconds, found):
    attempts.begin(make_worker(), 9, plain=True)
    clock.now += seconds
    assert attempts.straggler() == found


def test_short_shards_differ_by_seconds_without_being_stragglers(clock):
    attempts = Attempts(clock)
    for shard_id in range(4):
        attempts.begin(make_worker(), shard_id, plain=True)
    for shard_id in range(3):
        [worker] = attempts._running[shard_id].rows
        attempts.win(worker, shard_id)
    clock.now += 10
    assert attempts.straggler() is None
    clock.now += 1
    assert attempts.straggler() == 3


def test_nothing_is_slow_before_some_are_done_and_nothing_twice_or_of_what_is_tried_again(clock, attempts):
    fresh = Attempts(clock)
    fresh.begin(make_worker(), 1, plain=True)
    attempts.begin(make_worker(), 7, plain=False)
    attempts.begin(make_worker(), 9, plain=True)
    attempts.begin(make_worker(), 9, plain=False)
    clock.now += 1000
    assert (fresh.straggler(), attempts.straggler(), attempts.tried_again) == (None, None, {9})


def test_the_user_sees_the_rows_of_one_attempt_and_all_of_the_part_that_is_first(attempts):
    slow, quick = make_worker(), make_worker()
    attempts.begin(slow, 9, plain=True)
    assert attempts.told(slow, 9, Rows(2, 1))
    attempts.begin(quick, 9, plain=False)
    assert not attempts.told(quick, 9, Rows(6, 2))
    assert attempts.win(quick, 9) == Won([slow], Rows(4, 1))
    assert not attempts.runs(slow, 9)


def test_an_attempt_that_is_lost_leaves_the_other_one(attempts):
    slow, quick = make_worker(), make_worker()
    attempts.begin(slow, 9, plain=True)
    attempts.told(slow, 9, Rows(3, 0))
    attempts.begin(quick, 9, plain=False)
    attempts.told(quick, 9, Rows(1, 0))
    assert attempts.end(slow, 9) == Rows(-2, 0)
    assert attempts.told(quick, 9, Rows(1, 0))
    assert attempts.end(quick, 9) is None
