"""Turns by a schedule: who goes on, when copies arrive, and how it ends."""

import threading

import pytest

from .interleaving import Interleaving, Schedule


class Flag:
    """What a copy raises and parts wait for."""

    def __init__(self):
        self.is_up = False

    def put_up(self):
        self.is_up = True


def _events(schedule):
    """What happens where part 0 starts two copies, part 1 needs the second, and part 2 needs nothing, then both."""
    turns = Interleaving(schedule)
    flags = [Flag(), Flag()]

    def loads():
        for flag in flags:
            turns.start_copy(flag, flag.put_up)
            turns.pause(lambda: True, None)

    def needs_the_second():
        turns.pause(lambda: flags[1].is_up, flags[1])

    def needs_both_at_the_end():
        turns.pause(lambda: True, None)
        turns.pause(lambda: flags[0].is_up and flags[1].is_up, None)

    turns.run([(loads, ()), (needs_the_second, ()), (needs_both_at_the_end, ())])
    return turns.trace


def test_a_late_copy_arrives_when_no_part_can_go_on_and_an_awaited_one_first():
    assert _events(Schedule(0, (1, 0, 2), "late")) == [
        *("part 1", "part 0", "part 0", "part 0", "part 2", "part 2"),
        *("copy 2", "part 1", "copy 1", "part 2"),
    ]


def test_an_early_copy_arrives_before_any_part_goes_on():
    assert _events(Schedule(0, (1, 0, 2), "early")) == [
        *("part 1", "part 0", "copy 1", "part 0", "copy 2", "part 1", "part 0"),
        *("part 2", "part 2", "part 2"),
    ]


def test_seeds_decide_what_no_order_does():
    schedules = [Schedule(seed) for seed in range(5)]
    events = [tuple(_events(schedule)) for schedule in schedules]
    assert events == [tuple(_events(schedule)) for schedule in schedules]
    assert len(set(events)) > 1
    assert {tuple(sorted(each)) for each in events} == {tuple(sorted(events[0]))}


def test_one_part_runs_at_a_time():
    turns = Interleaving(Schedule(0))
    running = []

    def counts():
        for _ in range(50):
            running.append(threading.get_ident())
            assert len(running) == 1
            running.clear()
            turns.pause(lambda: True, None)

    turns.run([(counts, ())] * 3)
    assert len(turns.trace) == 3 * 51


def test_parts_that_wait_for_what_never_comes_are_ended_at_once():
    threads = threading.active_count()
    turns = Interleaving(Schedule(0))

    def waits():
        turns.pause(lambda: False, None)

    with pytest.raises(AssertionError, match="never passed"):
        turns.run([(waits, ()), (waits, ()), (lambda: None, ())])
    assert threading.active_count() == threads


def test_a_part_that_fails_ends_the_others():
    threads = threading.active_count()
    turns = Interleaving(Schedule(0, (0, 1)))

    def waits():
        turns.pause(lambda: False, None)

    with pytest.raises(ZeroDivisionError):
        turns.run([(waits, ()), (lambda: 1 / 0, ())])
    assert threading.active_count() == threads


def test_a_copy_may_not_outlive_the_parts():
    turns = Interleaving(Schedule(0, copies="late"))
    with pytest.raises(AssertionError, match="in flight"):
        turns.run([(lambda: turns.start_copy(None, lambda: None), ())])
