"""A job whose dataset goes to S3: a server on this machine's loopback stands in for it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job import load_job
from toprovar_batch.orchestrator.plan import plan_job

FAKE_DRIVER = Path(__file__).with_name("fake_driver.py")


@pytest.fixture
def s3(monkeypatch):
    """An S3 with one bucket; this process and those it starts find it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.makedirs("bucket", exist_ok=True)  # moto's buckets outlive its server
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def run_driver(job, folder, **options):
    command = [sys.executable, str(FAKE_DRIVER), job, str(folder), "0.02"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ, **options
    )


@pytest.mark.slow
def test_a_job_drains_and_goes_on_in_object_storage(write_job, tmp_path, s3):
    job = write_job([f"prompt {index}" for index in range(40)], output="s3://bucket/out")
    driver = run_driver(job, tmp_path)
    while not s3.exists("bucket/out/data"):
        with pytest.raises(subprocess.TimeoutExpired):  # it must not end by itself
            driver.wait(timeout=0.2)
        s3.invalidate_cache()
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    s3.invalidate_cache()
    first = {path: s3.info(path)["LastModified"] for path in s3.ls("bucket/out/data")}
    driver = run_driver(job, tmp_path)
    said = driver.communicate(timeout=60)[0]
    assert driver.returncode == 0, said
    s3.invalidate_cache()
    parts = s3.ls("bucket/out/data")
    assert 0 < len(first) < len(parts) == 10
    assert {path: s3.info(path)["LastModified"] for path in first} == first
    ids = [
        sample_id
        for path in parts
        for sample_id in pq.read_table(path, filesystem=s3)["sample_id"].to_pylist()
    ]
    assert sorted(ids) == sorted(plan_job(load_job(job)).samples["sample_id"].to_pylist())
    status = CliRunner().invoke(main, ["status", "s3://bucket/out", "--json", "--verify"])
    assert status.exit_code == 0, status.output
    assert json.loads(status.stdout)["totals"]["ok"] == 40


def test_a_missing_bucket_is_the_users_mistake(write_job, s3):
    result = CliRunner().invoke(main, ["submit", write_job(output="s3://no-such-bucket/out")])
    assert result.exit_code == 2
    assert "s3://no-such-bucket/out: cannot be written" in result.stderr
    assert not s3.exists("no-such-bucket")
