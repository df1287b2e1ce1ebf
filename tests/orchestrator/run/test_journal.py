import json
import re
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output
from toprovar_batch.orchestrator.output.names import RUNS_FOLDER
from toprovar_batch.orchestrator.run import log_pages
from toprovar_batch.orchestrator.run.fleet_events import Dismissed, Lost, Reported, Worker
from toprovar_batch.orchestrator.run.journal import Journal
from toprovar_batch.orchestrator.run.ledger import Assignment
from toprovar_batch.orchestrator.run.log_pages import LogPages, newest_pages
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.shard_events import Progress, Started

STEM = "20261129T210000Z-7"


class Store:
    """An object store by order of a test: what it holds, and what it was asked for."""

    def __init__(self):
        self.objects, self.asked, self.refusing = {}, [], False

    def pipe_file(self, path, content):
        self.asked.append(path)
        if self.refusing:
            raise PermissionError("403")
        self.objects[path] = content

    def rm_file(self, path):
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def stored(store):
    """Pages in the store, whose uploads happen when a test says so."""
    pages = LogPages(OutputFolder("s3://b/out", store, "b/out"), ("runs",), STEM, upload_every_s=1e6)
    yield pages
    pages.close()


def lines(folder):
    return [
        re.sub(r"^\S+Z ", "", line)
        for path in sorted((folder / "_job/runs").glob("*.log"))
        for line in path.read_text().splitlines()
    ]


def test_a_run_tells_of_each_shard_and_each_error_row(write_job, tmp_path, make_engine_factory):
    job = write_job(["a cat", "refuse", "kill-once now", "a cube"], shard_size=2, num_workers=1)
    submit(job, engine_factory=make_engine_factory())
    told = "\n".join(lines(tmp_path / "out"))
    for pattern in (
        r"INFO job \S+: 2 shards to do of 2",
        r"INFO \S+:\d+ has loaded on fake, engine [0-9a-f]{16}",
        r"INFO shard 0 goes to \S+:\d+, attempt 1",
        r"INFO shard 0 enters the engine of \S+:\d+: \S+, \S+",
        r"WARNING shard 0, sample \S+ is an error row: refused",
        r"INFO shard 0 published by \S+:\d+: attempt \d, 2 rows, 1 with an image, \d+ bytes, \d+\.\d s",
        r"WARNING shard 1 lost by \S+:\d+ \(death\): its process died.*; in flight: \S+, \S+",
        r"WARNING shard 1 begins again: ",
        r"INFO shard 1 goes to \S+:\d+, attempt 2",
        r"INFO shard 1 published by \S+:\d+: attempt 2, 2 rows, 2 with an image",
        r"INFO the run ends",
    ):
        assert re.search(pattern, told), pattern
    [log] = (tmp_path / "out/_job/runs").glob("*.log")
    assert log.with_suffix(".json").exists()
    status = CliRunner().invoke(main, ["status", str(tmp_path / "out")]).output
    assert f"log of the last run: {log}" in status.splitlines()
    status = CliRunner().invoke(main, ["status", str(tmp_path / "out"), "--json"]).output
    assert json.loads(status)["log"] == [str(log)]


def test_the_log_tells_of_workers_that_are_ended_without_a_loss(tmp_path):
    with Journal(locate_output(str(tmp_path)), STEM, "job x") as journal:
        journal.heard(Dismissed(Worker(actor=None, source=None, name="host:1")))
        journal.heard(Dismissed(Worker(actor=None, source=None)))
    assert lines(tmp_path)[1:3] == [
        "INFO host:1 is ended, and no shard is lost with it",
        "INFO a worker that was loading is ended, and no shard is lost with it",
    ]


def test_an_entry_is_a_line_without_credentials_or_controls(tmp_path):
    worker = Worker(actor=None, source=None, name="host:1")
    with Journal(locate_output(str(tmp_path)), STEM, "job s3://user:hunter2@b/x") as journal:
        journal.heard(Reported(worker, 3, Started(("evil\n2026 INFO \x1b[2J", "b" * 5000))))
        journal.heard(
            Reported(worker, 3, Progress(("a",), 0, {"a": "GET https://u:hunter2@h/p?sig=hunter2"}))
        )
        journal.heard(Lost(worker, 3, tuple(map(str, range(100))), raised=True, reason="x" * 9000))
        journal.handed_out("host:1", Assignment(3, 2, (("a", "b"),), {"c": "killed its worker"}))
    told = lines(tmp_path)
    assert len(told) == 6
    assert "hunter2" not in "".join(told)
    assert "\x1b" not in "".join(told)
    assert r"evil\n2026 INFO \x1b[2J" in told[1]
    assert max(map(len, told)) <= 4000
    assert told[4] == "INFO shard 3 goes to host:1, attempt 2; suspects: a, b; set aside: c"


def test_each_line_is_in_a_local_file_before_the_next(tmp_path):
    pages = LogPages(locate_output(str(tmp_path)), ("runs",), STEM)
    for number in range(3):
        pages.add(f"line {number}")
        assert (tmp_path / f"runs/{STEM}.log").read_text().splitlines()[-1] == f"line {number}"
    pages.close()


def test_local_pages_are_bounded_and_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(log_pages, "PAGE_BYTES", 100)
    monkeypatch.setattr(log_pages, "NUM_PAGES", 3)
    pages = LogPages(locate_output(str(tmp_path)), ("runs",), STEM)
    for number in range(100):
        pages.add(f"line {number:04d}")  # ten bytes
    pages.close()
    names = newest_pages(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"{STEM}.{number}.log" for number in (8, 9, 10)]
    assert "".join((tmp_path / "runs" / name).read_text() for name in names).split("\n")[:-1] == [
        f"line {number:04d}" for number in range(70, 100)
    ]


def test_a_store_gets_the_page_under_way_again_only_when_it_has_grown(store, stored):
    stored.add("one")
    stored._upload()
    stored._upload()
    assert store.asked == [f"b/out/runs/{STEM}.log"]
    stored.add("two")
    stored._upload()
    assert store.objects == {f"b/out/runs/{STEM}.log": b"one\ntwo\n"}
    stored.add("three")
    stored.close()
    assert store.objects == {f"b/out/runs/{STEM}.log": b"one\ntwo\nthree\n"}


def test_pages_in_a_store_are_bounded_also_while_it_refuses(store, stored, monkeypatch):
    monkeypatch.setattr(log_pages, "PAGE_BYTES", 100)
    monkeypatch.setattr(log_pages, "NUM_PAGES", 3)
    stored.add("x" * 100)
    stored._upload()
    assert list(store.objects) == [f"b/out/runs/{STEM}.log"]
    store.refusing = True
    for number in range(50):
        stored.add(f"line {number:04d}")
    stored._upload()
    assert (len(store.objects), stored.trouble) == (1, "403")
    store.refusing = False
    for number in range(50, 100):
        stored.add(f"line {number:04d}")
        stored._upload()
    assert sorted(store.objects) == sorted(f"b/out/runs/{STEM}.{number}.log" for number in (9, 10, 11))
    assert store.objects[f"b/out/runs/{STEM}.11.log"].startswith(b"line 0090\n")


def test_a_log_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path):
    (tmp_path / "_job").write_text("a file where the folder should be")
    told = []
    with Journal(locate_output(str(tmp_path)), STEM, "begin", told.append) as journal:
        journal.say("something")
        journal.tick()
        journal.tick()
    [sentence] = told
    assert sentence.startswith("Warning: the run's log cannot be written: ")


def test_the_pages_of_the_latest_run_come_in_order():
    names = ["20261129T210000Z-7.log", "20261128T230000Z-9.log", "20261129T210000Z-7.json", "notes.log"]
    names += ["20261129T210000Z-7.10.log", "20261129T210000Z-7.2.log"]
    assert newest_pages(names) == [f"20261129T210000Z-7{number}.log" for number in ("", ".2", ".10")]
    assert newest_pages(["x.json"]) == []


def test_a_log_is_no_sign_that_its_run_has_ended(tmp_path):
    folder, begun = locate_output(str(tmp_path)), datetime(2026, 11, 29, 21, tzinfo=UTC)
    with Journal(folder, STEM, "begin"):
        assert not folder.has_ended_run(since=begun)
    folder.publish("{}", *RUNS_FOLDER, f"{STEM}.json")
    assert folder.has_ended_run(since=begun)
