"""The size of shards that a job leaves open: all workers get some, and a dataset once begun keeps its own."""

import json
from pathlib import Path

import pytest

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import check_output, plan_in_output
from toprovar_batch.orchestrator.output.folder import open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.prompts.shard_size import default_shard_size, idle_sentence
from toprovar_batch.worker.part_file import dataset_schema


def shards(num_samples, num_workers):
    return -(-num_samples // default_shard_size(num_samples, num_workers))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("num_samples", [1, 7, 60, 64, 65, 511, 512, 513, 5000, 10_000_000])
def test_workers_that_are_known_get_equally_many_shards_of_at_most_64(num_samples, num_workers):
    size = default_shard_size(num_samples, num_workers)
    assert 1 <= size <= 64
    rounds = -(-shards(num_samples, num_workers) // num_workers)
    assert rounds == -(-num_samples // (64 * num_workers))
    assert size == -(-num_samples // (rounds * num_workers))  # no smaller size needs as few rounds


@pytest.mark.parametrize(
    ("num_samples", "size"),
    [(1, 8), (60, 8), (64, 8), (65, 9), (500, 63), (511, 64), (512, 64), (10_000_000, 64)],
)
def test_workers_that_are_unknown_are_taken_for_eight(num_samples, size):
    assert default_shard_size(num_samples, None) == size


def test_sixty_prompts_occupy_eight_workers(write_job):
    for num_workers in ("8", "null"):
        plan = plan_job(load_job(write_job(map(str, range(60)), "null", num_workers=num_workers)))
        assert (plan.shard_size, plan.num_shards) == (8, 8)
    assert plan_job(load_job(write_job(map(str, range(60)), 64, num_workers=8))).num_shards == 1


def test_a_dataset_once_begun_keeps_its_size_where_the_job_leaves_it_open(write_job, tmp_path):
    path = write_job(map(str, range(60)), 64, num_workers=8)  # as every dataset was by default at first
    job = load_job(path)
    with open_output(job, plan_job(job), dataset_schema(())):
        Path(tmp_path, "out/data").mkdir()
        Path(tmp_path, "out/data/part-00000-of-00001.parquet").touch()
    job = load_job(write_job(map(str, range(60)), "null", num_workers=8))
    plan = plan_in_output(job, plan_job(job))
    assert (plan.shard_size, plan.num_shards) == (64, 1)
    assert check_output(job, plan) == "of this job, 1 of 1 shard done"
    with open_output(job, plan, dataset_schema(())) as folder:
        assert folder.finished(1) == [0]


def test_a_dataset_begun_with_the_default_goes_on_with_other_workers(write_job, tmp_path):
    job = load_job(write_job(map(str, range(60)), "null", num_workers=8))
    with open_output(job, plan_in_output(job, plan_job(job)), dataset_schema(())):
        Path(tmp_path, "out/data").mkdir()
        Path(tmp_path, "out/data/part-00000-of-00008.parquet").touch()
    assert json.loads(Path(tmp_path, "out/_job/job.json").read_text())["identity"]["shard_size"] == 8
    for overrides in (["runtime.num_workers=3"], ["runtime.num_workers=null"], ["shard_size=8"]):
        job = load_job(write_job(map(str, range(60)), "null", num_workers=8), overrides)
        with open_output(job, plan_in_output(job, plan_job(job)), dataset_schema(())) as folder:
            assert folder.finished(8) == [0]


def test_a_dataset_of_another_number_of_samples_settles_nothing(write_job):
    job = load_job(write_job(["one"], "null", num_workers=1))
    with open_output(job, plan_job(job), dataset_schema(())):
        pass
    job = load_job(write_job(map(str, range(60)), "null", num_workers=1))
    assert plan_in_output(job, plan_job(job)).shard_size == 60


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (
            (60, 15, 8),
            "4 shards for 8 workers: 4 idle; a new dataset with shard_size: 8 occupies 8",
        ),
        (
            (60, 64, 8),
            "1 shard for 8 workers: 7 idle; a new dataset with shard_size: 8 occupies 8",
        ),
        ((60, 8, 8), None),
        ((1, 64, 8), None),
        ((3, 1, 8), None),  # nothing to share out
        ((9, 2, 8), None),  # no size gives more
    ],
)
def test_workers_without_a_shard_are_told_where_another_size_would_occupy_them(numbers, sentence):
    assert idle_sentence(*numbers) == sentence
