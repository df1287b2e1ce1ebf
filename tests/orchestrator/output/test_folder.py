import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import check_output
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, OutputFolder, locate_output, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_file import PartWriter, dataset_schema


def opened(path, *overrides):
    job = load_job(path, overrides)
    plan = plan_job(job)
    schema = dataset_schema(field for field in plan.samples.schema if field.name not in PLAN_COLUMNS)
    return open_output(job, plan, schema)


def begin_with_a_part(path, tmp_path, *overrides):
    with opened(path, *overrides):
        (tmp_path / "out/data").mkdir()
        (tmp_path / "out/data/part-00000-of-00002.parquet").touch()


def test_a_new_folder_gets_job_plan_and_card(write_job, tmp_path):
    with opened(write_job()) as folder:
        assert folder.finished(2) == []
    record = json.loads((tmp_path / "out/_job/job.json").read_text())
    assert (record["num_samples"], record["num_shards"], record["shard_size"]) == (8, 2, 4)
    frozen = pq.ParquetFile(tmp_path / "out/_job/samples.parquet")
    assert (frozen.metadata.num_rows, frozen.num_row_groups) == (8, 2)
    assert (tmp_path / "out/README.md").read_text().startswith("---\n")


def refused(path, *, is_new, error=OutputFolderError, left=None):
    """A run that ends before its first worker, in whose time somebody has `left` a file."""
    with opened(path) as folder:
        assert folder.is_new is is_new
        if left is not None:
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_text("there")
        raise error


@pytest.mark.parametrize("error", [OutputFolderError, OSError, KeyboardInterrupt])
def test_a_new_folder_in_which_nothing_ran_goes_again(write_job, tmp_path, error):
    path = write_job(output=tmp_path / "deep/out")
    with pytest.raises(error):
        refused(path, is_new=True, error=error)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("left", ["_job/runs/20261129T210000Z-7.json", "_job/runs/x.log", "mine.txt"])
def test_a_new_folder_stays_where_a_run_or_a_person_has_left_something(write_job, tmp_path, left):
    with pytest.raises(OutputFolderError):
        refused(write_job(), is_new=True, left=tmp_path / "out" / left)
    assert (tmp_path / "out" / left).read_text() == "there"
    assert (tmp_path / "out/_job/job.json").exists() is left.startswith("_job")


def test_a_folder_that_was_there_before_stays_as_it_was(write_job, tmp_path):
    path = write_job()
    with opened(path):
        pass
    with pytest.raises(OutputFolderError):
        refused(path, is_new=False)
    assert (tmp_path / "out/_job/job.json").exists()


def test_the_same_job_continues(write_job, tmp_path):
    path = write_job()
    with opened(path):
        pass
    before = (tmp_path / "out/_job/job.json").read_bytes()
    with opened(path, "runtime.num_workers=1"):
        pass
    assert (tmp_path / "out/_job/job.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("sampling.seed=7", r"sampling.seed \(0 there, 7 here\)"),
        ("shard_size=3", r"shard_size \(4 there, 3 here\)"),
        ("prompts.limit=5", r"prompts \(number of samples\) \(8 there, 5 here\)"),
        ("image.format=jpeg", r'image.format \("png" there, "jpeg" here\)'),
    ],
)
def test_another_job_is_refused_by_the_names_of_its_fields(write_job, tmp_path, override, field):
    path = write_job()
    begin_with_a_part(path, tmp_path)
    with pytest.raises(OutputFolderError, match=field), opened(path, override):
        pass


def test_changed_prompts_are_another_job(write_job, tmp_path):
    begin_with_a_part(write_job(["a", "b"]), tmp_path)
    other = write_job(["a", "c"])
    with pytest.raises(OutputFolderError, match=r"prompts \(content\).* \(--output DIR\)$"), opened(other):
        pass


def test_a_folder_without_a_part_is_taken_over_by_the_mended_job(write_job, tmp_path, capsys):
    path = write_job()
    with opened(path):
        pass
    (tmp_path / "out/README.md").write_text("my notes")
    with opened(path, "prompts.limit=5"):
        assert capsys.readouterr().err == (
            f"{tmp_path / 'out'}: taken over from a job that made no part, and differs in prompts (number of samples) "
            f"(8 there, 5 here); prompts (content) {_contents(path)}\n"
        )
    record = json.loads((tmp_path / "out/_job/job.json").read_text())
    assert record["identity"]["prompts (number of samples)"] == record["num_samples"] == 5
    assert pq.read_metadata(tmp_path / "out/_job/samples.parquet").num_rows == 5
    assert (tmp_path / "out/README.md").read_text().startswith("---\n")
    assert (tmp_path / "out/_job/README.md").read_text() == "my notes"
    with opened(path, "prompts.limit=5"):
        assert capsys.readouterr().err == ""


def _contents(path):
    hashes = [plan_job(load_job(path, overrides)).fingerprint for overrides in ((), ["prompts.limit=5"])]
    return '("{:.36}... there, "{:.36}... here)'.format(*hashes)


def test_a_folder_in_which_a_run_lives_is_not_taken_over(write_job, tmp_path):
    path = write_job()
    with (
        opened(path),
        pytest.raises(OutputFolderError, match="another run is writing here"),
        opened(path, "sampling.seed=7"),
    ):
        pass
    assert json.loads((tmp_path / "out/_job/job.json").read_text())["identity"]["sampling.seed"] == 0


@pytest.mark.parametrize("left", ["samples.parquet", "README.md", "job.json"])
def test_a_take_over_that_is_cut_off_leaves_a_folder_of_one_job(write_job, tmp_path, monkeypatch, left):
    path = write_job()
    with opened(path):
        pass

    def cut_off(name, change):
        def changed(file, *args):
            if file.name == name:
                raise KeyboardInterrupt
            return change(file, *args)

        return changed

    with monkeypatch.context() as patch:
        for change in ("unlink", "replace"):
            patch.setattr(Path, change, cut_off(left, getattr(Path, change)))
        with pytest.raises(KeyboardInterrupt), opened(path, "prompts.limit=5"):
            pass
    with opened(path):
        assert pq.read_metadata(tmp_path / "out/_job/samples.parquet").num_rows == 8
        assert (tmp_path / "out/README.md").exists()


def test_a_folder_with_other_files_is_refused(write_job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(OutputFolderError, match=r"holds other files \(thesis.tex\)"), opened(write_job()):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_first_run_that_was_killed_early_begins_again(write_job, tmp_path):
    (tmp_path / "out/_job/tmp").mkdir(parents=True)
    (tmp_path / "out/_job/tmp/job.json.1.tmp").touch()
    (tmp_path / "out/_job/samples.parquet").write_bytes(b"half")
    with opened(write_job()):
        assert pq.read_metadata(tmp_path / "out/_job/samples.parquet").num_rows == 8
        assert not list((tmp_path / "out/_job/tmp").iterdir())


def test_a_missing_card_is_written_again(write_job, tmp_path):
    path = write_job()
    with opened(path):
        pass
    (tmp_path / "out/README.md").unlink()
    with opened(path):
        assert (tmp_path / "out/README.md").exists()


def test_a_missing_plan_is_written_again(write_job, tmp_path):
    path = write_job()
    with opened(path):
        pass
    (tmp_path / "out/_job/samples.parquet").unlink()
    with opened(path):
        assert pq.read_metadata(tmp_path / "out/_job/samples.parquet").num_row_groups == 2


def test_replaced_weights_are_another_job(write_job, tmp_path):
    weights = tmp_path / "vae.pth"
    weights.write_bytes(b"old")
    settings = ("model={preset: infinity-2b, vae: %s}" % weights,)  # noqa: UP031
    path = write_job()
    begin_with_a_part(path, tmp_path, *settings)
    weights.write_bytes(b"newer")
    with (
        pytest.raises(OutputFolderError, match=r"differs in model\.vae \(file\) \(.*3 bytes.*5 bytes"),
        opened(path, *settings),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"identity": {}, "num_shards": 2, "num_samples": 8}',
        '{"identity": {}, "num_shards": 2, "name": "x"}',
        '{"identity": [], "num_shards": "2", "num_samples": 8, "name": "x"}',
    ],
)
def test_a_damaged_record_is_refused(write_job, tmp_path, content):
    path = write_job()
    with opened(path):
        pass
    (tmp_path / "out/_job/job.json").write_text(content)
    with pytest.raises(OutputFolderError, match=r"job\.json is"), opened(path):
        pass


@pytest.mark.parametrize("url", ["a\0b", "s3://bucket/a\0b", "memory://somewhere/out"])
def test_an_address_that_can_hold_no_output_is_refused(url):
    with pytest.raises(OutputFolderError, match=r"holds a NUL character|lives in the memory of one process"):
        locate_output(url)


@pytest.mark.parametrize("output", ["/proc/nowhere/out", "{tmp}/prompts.txt/out", "nosuch://bucket/out"])
def test_an_output_that_cannot_be_written_is_named(write_job, tmp_path, output):
    output = output.format(tmp=tmp_path)
    with pytest.raises(OutputFolderError, match=output), opened(write_job(output=output)):
        pass


@pytest.mark.parametrize("name", ["data", "_job"])
def test_a_folder_within_that_takes_no_file_is_named_before_an_image_is_made(
    write_job, tmp_path, monkeypatch, name
):
    path = write_job()
    with opened(path):
        (tmp_path / "out/data").mkdir()
    make = tempfile.TemporaryFile

    def refuse(**options):
        if options["dir"] == tmp_path / "out" / name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputFolderError, match=f"out/{name} cannot be written: Permission"), opened(path):
        pass
    job = load_job(path)
    with pytest.raises(OutputFolderError, match=f"out/{name} cannot be written: Permission"):
        check_output(job, plan_job(job))


def test_a_file_in_the_place_of_the_parts_is_named(write_job, tmp_path):
    path = write_job()
    with opened(path):
        (tmp_path / "out/data").write_text("x")
    with pytest.raises(OutputFolderError, match="out/data is a file, not a folder"), opened(path):
        pass


def test_only_parts_of_this_job_count_as_finished(write_job, tmp_path):
    with opened(write_job()) as folder:
        (tmp_path / "out/data").mkdir()
        for name in (
            "part-00001-of-00002.parquet",
            "part-00000-of-00009.parquet",
            "part-00009-of-00002.parquet",
            "part-00000.parquet",
            "x.tmp",
        ):
            (tmp_path / "out/data" / name).touch()
        assert folder.finished(2) == [1]


def test_a_second_driver_is_told_about_the_first(write_job):
    path = write_job()
    with (
        opened(path),
        pytest.raises(OutputFolderError, match=r"another run is writing here \(process \d+ on "),
        opened(path),
    ):
        pass


def test_the_lock_of_a_killed_driver_is_free(write_job, tmp_path):
    path = write_job()
    lock = tmp_path / "out/_job/driver.lock"
    lock.parent.mkdir(parents=True)
    code = (
        "import os, sys; from pathlib import Path; from toprovar_batch.orchestrator.output.run_lock import RunLock\n"
        "with RunLock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(lock)], check=False).returncode == -9
    assert json.loads(lock.read_text())["pid"] > 0
    with opened(path):
        assert json.loads(Path(lock).read_text())["pid"]


def test_what_cannot_be_swept_ends_no_run(write_job, tmp_path):
    with opened(write_job()) as folder:
        (tmp_path / "out/_job/tmp/folder.tmp").mkdir()
        (tmp_path / "out/_job/tmp/part.tmp").touch()
        assert folder.finished(2) == []
    assert [path.name for path in (tmp_path / "out/_job/tmp").iterdir()] == ["folder.tmp"]


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(_file, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_second_driver_leaves_the_firsts_unfinished_files_alone(write_job, tmp_path):
    path = write_job()
    rows = dataset_schema(()).empty_table()
    with opened(path) as folder:
        target = folder.part_url(0, 2)
        with PartWriter(target, rows.schema, folder.scratch) as part:
            with opened(path):
                pass
            part.publish({})
        assert folder.finished(2) == [0]
    assert not list((tmp_path / "out/_job/tmp").iterdir())


@pytest.mark.usefixtures("without_locks")
def test_without_locks_no_folder_is_taken_over(write_job):
    path = write_job()
    with opened(path):
        pass
    with pytest.raises(OutputFolderError, match="belongs to another job"), opened(path, "sampling.seed=7"):
        pass


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_job_that_begins_a_moment_later_is_refused(write_job, tmp_path, monkeypatch):
    path = write_job()
    with opened(path):
        pass
    (tmp_path / "out/README.md").unlink()  # which the first writes later
    read = OutputFolder.read_job
    looks = []

    def read_late(folder):
        looks.append(folder)
        return None if len(looks) == 1 else read(folder)

    before = (tmp_path / "out/_job/job.json").read_bytes()
    monkeypatch.setattr(OutputFolder, "read_job", read_late)
    with (
        pytest.raises(OutputFolderError, match=r"sampling\.seed \(0 there, 7 here\)"),
        opened(path, "sampling.seed=7"),
    ):
        pass
    assert (tmp_path / "out/_job/job.json").read_bytes() == before


def test_without_hard_links_a_job_begins_all_the_same(write_job, tmp_path, monkeypatch):
    def refuse(_source, _target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with opened(write_job()):
        assert json.loads((tmp_path / "out/_job/job.json").read_text())["num_shards"] == 2
