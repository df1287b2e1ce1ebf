"""Parts and files in an output that are not of its job, as every command sees them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.sheet import make_sheet
from toprovar_batch.orchestrator.commands.status import read_status
from toprovar_batch.orchestrator.commands.submit import show
from toprovar_batch.orchestrator.evaluation.data import EvaluationData
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run.outcome import Outcome
from toprovar_batch.orchestrator.run.record import RunLog
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.orchestrator.run.summary import RunSummary
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_file import (
    SCHEMA_VERSION,
    STATS_KEY,
    PartWriter,
    dataset_schema,
    read_stats,
    result_rows,
)
from toprovar_batch.worker.shard_stats import ShardStats

PART = "data/part-00000-of-00002.parquet"


def make(job_path, output, seed=0):
    """Make a job's whole dataset of two shards, without pictures; gives its folder."""
    job = load_job(job_path, [f"sampling.seed={seed}"], output=str(output))
    plan = plan_job(job)
    schema = dataset_schema(field for field in plan.samples.schema if field.name not in PLAN_COLUMNS)
    with open_output(job, plan, schema) as folder:
        for shard_id in range(plan.num_shards):
            samples = plan.shard(shard_id)
            stats = ShardStats(job=folder.job)
            rows = result_rows(samples, [{"status": "error", "error": "no"}] * samples.num_rows, schema)
            stats.add_rows(rows)
            with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
                part.write(rows)
                part.publish({"shard_id": shard_id, **stats.to_json()})
    return output


def rewrite(path, change_record=lambda record: record, change_table=lambda table: table):
    """Write a part again with another record in its footer, or other rows."""
    table = change_table(pq.read_table(path))
    record = change_record(read_stats(pq.read_metadata(path)))
    pq.write_table(table.replace_schema_metadata({STATS_KEY: json.dumps(record).encode()}), path)


def without(*keys):
    return lambda record: {key: value for key, value in record.items() if key not in keys}


FIRST = without("job", "schema_version", "checksum")  # as the first version wrote it


@pytest.fixture
def output(write_job, tmp_path):
    return make(write_job(), tmp_path / "out")


@pytest.fixture
def mixed(write_job, tmp_path, output):
    """An output into which a part of the same job with another seed was copied."""
    other = make(write_job(), tmp_path / "other", seed=7)
    shutil.copy(other / PART, output / PART)
    return output


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_a_part_of_another_seed_is_not_whole(mixed, options):
    result = CliRunner().invoke(main, ["status", str(mixed), *options])
    assert result.exit_code == 1
    assert (
        f"1 part is damaged; toprovar-batch fsck {mixed} --repair moves what is damaged aside, and the next submit makes what is "
        f"missing: {mixed / PART} is damaged: it belongs to another job" in (result.stderr)
    )


def test_a_part_of_another_seed_is_not_continued(write_job, mixed, capsys):
    before = (mixed / PART).read_bytes()
    summary = submit(write_job())
    assert summary.damaged == {0: "it belongs to another job than this output"}
    assert (mixed / PART).read_bytes() == before
    show(summary, "again")
    assert f"toprovar-batch fsck {mixed} --repair moves what is damaged aside" in capsys.readouterr().out


@pytest.mark.parametrize("read", [make_sheet, EvaluationData])
def test_no_reader_takes_a_part_of_another_seed(mixed, read):
    with pytest.raises(
        OutputFolderError,
        match=f"{PART} is damaged: it belongs to another job than this output; toprovar-batch fsck",
    ):
        read(str(mixed))


def test_a_part_under_another_shards_name_is_found_in_its_footer(output):
    shutil.copy(output / PART, output / "data/part-00001-of-00002.parquet")
    (reason,) = read_status(str(output))["damaged"].values()
    assert reason == "it is the part of shard 0"


def test_a_part_with_other_columns_is_found_in_its_footer(output):
    rewrite(output / PART, change_table=lambda table: table.append_column("more", pa.nulls(table.num_rows)))
    (reason,) = read_status(str(output))["damaged"].values()
    assert reason == "its columns are not the dataset's: more"


def test_a_record_that_was_changed_is_found_by_its_checksum(output):
    rewrite(output / PART, lambda record: record | {"ok": 4, "errors": 0})
    (reason,) = read_status(str(output))["damaged"].values()
    assert reason == "what its footer says does not match the checksum there"


def test_a_part_of_a_later_version_is_not_called_damaged(output):
    later = {"schema_version": SCHEMA_VERSION + 1, "checksum": "of another kind"}
    rewrite(output / PART, lambda record: record | later)
    status = read_status(str(output))
    assert status["damaged"] == {}
    (reason,) = status["unreachable"].values()
    assert reason.startswith("a later version of this program made it")


def test_parts_of_an_earlier_version_stay_readable_and_are_told_once(write_job, output, capsys):
    for path in (output / "data").iterdir():
        rewrite(path, FIRST)
    status = CliRunner().invoke(main, ["status", str(output), "--verify"])
    assert status.exit_code == 0
    assert status.output.count("2 parts of an earlier version do not name their job") == 1
    make_sheet(str(output))
    summary = submit(write_job())
    assert summary.is_complete
    show(summary, "again")
    assert capsys.readouterr().out.count("2 parts of an earlier version") == 1


def test_whole_parts_tell_nothing_of_versions(output):
    assert "earlier version" not in CliRunner().invoke(main, ["status", str(output)]).output


def test_verify_compares_the_seeds_of_parts_that_do_not_name_their_job(mixed):
    rewrite(mixed / PART, FIRST)
    assert read_status(str(mixed))["damaged"] == {}
    (reason,) = read_status(str(mixed), verify=True)["damaged"].values()
    assert reason == "its 4 rows are not the 4 samples of its shard, with their seeds"


def test_a_file_among_the_parts_that_is_none_is_named(write_job, output, capsys):
    stranger = output / "data/part-00000-of-00003.parquet"
    shutil.copy(output / PART, stranger)
    result = CliRunner().invoke(main, ["status", str(output)])
    assert result.exit_code == 1
    assert f"{stranger} is damaged: it is no part of this job" in result.stderr
    with pytest.raises(OutputFolderError, match="it is no part of this job"):
        EvaluationData(str(output))
    submit(write_job())
    assert f"Warning: {stranger}: it is no part of this job" in capsys.readouterr().err


def test_columns_that_parquet_changes_are_compared_as_it_gives_them_back(write_job, tmp_path):
    source = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "when": pa.array([0], pa.timestamp("s")), "n": [[1]]}), source)
    job = write_job()
    path = tmp_path / "job.yaml"
    path.write_text(path.read_text().replace("prompts.txt", "prompts.parquet"))
    assert read_status(str(make(job, tmp_path / "out")), verify=True)["damaged"] == {}


@pytest.fixture
def begun_again(write_job, tmp_path):
    """A driver's folder that was deleted under it, and in which another job has begun."""
    job = load_job(write_job())
    plan = plan_job(job)
    with open_output(job, plan, dataset_schema([])) as folder:
        shutil.rmtree(tmp_path / "out")
        other = load_job(write_job(), ["sampling.seed=7"])
        with open_output(other, plan_job(other), dataset_schema([])):
            yield folder


def test_the_record_of_a_run_stays_out_of_another_jobs_folder(begun_again, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def summarise(_outcome, _seconds, error):
        return RunSummary("out", 0, 0, ShardStats(), ShardStats(), 0, 0.0, 0, 0, error=error)

    summary = RunLog(begun_again, summarise).close(Outcome(), None)
    assert "belongs to another job now; the run's record is kept in" in str(summary.error)
    assert not (tmp_path / "out/_job/runs").exists()
    shutil.rmtree(tmp_path / "out")
    summary = RunLog(begun_again, summarise).close(Outcome(), None)
    assert "was deleted while the job ran; the run's record is kept in" in str(summary.error)
    assert not (tmp_path / "out").exists()


def test_an_earlier_driver_leaves_the_unfinished_files_of_a_later_one(write_job, tmp_path):
    job = load_job(write_job())
    unfinished = tmp_path / "out/_job/tmp/part.tmp"
    with open_output(job, plan_job(job), dataset_schema([])):
        shutil.rmtree(tmp_path / "out")
        later = open_output(job, plan_job(job), dataset_schema([]))
        later.__enter__()
        unfinished.touch()
    assert unfinished.exists()
    later.__exit__(None, None, None)
    assert not unfinished.exists()


@pytest.mark.slow
def test_a_run_whose_folder_another_job_has_begun_stops_and_adds_nothing(write_job, tmp_path, start_driver):
    path = write_job([f"prompt {index}" for index in range(8)], num_workers=1)
    driver = start_driver(path)
    driver.permit(2)  # of the four images of a shard
    driver.wait_until_taken(2)
    shutil.rmtree(tmp_path / "out")
    other = load_job(path, ["sampling.seed=7"])
    with open_output(other, plan_job(other), dataset_schema([])):
        assert driver.finish() == 2, driver.said
    assert "belongs to another job now" in driver.said
    assert not (tmp_path / "out/data").exists()
    assert not (tmp_path / "out/_job/runs").exists()
