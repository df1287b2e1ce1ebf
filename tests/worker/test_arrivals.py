"""What is told of a model's files while they arrive."""

import threading

import fsspec
import pytest

from toprovar_batch.worker import fetch as fetch_module
from toprovar_batch.worker.arrivals import ByteCount, arrivals, counting_bar
from toprovar_batch.worker.models import fetch_model
from toprovar_batch.worker.resolved import ModelFiles
from toprovar_batch.worker.shard_events import Fetching


def test_bytes_of_all_files_are_summed_and_told_while_they_arrive():
    told = threading.Event()

    def fetch(count):
        count.note("a", 10, 100)
        count.note("b", 5, None)
        told.wait()  # until the first sums were read

    found = []
    for state in arrivals(fetch, every_s=0.01):
        found.append(state)
        told.set()
    assert [(state.done, state.total) for state in found] == [(15, 100)]
    assert isinstance(found[0], Fetching)


def test_what_is_here_already_is_not_told():
    assert list(arrivals(lambda count: None)) == []


def test_a_file_that_cannot_be_had_is_an_error():
    def fetch(count):
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        list(arrivals(fetch, every_s=0.01))


def test_files_behind_urls_are_counted_to_their_last_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path))
    files = fsspec.filesystem("memory")
    files.pipe({"/arriving/t.pth": b"x" * 1000, "/arriving/v.pth": b"x" * 234})
    count = ByteCount()
    fetch_model(ModelFiles("memory://arriving/t.pth", "memory://arriving/v.pth", None), count)
    assert count.sums() == (1234, 1234)
    again = ByteCount()
    fetch_model(ModelFiles("memory://arriving/t.pth", "memory://arriving/v.pth", None), again)
    assert again.sums() == (0, None)
    assert fetch_module.fetch("memory://arriving/t.pth").read_bytes() == b"x" * 1000


def test_the_bars_of_the_hub_tell_bytes_and_draw_nothing(capsys):
    count = ByteCount()
    bar = counting_bar(count)
    files = bar(total=2, desc="Fetching 2 files", name="hub")
    received = bar(total=100, unit="B", desc="Downloading bytes")
    written = bar(total=100, unit="B", desc="Reconstructing")
    for each in (files, received, written):
        each.update(1)
        each.close()
    assert count.sums() == (1, 100)
    assert capsys.readouterr().err == ""
