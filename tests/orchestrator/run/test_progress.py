"""What a terminal and a log get to see of a run."""

import io
from types import SimpleNamespace

import pytest

from toprovar_batch.orchestrator.run import progress
from toprovar_batch.orchestrator.run.fleet_events import (
    Arriving,
    Dismissed,
    Loaded,
    LoadFailed,
    Placed,
    Worker,
)
from toprovar_batch.orchestrator.run.progress import ProgressBar
from toprovar_batch.worker.shard_events import Fetching


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The clock of the lines that a log gets; it stands unless a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_plain_lines():
    log = io.StringIO()
    bar = ProgressBar(total=10, done=2, errors=1, stream=log)
    bar.progress(0, 3, 1)
    bar.say("a sentence")
    bar.close()
    first, last = log.getvalue().splitlines()
    assert first == "a sentence"
    assert "6/10" in last
    assert "failed=2" in last
    assert "\r" not in log.getvalue()


def test_a_log_gets_a_line_every_half_minute(clock):
    log = io.StringIO()
    bar = ProgressBar(total=10, done=0, errors=0, stream=log)
    for seconds in (29, 2, 29, 2):
        clock.now += seconds
        bar.progress(0, 1, 0)
    assert ["2/10" in line or "4/10" in line for line in log.getvalue().splitlines()] == [True, True]
    bar.close()


def test_a_shard_that_begins_again_takes_its_rows_back():
    log = io.StringIO()
    bar = ProgressBar(total=10, done=0, errors=0, stream=log)
    bar.progress(0, 2, 2)
    bar.progress(1, 1, 0)
    bar.restarted(0, "its process died")
    bar.close()
    said, last = log.getvalue().splitlines()
    assert said == "shard 0 begins again: its process died"
    assert "1/10" in last
    assert "failed=0" in last


def test_a_terminal_gets_a_bar_that_redraws():
    terminal = Terminal()
    bar = ProgressBar(total=4, done=0, errors=0, stream=terminal)
    bar.progress(0, 4, 0)
    bar.close()
    assert "\r" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


def loading_worker():
    return Worker(actor=None, source=None)


def test_what_comes_before_the_first_row_is_told_and_is_no_bar_at_zero(clock):
    log = io.StringIO()
    bar = ProgressBar(total=10, done=0, errors=0, stream=log)
    first, second = loading_worker(), loading_worker()
    bar.starts("starting Ray")
    bar.heard(Placed(first))
    bar.heard(Placed(second))
    bar.heard(Arriving(first, Fetching(500_000_000, 2_000_000_000, 5.0)))
    bar.heard(Arriving(first, Fetching(600_000_000, 2_000_000_000, 6.0)))  # other numbers alone: not yet
    clock.now += 31
    bar.heard(Arriving(first, Fetching(2_000_000_000, 2_000_000_000, 20.0)))
    bar.heard(Loaded(first, {}))
    bar.heard(LoadFailed(second, "no memory", None))
    assert log.getvalue().splitlines() == [
        "starting Ray",
        "1 worker loading the model",
        "2 workers loading the model",
        "1 worker fetching weights: 0.50 of 2.00 GB at 100 MB/s, 1 worker loading the model",
        "1 worker fetching weights: 2.00 of 2.00 GB at 100 MB/s, 1 worker loading the model",
        "1 worker loading the model, 1 worker warming up",
        "1 worker warming up",
    ]
    bar.progress(0, 1, 0)
    bar.heard(Loaded(second, {}))  # images are made by now
    assert len(log.getvalue().splitlines()) == 7


def test_a_worker_that_was_dismissed_while_it_loaded_is_told_of_no_more():
    log = io.StringIO()
    bar = ProgressBar(total=10, done=0, errors=0, stream=log)
    first, second = loading_worker(), loading_worker()
    for worker in (first, second):
        bar.heard(Placed(worker))
    bar.heard(Dismissed(first))
    assert log.getvalue().splitlines()[-1] == "1 worker loading the model"


def test_a_terminal_shows_no_percentage_before_the_first_row():
    terminal = Terminal()
    bar = ProgressBar(total=4, done=0, errors=0, stream=terminal)
    terminal.truncate(0)
    bar.heard(Placed(loading_worker()))
    assert "1 worker loading the model" in terminal.getvalue()
    assert "%" not in terminal.getvalue()
    bar.progress(0, 4, 0)
    bar.close()
    assert "4/4" in terminal.getvalue()
