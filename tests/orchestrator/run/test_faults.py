"""Whatever dies, every sample ends up in the dataset once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import duckdb
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run import attempts, fleet
from toprovar_batch.orchestrator.run.submission import submit

NUM_PROMPTS = 200


def count_generated(folder):
    log = folder / "generated.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def check_dataset(job, output, num_errors=0):
    """Every sample of the job once, for every reader; give the rows by prompt."""
    planned = sorted(plan_job(load_job(job)).samples["sample_id"].to_pylist())
    table = pq.read_table(output / "data")
    assert sorted(table["sample_id"].to_pylist()) == planned
    ids = duckdb.sql(f"SELECT sample_id FROM '{output}/data/*.parquet' ORDER BY sample_id").fetchall()
    assert [row[0] for row in ids] == planned
    files, cache = str(output / "data/*.parquet"), str(output.parent / "cache")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert sorted(data["sample_id"]) == planned
    assert (
        sum(image is not None and image.size[0] > 0 for image in data["image"]) == len(planned) - num_errors
    )
    assert Counter(table["status"].to_pylist()) == Counter(ok=len(planned) - num_errors, error=num_errors)
    return {row["prompt"]: row for row in table.to_pylist()}


def published(output):
    """What identifies each part file that is there: a rewritten one has another inode."""
    return {path.name: path.stat().st_ino for path in (output / "data").glob("*.parquet")}


def wait_for_a_part(driver, output, known):
    """Let a driver run until there is a part that was not known."""
    driver.wait_until(lambda: published(output).keys() - known.keys())


@pytest.mark.slow
def test_a_driver_killed_five_times_loses_and_repeats_nothing(write_job, tmp_path, start_driver):
    job = write_job([f"prompt {index}" for index in range(NUM_PROMPTS)], shard_size=10)
    output = tmp_path / "out"
    before = {}
    # A shard of 10 is published when two batches, of 4 and 3, have begun behind it.
    for permits in (5, 33, 12, 40, 36):
        driver = start_driver(job)
        driver.permit(permits)
        driver.wait_until_taken(permits)
        if permits > 2 * 16:  # of two workers one has finished a shard
            wait_for_a_part(driver, output, before)
        before |= published(output)
        driver.kill()
    driver = start_driver(job)
    assert driver.finish() == 0, driver.said
    check_dataset(job, output)
    after = published(output)
    assert len(before) >= 3
    assert len(after) == 20
    assert {name: after[name] for name in before} == before
    assert not list((output / "_job/tmp").iterdir())


def test_workers_killed_five_times_lose_and_repeat_nothing(write_job, tmp_path, make_engine_factory):
    prompts = [f"prompt {index}" for index in range(NUM_PROMPTS)]
    for index in random.Random(21).sample(range(NUM_PROMPTS), 5):
        prompts[index] = f"kill-once {index}"
    job = write_job(prompts, shard_size=10)
    summary = submit(job, engine_factory=make_engine_factory())
    assert summary.is_complete
    [record] = (tmp_path / "out/_job/runs").glob("*.json")
    incidents = json.loads(record.read_text())["incidents"]
    assert len({incident["worker"] for incident in incidents}) == 5  # each with one shard or two
    rows = check_dataset(job, tmp_path / "out")
    assert all(rows[prompt]["attempt"] > 1 for prompt in prompts if prompt.startswith("kill-once"))


@pytest.mark.slow
def test_a_death_names_the_samples_of_all_batches_in_the_engine(write_job, tmp_path, make_engine_factory):
    prompts = [f"prompt {index}" for index in range(10)]
    prompts[5] = "kill-once 5"
    job = write_job(prompts, shard_size=10, num_workers=1)
    submit(job, engine_factory=make_engine_factory(batch_size=4))
    rows = check_dataset(job, tmp_path / "out")
    [record] = (tmp_path / "out/_job/runs").glob("*.json")
    [incident] = json.loads(record.read_text())["incidents"]
    assert incident["in_flight"] == [rows[prompt]["sample_id"] for prompt in prompts[:8]]


@pytest.mark.slow
def test_the_real_engine_survives_five_killed_drivers_and_five_killed_workers(
    write_job, tmp_path, start_driver
):
    job = write_job([f"prompt {index}" for index in range(80)], shard_size=8)
    output = tmp_path / "out"
    before = {}
    for round_ in range(5):
        driver = start_driver(job, "real")
        driver.permit(19)  # of two workers one finishes one shard, and has begun two images behind it
        driver.wait_until_taken(19)
        wait_for_a_part(driver, output, before)
        os.kill(driver.takers[-1], signal.SIGKILL)
        if round_ % 2:  # the driver dies before or after it hears of it
            driver.wait_until(lambda driver=driver: "begins again" in driver.said)
        before |= published(output)
        driver.kill()
    assert len(before) == 5
    command = [sys.executable, "-m", "toprovar_batch", "submit", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "80 images, 0 failed" in done.stdout
    check_dataset(job, output)
    after = published(output)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_poison_and_exceptions_become_rows_and_cost_nothing_else(write_job, tmp_path, make_engine_factory):
    prompts = [f"prompt {index}" for index in range(40)]
    prompts[3], prompts[7], prompts[22], prompts[31] = ("exit 1", "exit 2", "raise", "hiccup-once")
    job = write_job(prompts, shard_size=10)
    summary = submit(job, engine_factory=make_engine_factory())
    assert summary.is_complete
    rows = check_dataset(job, tmp_path / "out", num_errors=3)
    killed = "killed its worker twice when generated alone"
    assert rows["exit 1"]["error"] == rows["exit 2"]["error"] == f"{killed}: its process died"
    assert rows["raise"]["error"] == "ValueError: no such colour"
    assert rows["hiccup-once"]["status"] == "ok"


@pytest.mark.slow
def test_a_hang_becomes_a_row_and_costs_nothing_else(write_job, tmp_path, make_engine_factory, monkeypatch):
    hangs = tmp_path / "hangs.log"

    def clock():
        """Time passes only when a worker hangs: five seconds each time."""
        return 5.0 * len(hangs.read_text().splitlines()) if hangs.exists() else 0.0

    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    prompts = [f"prompt {index}" for index in range(20)]
    prompts[5] = "hang"
    # A second worker would be killed too, for the clock says that it is silent for as long.
    job = write_job(prompts, shard_size=10, num_workers=1, stall_timeout_s=3)
    summary = submit(job, engine_factory=make_engine_factory())
    assert (summary.is_complete, summary.num_lost) == (True, 4)  # twice whole, then twice alone
    rows = check_dataset(job, tmp_path / "out", num_errors=1)
    assert rows["hang"]["error"] == (
        "killed its worker twice when generated alone: it gave no sign of life for 3 seconds"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_a_second_run_goes_on(write_job, tmp_path, start_driver, number, exit_code):
    job = write_job([f"prompt {index}" for index in range(60)], shard_size=10)
    driver = start_driver(job)
    driver.permit(3)
    driver.wait_until_taken(3)
    driver.process.send_signal(number)
    driver.wait_until(lambda: "draining: finishing" in driver.said)
    assert driver.finish() == exit_code, driver.said
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out/data").iterdir())
    assert rows == count_generated(tmp_path)
    assert 0 < rows <= 20
    driver = start_driver(job)
    assert driver.finish() == 0, driver.said
    assert count_generated(tmp_path) == 60
    check_dataset(job, tmp_path / "out")


def test_a_shard_that_hangs_is_made_by_an_idle_worker_long_before_its_own_is_given_up(
    write_job, tmp_path, make_engine_factory, monkeypatch
):
    monkeypatch.setattr(attempts, "_LEAST_S", 0.5)  # seconds
    prompts = [f"prompt {index}" for index in range(14)]
    prompts[12] = "hang-once x"
    job = write_job(prompts, shard_size=2, stall_timeout_s=3600)
    summary = submit(job, engine_factory=make_engine_factory())
    assert (summary.is_complete, summary.failed, summary.num_lost) == (True, {}, 0)
    check_dataset(job, tmp_path / "out")
