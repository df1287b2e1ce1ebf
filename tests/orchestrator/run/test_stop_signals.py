"""Signals where no main loop listens for them."""

import signal
import sys

import pytest

from toprovar_batch.orchestrator.run.stop_signals import (
    Terminated,
    undisturbed_start,
)


@pytest.mark.parametrize(
    ("number", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_while_ray_starts_waits_until_it_has_started(number, stop):
    before = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    happened = []

    def start():
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))  # as Ray does
        signal.raise_signal(number)
        happened.append("started")

    with pytest.raises(KeyboardInterrupt) as caught, undisturbed_start():
        start()
    assert (type(caught.value), happened) == (stop, ["started"])
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_does_not_wait_for_a_start_that_may_never_end():
    def start():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(Terminated), undisturbed_start():
        start()


def test_other_handlers_can_be_installed_while_ray_starts():
    before = signal.getsignal(signal.SIGUSR1)
    with undisturbed_start():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.signal(signal.SIGUSR1, before) == signal.SIG_IGN
