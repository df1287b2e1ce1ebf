"""`fsck`: every kind of damage to a local output, told and set right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.sheet import make_sheet
from toprovar_batch.orchestrator.commands.status import read_status
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import as_in_output, check_output
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.output.fsck import examine
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.shard_stats import ShardStats

FIRST, SECOND, LAST = (f"data/part-0000{shard_id}-of-00003.parquet" for shard_id in range(3))
PICTURE = b"a picture of its own bytes"
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def make(job_path, output, *, seed=0, shards=(0, 1, 2), twice=(), failing=(8,)):
    """Make parts of a job of three shards of four samples, of which the `failing` ones are errors; gives the folder."""
    job = load_job(job_path, [f"sampling.seed={seed}"], output=str(output))
    plan = plan_job(job)
    schema = dataset_schema(field for field in plan.schema if field.name not in PLAN_COLUMNS)
    with open_output(job, plan, schema) as folder:
        for shard_id in shards:
            samples = plan.shard(shard_id)
            if shard_id in twice:
                samples = pa.concat_tables([samples, samples])
            results = [{"status": "ok", "image": {"bytes": PICTURE, "path": "x.png"}}] * samples.num_rows
            for index in failing:
                if index // 4 == shard_id:
                    results[index % 4] = {"status": "error", "error": "it failed"}
            rows = result_rows(samples, results, schema)
            stats = ShardStats(job=folder.job)
            stats.add_rows(rows)
            with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
                part.write(rows)
                part.publish({"shard_id": shard_id, **stats.to_json()})
    return output


@pytest.fixture
def job_path(write_job):
    return write_job([f"prompt {index}" for index in range(12)])


@pytest.fixture
def output(job_path, tmp_path):
    return make(job_path, tmp_path / "out")


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def run(*arguments):
    return CliRunner().invoke(main, ["fsck", *map(str, arguments)])


def test_a_whole_dataset_has_nothing_wrong_and_stays_as_it_is(output):
    before = files(output)
    result = run(output, "--repair", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["shards_good"], record["missing"], record["findings"]) == (3, [], [])
    assert record["failed_rows"] == 1
    assert record["error_kinds"]["it failed"]["count"] == 1
    assert files(output) == before  # the lock's word on the last run, too
    assert "failed: 1 row" in run(output).output
    assert run(output).output.splitlines()[1] == "nothing is wrong with what is there"


def _emptied(path):
    path.write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flipped(path):
    path.write_bytes(path.read_bytes().replace(PICTURE, PICTURE.swapcase(), 1))


def _footer_of_no_shard(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def _doubled(path):
    shutil.copy(path.parent.parent / FIRST, path)


@pytest.mark.parametrize("damage", [_emptied, _cut, _flipped, _footer_of_no_shard, _doubled])
def test_a_damaged_part_is_told_and_then_moved_so_that_its_shard_is_made_again(output, damage):
    damage(output / SECOND)
    before = files(output)
    told = run(output)
    assert told.exit_code == 1
    assert f"damaged: {output / SECOND}: " in told.output
    assert "fsck --repair moves it to _job/removed" in told.output
    assert files(output) == before  # it only lists

    repaired = run(output, "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert "missing: 1 shard (1); submit the job again" in repaired.output
    after = files(output)
    assert after.pop(f"_job/removed/{Path(SECOND).name}.removed") == before.pop(SECOND)
    assert after == before
    assert run(output).exit_code == 0  # a missing shard is no damage


def test_a_shard_whose_samples_are_there_twice_is_damaged_with_and_without_a_plan(job_path, tmp_path):
    output = make(job_path, tmp_path / "out", twice=(1,))
    assert [(found.kind, found.path) for found in examine(str(output)).findings] == [
        ("damaged", str(output / SECOND))
    ]
    (output / "_job/samples.parquet").unlink()
    examination = examine(str(output))
    assert [found.path for found in examination.findings] == [str(output / SECOND)]
    assert "more than once" in examination.findings[0].reason
    assert not examination.has_plan


def test_a_part_of_another_job_is_moved_and_a_second_one_has_its_own_name(output, job_path, tmp_path):
    other = make(job_path, tmp_path / "other", seed=7)
    for number in range(2):
        shutil.copy(other / FIRST, output / FIRST)
        examination = examine(str(output), repair=True)
        assert [found.kind for found in examination.findings] == ["damaged"]
        assert examination.missing == [0]
        assert len(list((output / "_job/removed").iterdir())) == number + 1


@pytest.mark.parametrize(
    "name",
    [
        "data/part-00001-of-00002.parquet",
        "data/part-000001-of-00003.parquet",
        "data/part-00001-of-00003 (copy).parquet",
        "data/below/part-00001-of-00003.parquet",
        "data/notes.txt",
    ],
)
def test_a_file_that_is_no_part_is_foreign(output, name):
    before = files(output)
    (output / name).parent.mkdir(exist_ok=True)
    shutil.copy(output / SECOND, output / name)
    told = examine(str(output))
    assert [(found.kind, found.path) for found in told.findings] == [("foreign", str(output / name))]
    assert sorted(told.good) == [0, 1, 2]
    assert run(output, "--repair").exit_code == 0
    after = files(output)
    del after[f"_job/removed/{Path(name).name}.removed"]
    assert after == before


def test_what_readers_pass_over_is_left(output):
    (output / "data/.part.crc").write_bytes(b"x")
    (output / "data/_SUCCESS").write_bytes(b"")
    assert run(output, "--repair").exit_code == 0
    assert (output / "data/.part.crc").exists()


def test_unfinished_files_of_dead_processes_are_deleted(output):
    stale = output / "_job/tmp/part.parquet.0123.tmp"
    stale.write_bytes(b"half")
    told = run(output)
    assert told.exit_code == 1
    assert f"stale: {stale}: " in told.output
    assert run(output, "--repair").exit_code == 0
    assert not stale.exists()


def test_missing_shards_are_counted_and_no_damage(job_path, tmp_path):
    output = make(job_path, tmp_path / "out", shards=[1])
    result = run(output)
    assert result.exit_code == 0, result.output
    assert "missing: 2 shards (0, 2); submit the job again" in result.output


def test_a_damaged_plan_goes_aside_and_the_parts_stay(output):
    plan = output / "_job/samples.parquet"
    plan.write_bytes(plan.read_bytes()[:-100])
    assert [found.kind for found in examine(str(output)).findings] == ["plan"]
    result = run(output, "--repair")
    assert result.exit_code == 0, result.output
    assert "the next submit writes a lost one" in result.output
    assert not plan.exists()
    assert read_status(str(output))["shards_done"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_now_stays(output):
    (output / FIRST).chmod(0)
    result = run(output, "--repair")
    assert result.exit_code == 1
    assert f"unreachable: {output / FIRST}: " in result.output
    assert (output / FIRST).exists()


def test_a_record_that_no_part_confirms_costs_no_part(output):
    record = output / "_job/job.json"
    text = json.loads(record.read_text())
    text["identity"]["sampling.seed"] = 99
    record.write_text(json.dumps(text))
    (output / SECOND).write_bytes(b"")
    result = run(output, "--repair")
    assert result.exit_code == 1
    assert f"record: {record}: 2 parts name another job" in result.output
    assert (output / FIRST).exists()
    assert (output / LAST).exists()
    assert not (output / SECOND).exists()


@pytest.mark.parametrize(
    ("failing", "advice", "hopeless"),
    [
        ((3, 8), "failed: 2 rows; submit --retry-errors makes them again", 0),
        (
            (3, 5, 6),
            "makes 1 of them again; no try mends the other 2, as their prompts cannot be used; put",
            2,
        ),
        ((5, 6), "failed: 2 rows; no try mends them, as their prompts cannot be used; put mended prompts", 2),
    ],
)
@pytest.mark.parametrize("groups", ["a shard each", "of many shards"])
def test_another_try_is_recommended_for_rows_that_it_may_mend(
    write_job, tmp_path, monkeypatch, failing, advice, hopeless, groups
):
    if groups == "of many shards":
        monkeypatch.setattr("toprovar_batch.orchestrator.output.frozen._MOST_ROW_GROUPS", 1)
        monkeypatch.setattr("toprovar_batch.orchestrator.output.frozen._FEW_ROW_GROUPS", 2)
    bad = {5, 6} if hopeless else set()
    source = tmp_path / "prompts.jsonl"
    texts = ("" if index in bad else f"prompt {index}" for index in range(12))
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    path = Path(write_job())
    path.write_text(path.read_text().replace("prompts.txt", "prompts.jsonl"))
    output = make(str(path), tmp_path / "out", failing=failing)
    said = run(output).output
    assert advice in said
    assert ("--retry-errors" in said) is (len(failing) > hopeless)
    assert json.loads(run(output, "--json").output)["hopeless_rows"] == hopeless
    (output / "_job/samples.parquet").unlink()
    assert "--retry-errors makes those again whose prompts can be used" in run(output).output
    assert json.loads(run(output, "--json").output)["hopeless_rows"] is None


def test_a_run_that_lives_is_not_disturbed(output, job_path):
    (output / FIRST).write_bytes(b"")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(output / "_job/driver.lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        result = run(output, "--repair")
        assert result.exit_code == 2
        assert "another run is writing here" in result.output
        assert (output / FIRST).exists()
    finally:
        holder.communicate()
    assert run(output, "--repair").exit_code == 0


def _clipped(path):
    path.write_bytes(path.read_bytes()[:-1])


def _changed(**keys):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


RECORD_DAMAGES = [
    _emptied,
    _clipped,
    Path.unlink,
    _changed(num_shards=4),
    _changed(num_samples=3),
    _changed(identity="x"),
    lambda path: path.write_text("[]"),
]


@pytest.mark.parametrize("damage", RECORD_DAMAGES)
def test_a_job_writes_its_record_again_where_the_parts_are_its_own(output, job_path, damage):
    record = output / "_job/job.json"
    before, parts = json.loads(record.read_text()), files(output / "data")
    damage(record)
    result = run(output)
    assert result.exit_code == 2
    assert "job.json" in result.output
    for read in (examine, read_status, make_sheet):
        with pytest.raises(OutputFolderError, match=r"submit its job again with the same shard_size"):
            read(str(output))
    job = load_job(job_path)
    plan = plan_job(as_in_output(job))
    assert "a run writes it" in check_output(job, plan).replace("its lost _job/job.json", "it")
    make(job_path, output, shards=[])
    after = json.loads(record.read_text())
    assert {**after, "created": before["created"]} == before
    assert files(output / "data") == parts
    assert run(output).exit_code == 0


@pytest.mark.parametrize("damage", [_clipped, Path.unlink])
def test_another_job_does_not_take_a_folder_whose_record_is_gone(output, job_path, damage):
    damage(output / "_job/job.json")
    before = files(output)
    with pytest.raises(OutputFolderError, match=r"_job/job\.json is damaged|holds other files"):
        make(job_path, output, seed=7, shards=[])
    job = load_job(job_path, ["sampling.seed=7"])
    with pytest.raises(OutputFolderError, match=r"_job/job\.json is damaged|holds other files"):
        check_output(job, plan_job(job))
    assert {name: content for name, content in files(output).items() if "lock" not in name} == {
        name: content for name, content in before.items() if "lock" not in name
    }


def test_a_damaged_record_beside_no_part_is_written_again(job_path, tmp_path):
    output = make(job_path, tmp_path / "out", shards=[])
    (output / "_job/job.json").write_text("{")
    make(job_path, output)
    assert run(output).exit_code == 0


@pytest.mark.parametrize("damage", [_emptied, _cut, Path.unlink])
def test_a_plan_without_a_footer_is_written_again_by_its_job(output, job_path, damage):
    plan = output / "_job/samples.parquet"
    before = plan.read_bytes()
    damage(plan)
    make(job_path, output, shards=[])
    assert plan.read_bytes() == before


def test_a_folder_without_a_job_is_told(tmp_path):
    with pytest.raises(OutputFolderError, match="no dataset of a job is here"):
        examine(str(tmp_path))
