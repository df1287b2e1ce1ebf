"""Signs of life while storage takes long."""

import threading

import pytest

from toprovar_batch.worker.publishing import publish_again, seal_and_show, with_signs
from toprovar_batch.worker.shard_events import Alive, Refused
from toprovar_batch.worker.worker_errors import OutputRefusedError


class Part:
    """A part whose publication waits for an order, after so many refusals."""

    def __init__(self, refusals=0):
        self.refusals, self.may_arrive, self.shown = refusals, threading.Event(), 0

    def seal(self, record):
        return 7

    def show(self):
        self.may_arrive.wait()
        if self.refusals:
            self.refusals -= 1
            raise PermissionError("403")
        self.shown += 1


def test_an_upload_that_takes_long_gives_signs_of_life():
    part = Part()
    events = with_signs(part.show, every_s=0)
    assert next(events) == Alive()
    part.may_arrive.set()
    assert all(event == Alive() for event in events)
    assert part.shown == 1


def test_a_refusal_is_told_and_tried_again():
    part = Part(refusals=1)
    part.may_arrive.set()
    assert seal_and_show(part, {}) == (7, "PermissionError: 403")
    assert list(publish_again(part, "PermissionError: 403", (0, 0))) == [Refused("PermissionError: 403", 2)]
    part = Part(refusals=1)
    part.may_arrive.set()
    with pytest.raises(OutputRefusedError, match="403"):
        list(publish_again(part, "first", (0,)))


def test_what_takes_too_long_gives_no_more_signs():
    may_end = threading.Event()
    signs = with_signs(lambda: may_end.wait() and "done", every_s=0, longest_s=0)
    may_end.set()
    with pytest.raises(StopIteration) as ended:
        next(signs)
    assert ended.value.value == "done"


def test_an_exception_of_the_work_is_raised():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(with_signs(fail))
