"""What `bench` and `calibrate` say while they compute."""

import io

import pytest

from toprovar_batch.orchestrator import steps as steps_module
from toprovar_batch.orchestrator.steps import ToldSteps


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(steps_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_step_and_one_every_half_minute(clock):
    stream = io.StringIO()
    steps = ToldSteps(stream)
    steps.begin("timing batches", 3)
    steps.advance()
    clock[0] += 31
    steps.advance()
    steps.begin("loading\x1b[2J weights")
    steps.end()
    first, counts, last = stream.getvalue().splitlines()
    assert (first, last) == ("timing batches", "loading\\x1b[2J weights")
    assert "| 2/3 [" in counts


def test_a_terminal_gets_a_bar_that_goes_away():
    stream = Terminal()
    steps = ToldSteps(stream)
    steps.begin("timing batches", 3)
    steps.end()
    assert "timing batches:   0%" in stream.getvalue()
    assert stream.getvalue().endswith("\r")
    assert "\n" not in stream.getvalue()
