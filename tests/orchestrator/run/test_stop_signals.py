"""Signals where no main loop listens for them."""

import signal
import sys

import pytest

from toprovar_batch.orchestrator.run.stop_signals import (
    Terminated,
    keeping_sigterm,
    signal_of,
    sigterm_raises,
)


def start_as_ray_does():
    """Install Ray's handler, and be hit."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_raises_in_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as caught, sigterm_raises():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (signal_of(caught.value), signal_of(KeyboardInterrupt())) == (signal.SIGTERM, signal.SIGINT)


def test_sigterm_while_ray_starts_is_a_stop_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), keeping_sigterm():
        start_as_ray_does()
    assert signal.getsignal(signal.SIGTERM) == before


def test_any_other_exit_while_ray_starts_stays_what_it_is():
    with pytest.raises(SystemExit) as caught, keeping_sigterm():
        sys.exit(1)
    assert caught.value.code == 1
