"""Every documented way to read an output with `datasets`, in a cache that has read something else before."""

import re
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import open_output
from toprovar_batch.orchestrator.output.reading import reading_call
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.part_file import dataset_schema

BLOCK = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n"


@pytest.fixture
def read(tmp_path):
    """Runs a call of `load_dataset` as it is written somewhere, in one cache; gives the sample ids."""

    def load_dataset(*arguments, **options):
        return datasets.load_dataset(*arguments, cache_dir=str(tmp_path / "cache"), **options)

    def run(call):
        return sorted(eval(call, {"load_dataset": load_dataset})["sample_id"])

    return run


def write_part(folder, shard_id, *sample_ids):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = [{"sample_id": sample_id, "status": "error"} for sample_id in sample_ids]
    table = pa.Table.from_pylist(rows, schema=dataset_schema([]))
    pq.write_table(table, folder / f"data/part-{shard_id:05d}-of-00002.parquet")


@pytest.fixture
def begin(write_job):
    """Begins a job's output; gives its card."""

    def begin(folder):
        job = load_job(write_job(output=folder))
        with open_output(job, plan_job(job), dataset_schema([])):
            return (folder / "README.md").read_text()

    return begin


def calls_in(text):
    return re.findall(r"load_dataset\(.*\)", text)


def documented(pytestconfig, name):
    (call,) = (
        call
        for call in calls_in((pytestconfig.rootpath / name).read_text())
        if call.endswith('split="train")')
    )
    return call


@pytest.mark.parametrize("source", ["README.md", "docs/dataset.md", "card", "submit"])
def test_a_documented_call_gives_the_rows_that_are_there_now(tmp_path, pytestconfig, begin, read, source):
    def call(folder):
        if source == "submit":
            return reading_call(str(folder))
        (text,) = calls_in(cards[folder]) if source == "card" else [documented(pytestconfig, source)]
        return re.sub("outputs/my-images|OUTPUT|path/of/this/folder", str(folder), text)

    one, other = tmp_path / "a/out", tmp_path / "b/out"
    cards = {folder: begin(folder) for folder in (one, other)}
    write_part(one, 0, "a0")
    assert read(call(one)) == ["a0"]
    write_part(one, 1, "a1", "a2")
    assert read(call(one)) == ["a0", "a1", "a2"]
    write_part(other, 0, "b0")
    assert read(call(other)) == ["b0"]
    shutil.rmtree(one / "data")
    write_part(one, 1, "new")
    assert read(call(one)) == ["new"]


@pytest.mark.parametrize("name", ["out[1]", "o'ut", 'o"ut', "a*?", "back\\slash"])
def test_the_call_reads_a_folder_of_any_name(tmp_path, read, name):
    write_part(tmp_path / name, 0, "a0")
    assert read(reading_call(str(tmp_path / name))) == ["a0"]


def test_the_call_reads_a_folder_that_is_named_by_its_url(tmp_path, read):
    write_part(tmp_path / "out", 0, "a0")
    assert read(reading_call(f"file://{tmp_path}/out")) == ["a0"]


def test_the_folder_itself_is_never_stale_either(tmp_path, begin):
    folders = tmp_path / "a/out", tmp_path / "b/out"
    for folder in folders:
        begin(folder)
        write_part(folder, 0, str(folder))
        (split,) = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).values()
        assert split["sample_id"] == [str(folder)]


def test_the_next_run_mends_the_card_of_an_earlier_version(tmp_path, begin):
    card = tmp_path / "out/README.md"
    whole = begin(tmp_path / "out")
    (call,) = calls_in(whole)
    earlier = whole.replace("dataset_info:", f"{BLOCK}dataset_info:").replace(
        call, 'load_dataset("path/of/this/folder", split="train")'
    )
    card.write_text(earlier + "My own words.\n")
    assert "configs" in yaml.safe_load(earlier.split("---")[1])
    assert begin(tmp_path / "out") == whole + "My own words.\n"


def test_a_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert '"/home/me/out/data/*.parquet"' in reading_call("~/out/")
