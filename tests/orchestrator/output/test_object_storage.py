"""A job whose dataset goes to S3: a server on this machine's loopback stands in for it."""

import json
import signal
from datetime import UTC, datetime
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import check_output
from toprovar_batch.orchestrator.output.folder import OutputFolder, open_output
from toprovar_batch.orchestrator.output.fsck import examine
from toprovar_batch.orchestrator.output.reading import reading_call
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.file_aside import FileAside
from toprovar_batch.worker.part_file import dataset_schema


@pytest.fixture(scope="module")
def address():
    """Of the one server of this file: each test has its own folder, and to stop a server takes half a second."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(monkeypatch, address):
    """An S3 with one bucket; this process and those it starts find it."""
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.makedirs("bucket", exist_ok=True)
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_object_that_tries_an_output_goes_again_or_is_named(write_job, s3, monkeypatch):
    job = write_job(output="s3://bucket/tried")
    assert CliRunner().invoke(main, ["validate", job]).stderr == ""
    assert s3.find("bucket/tried") == []

    async def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_rm_file", refuse)
    s3fs.S3FileSystem.clear_instance_cache()  # those that are there have the method at hand
    result = CliRunner().invoke(main, ["validate", job])
    assert result.exit_code == 0
    s3.invalidate_cache()
    [left] = s3.find("bucket/tried")
    assert result.stderr == (
        f"Warning: s3://{left}, a small object to try the output with, stays: Access Denied\n"
    )


@pytest.mark.slow
def test_a_job_drains_and_goes_on_in_object_storage(write_job, s3, start_driver):
    job = write_job([f"prompt {index}" for index in range(80)], output="s3://bucket/out")

    def has_parts():
        s3.invalidate_cache()
        return s3.exists("bucket/out/data")

    driver = start_driver(job)
    # Of two workers one takes 12: a shard of one batch, and two batches behind it, the second of which lets it finish.
    driver.permit(23)
    driver.wait_until(has_parts)
    driver.process.send_signal(signal.SIGINT)
    driver.wait_until(lambda: "draining: finishing" in driver.said)
    assert driver.finish() == 130, driver.said
    s3.invalidate_cache()
    first = {path: s3.info(path)["LastModified"] for path in s3.ls("bucket/out/data")}
    driver = start_driver(job)
    assert driver.finish() == 0, driver.said
    s3.invalidate_cache()
    parts = s3.ls("bucket/out/data")
    assert 0 < len(first) < len(parts) == 20
    assert {path: s3.info(path)["LastModified"] for path in first} == first
    ids = [
        sample_id
        for path in parts
        for sample_id in pq.read_table(path, filesystem=s3)["sample_id"].to_pylist()
    ]
    assert sorted(ids) == sorted(plan_job(load_job(job)).samples["sample_id"].to_pylist())
    status = CliRunner().invoke(main, ["status", "s3://bucket/out", "--json", "--verify"])
    assert status.exit_code == 0, status.output
    assert json.loads(status.stdout)["totals"]["ok"] == 80


def test_a_missing_bucket_is_the_users_mistake(write_job, s3):
    job = write_job(output="s3://no-such-bucket/out")
    for command in ("validate", "submit"):
        result = CliRunner().invoke(main, [command, job])
        assert result.exit_code == 2
        assert (
            result.stderr
            == "Error: s3://no-such-bucket/out: there is no bucket no-such-bucket; make it first\n"
        )


def test_a_refused_upload_is_told_before_the_run_by_validate_as_by_submit(write_job, s3, monkeypatch):
    async def refuse(*_, **__):
        raise PermissionError("Access Denied")

    job = write_job(output="s3://bucket/refused")
    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", refuse)
    s3fs.S3FileSystem.clear_instance_cache()
    for command in (["validate"], ["validate", "--json"], ["submit"]):
        result = CliRunner().invoke(main, [*command, job])
        assert result.exit_code == 2
        assert result.stderr == "Error: s3://bucket/refused: cannot be written: Access Denied\n"


def test_validate_leaves_nothing_in_a_bucket(write_job, s3):
    result = CliRunner().invoke(main, ["validate", write_job(output="s3://bucket/untouched")])
    assert result.exit_code == 0, result.output
    assert s3.find("bucket/untouched") == []


def test_a_new_folder_in_an_empty_bucket_is_new(write_job, s3):
    s3.makedirs("empty", exist_ok=True)
    job = load_job(write_job(output="s3://empty/out"))
    assert check_output(job, plan_job(job)) == "new"
    assert not s3.exists("no-such-bucket")


def test_a_remote_output_is_looked_at(write_job, s3):
    job = load_job(write_job(output="s3://bucket/new"))
    plan = plan_job(job)
    assert check_output(job, plan) == "new"
    s3.pipe("bucket/new/file.txt", b"x")
    s3.invalidate_cache()
    with pytest.raises(OutputFolderError, match=r"holds other files \(file\.txt\)"):
        check_output(job, plan)


def begin(path, *overrides):
    job = load_job(path, overrides)
    with open_output(job, plan_job(job), dataset_schema(())):
        pass


@pytest.fixture
def late_look(monkeypatch):
    """Two drivers that look at once: the first look at a record finds none, though one is there."""
    read = OutputFolder.read_job
    looks = []

    def read_late(folder):
        looks.append(folder)
        return None if len(looks) == 1 else read(folder)

    return lambda: monkeypatch.setattr(OutputFolder, "read_job", read_late)


def test_of_two_jobs_that_begin_at_once_the_later_is_refused(write_job, s3, late_look):
    path = write_job(output="s3://bucket/raced")
    begin(path)
    s3.rm("bucket/raced/README.md")  # which the first writes later
    plan = s3.cat_file("bucket/raced/_job/samples.parquet")
    late_look()
    with pytest.raises(OutputFolderError, match=r"sampling\.seed \(0 there, 7 here\)"):
        begin(path, "sampling.seed=7")
    assert s3.cat_file("bucket/raced/_job/samples.parquet") == plan


def test_a_mended_job_takes_over_what_it_left_without_a_part(write_job, s3, capsys):
    path = write_job(output="s3://bucket/failed")
    begin(path)
    with pytest.raises(OutputFolderError, match=r"belongs to another job, which differs in sampling\.seed"):
        begin(path, "sampling.seed=7")  # the first may be running
    card = s3.cat_file("bucket/failed/README.md")
    s3.pipe_file("bucket/failed/_job/runs/20200101T000000Z-1.json", b"{}")  # of a job before this one
    with pytest.raises(OutputFolderError, match="belongs to another job"):
        begin(path, "sampling.seed=7")
    s3.pipe_file(f"bucket/failed/_job/runs/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-2.json", b"{}")
    begin(path, "sampling.seed=7")
    assert "s3://bucket/failed: taken over from a job that made no part, and differs in sampling.seed" in (
        capsys.readouterr().err
    )
    assert json.loads(s3.cat_file("bucket/failed/_job/job.json"))["identity"]["sampling.seed"] == 7
    assert s3.cat_file("bucket/failed/_job/README.md") == card
    s3.pipe_file("bucket/failed/data/part-00000-of-00002.parquet", b"made")
    with pytest.raises(OutputFolderError, match="belongs to another job"):
        begin(path)


def test_one_job_that_begins_twice_at_once_may(write_job, s3, late_look):
    path = write_job(output="s3://bucket/twice")
    begin(path)
    s3.rm("bucket/twice/README.md")
    late_look()
    begin(path)


def test_a_store_without_exclusive_writes_is_written_all_the_same(write_job, s3, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("exclusive writes")

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", refuse)
    begin(write_job(output="s3://bucket/plain"))
    assert s3.exists("bucket/plain/_job/job.json")


def test_datasets_reads_an_output_in_object_storage_as_it_is_now(s3, tmp_path):
    def write(shard_id):
        with s3.open(f"bucket/read/data/part-{shard_id:05d}-of-00002.parquet", "wb") as file:
            pq.write_table(pa.table({"sample_id": [f"s{shard_id}"]}), file)

    def read():
        load = partial(datasets.load_dataset, cache_dir=str(tmp_path / "cache"))
        return eval(reading_call("s3://bucket/read"), {"load_dataset": load})["sample_id"]

    write(0)
    assert read() == ["s0"]
    write(1)
    assert read() == ["s0", "s1"]


def test_a_foreign_and_a_damaged_object_are_moved_away(write_job, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # of this test alone: fsck looks there, too
    job = load_job(write_job(output="s3://bucket/mixed"))
    plan = plan_job(job)
    with open_output(job, plan, dataset_schema([])):
        s3.pipe_file("bucket/mixed/data/part-00000-of-00002.parquet", b"cut")
        s3.pipe_file("bucket/mixed/data/part-[0]*.parquet", b"foreign")
    found = examine(job.output, repair=True).findings
    assert [(finding.kind, finding.is_done) for finding in found] == [("damaged", True), ("foreign", True)]
    removed = "bucket/mixed/_job/removed"
    assert s3.cat_file(f"{removed}/part-00000-of-00002.parquet.removed") == b"cut"
    assert s3.cat_file(f"{removed}/part-[0]*.parquet.removed") == b"foreign"
    assert examine(job.output).findings == []


def test_fsck_finds_the_unfinished_parts_of_dead_processes_on_this_machine(
    write_job, s3, tmp_path, monkeypatch
):
    """The workers of a remote output have them in the temporary folder, where others may be living."""
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    job = load_job(write_job(output="s3://bucket/stale"))
    plan = plan_job(job)
    with open_output(job, plan, dataset_schema([])):
        pass
    dead = folder / "toprovar-batch-part-00000-of-00002.parquet.0123.tmp"
    with FileAside("part-00001-of-00002.parquet", None) as living:
        dead.write_bytes(b"half")
        assert [(found.kind, found.path) for found in examine(job.output).findings] == [("stale", str(dead))]
        assert dead.exists()
        (found,) = examine(job.output, repair=True).findings
        assert found.is_done
        assert list(folder.iterdir()) == [living]
        assert examine(job.output).findings == []
