"""What `status` says of a job that runs, or ran, from its folder alone."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands import status as status_module
from toprovar_batch.orchestrator.commands.status import read_status
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.shard_stats import ShardStats


@pytest.fixture
def job(write_job):
    """A job of two shards of four samples, with its plan and schema."""
    spec = load_job(write_job())
    plan = plan_job(spec)
    return spec, plan, dataset_schema(item for item in plan.samples.schema if item.name not in PLAN_COLUMNS)


def publish(folder, plan, schema, shard_id, **known):
    """Publish a shard whose worker says what is `known`."""
    samples = plan.shard(shard_id)
    stats = ShardStats(job=folder.job, **known)
    rows = result_rows(samples, [{"status": "ok"}] * samples.num_rows, schema)
    stats.add_rows(rows)
    with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
        part.write(rows)
        part.publish({"shard_id": shard_id, **stats.to_json()})


def test_a_job_that_runs_says_where_since_when_and_how_fast(job):
    spec, plan, schema = job
    finished = (datetime.now(UTC) - timedelta(seconds=5)).isoformat(timespec="seconds")
    with open_output(spec, plan, schema) as folder:
        publish(folder, plan, schema, 0, worker="host:7", generated=4000, wall_s=2000.0, finished=finished)
        record = read_status(spec.output)
        said = CliRunner().invoke(main, ["status", spec.output])
        lock = json.loads(folder.filesystem.cat_file(folder.inside("_job", "driver.lock")))
    assert record["driver"] == {**lock, "alive": True}
    assert said.exit_code == 0, said.output
    assert f"running: process {lock['pid']} on {lock['host']} since {lock['since']}" in said.output
    assert "2.00 images/s now, " in said.output
    assert ", 0:00:02 left" in said.output
    assert "  host:7: 2.00 images/s, 4,000 images in 1 shard, the last " in said.output


def test_a_driver_that_died_is_called_dead(job):
    spec, plan, schema = job
    with open_output(spec, plan, schema) as folder:
        lock = folder.inside("_job", "driver.lock")
    holder = json.loads(folder.filesystem.cat_file(lock))
    folder.filesystem.pipe_file(
        lock, json.dumps(holder | {"pid": 2**22 + 1}).encode()
    )  # above any process id
    assert f"dead: process {2**22 + 1} on " in CliRunner().invoke(main, ["status", spec.output]).output
    folder.filesystem.pipe_file(lock, json.dumps(holder | {"host": "elsewhere"}).encode())
    assert "running, or dead: process " in CliRunner().invoke(main, ["status", spec.output]).output


@pytest.mark.parametrize("command", [["status"], ["fsck"], ["sheet", "--file", "s.png"], ["evaluate"]])
def test_a_file_or_nothing_is_no_output_and_no_matter_of_time(job, tmp_path, command):
    file = tmp_path / "job.yaml"
    said = CliRunner().invoke(main, [*command, str(file)])
    assert (said.exit_code, said.stderr) == (2, f"Error: {file}: is a file; name the folder of a dataset\n")
    said = CliRunner().invoke(main, [*command, ""])
    assert (said.exit_code, said.stderr) == (2, "Error: the name of the output is empty; give one\n")


def test_watching_ends_with_the_last_shard(job, monkeypatch):
    spec, plan, schema = job
    looks = []
    with open_output(spec, plan, schema) as folder:

        def sleep(seconds):
            publish(folder, plan, schema, len(looks))
            looks.append(seconds)

        monkeypatch.setattr(status_module.time, "sleep", sleep)
        result = CliRunner().invoke(main, ["status", spec.output, "--watch", "--every", "3"])
    assert result.exit_code == 0, result.output
    assert looks == [3, 3]
    assert [f"{done} of 2 shards done" in result.output for done in (0, 1, 2)] == [True] * 3
    assert result.output.count("running: ") == 2  # a whole dataset has nobody to wait for
