import io

from toprovar_batch.orchestrator.run.progress import ProgressBar


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
