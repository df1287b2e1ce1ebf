"""How often a model is loaded again, on a clock that stands."""

from toprovar_batch.orchestrator.run.load_guard import LoadGuard


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_load_failures_count_in_a_row():
    guard = LoadGuard(max_failures=2)
    guard.failed()
    guard.loaded()
    guard.failed()
    assert not guard.exhausted
    assert guard.may_start(3, 1) == 3
    guard.failed()
    assert guard.exhausted
    assert guard.may_start(3, 1) == 0


def test_after_too_many_failures_one_at_a_time_is_tried_after_waits_that_double():
    clock = Clock()
    guard = LoadGuard(max_failures=2, clock=clock)
    guard.failed()
    waits = []
    for _ in range(8):
        guard.failed()
        waits.append(guard.wait_s)
        clock.now += guard.wait_s - 1
        assert guard.may_start(3, 0) == 0
        clock.now += 1
        assert (guard.may_start(3, 0), guard.may_start(3, 1), guard.may_start(0, 0)) == (1, 0, 0)
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_worker_that_loads_ends_the_waiting():
    guard = LoadGuard(max_failures=1, clock=Clock())
    guard.failed()
    guard.loaded()
    assert guard.may_start(3, 0) == 3
