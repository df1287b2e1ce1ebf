"""Whatever dies, every sample ends up in the dataset once."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from toprovar_batch.orchestrator.commands.submit import submit
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job

FAKE_DRIVER = Path(__file__).parents[1] / "fake_driver.py"
NUM_PROMPTS = 200


def start_driver(job, folder):
    """Start a driver in a session of its own, as a shell would."""
    return subprocess.Popen(
        [sys.executable, str(FAKE_DRIVER), job, str(folder), "0.02"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def count_generated(folder):
    log = folder / "generated.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_until_generated(driver, folder, count):
    """Let the driver run until its engines saw `count` samples more, or it ended."""
    goal = count_generated(folder) + count
    while count_generated(folder) < goal:
        try:
            driver.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the driver ended early: {driver.stderr.read()}")


def check_dataset(job, output, num_errors=0):
    """Every sample of the job once, for every reader; give the rows by prompt."""
    planned = sorted(plan_job(load_job(job)).samples["sample_id"].to_pylist())
    table = pq.read_table(output / "data")
    assert sorted(table["sample_id"].to_pylist()) == planned
    ids = duckdb.sql(f"SELECT sample_id FROM '{output}/data/*.parquet' ORDER BY sample_id").fetchall()
    assert [row[0] for row in ids] == planned
    data = load_dataset(str(output), split="train", cache_dir=str(output.parent / "cache"))
    assert sorted(data["sample_id"]) == planned
    assert (
        sum(image is not None and image.size[0] > 0 for image in data["image"]) == len(planned) - num_errors
    )
    assert Counter(table["status"].to_pylist()) == Counter(ok=len(planned) - num_errors, error=num_errors)
    return {row["prompt"]: row for row in table.to_pylist()}


def published(output):
    """What identifies each part file that is there: a rewritten one has another inode."""
    return {path.name: path.stat().st_ino for path in (output / "data").glob("*.parquet")}


@pytest.mark.slow
def test_a_driver_killed_five_times_loses_and_repeats_nothing(write_job, tmp_path):
    job = write_job([f"prompt {index}" for index in range(NUM_PROMPTS)], shard_size=10)
    output = tmp_path / "out"
    rng = random.Random(20)
    before = {}
    for _ in range(5):
        driver = start_driver(job, tmp_path)
        wait_until_generated(driver, tmp_path, rng.randint(5, 35))
        before |= published(output)
        driver.kill()
        driver.communicate()
    driver = start_driver(job, tmp_path)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    check_dataset(job, output)
    after = published(output)
    assert len(after) == 20
    assert {name: after[name] for name in before} == before
    assert not list((output / "_job/tmp").iterdir())


@pytest.mark.slow
def test_workers_killed_five_times_lose_and_repeat_nothing(write_job, tmp_path, make_engine_factory):
    prompts = [f"prompt {index}" for index in range(NUM_PROMPTS)]
    for index in random.Random(21).sample(range(NUM_PROMPTS), 5):
        prompts[index] = f"kill-once {index}"
    job = write_job(prompts, shard_size=10)
    summary = submit(job, engine_factory=make_engine_factory())
    assert summary.num_lost == 5
    rows = check_dataset(job, tmp_path / "out")
    assert all(rows[prompt]["attempt"] > 1 for prompt in prompts if prompt.startswith("kill-once"))


def workers_of(driver):
    """Process ids of a driver's workers: Ray names the processes of actors, and they descend from the driver."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])

    def descends(pid):
        while pid and pid != driver.pid:
            pid = parents.get(pid, 0)
        return pid == driver.pid

    return [pid for pid, name in names.items() if name.startswith(b"ray::GenerationWorker") and descends(pid)]


def wait_for_parts(driver, output, count):
    """Let the driver run until `count` parts more are there; give its workers."""
    goal = len(published(output)) + count
    while len(published(output)) < goal:
        try:
            driver.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the driver ended early: {driver.stderr.read()}")
    return workers_of(driver)


@pytest.mark.slow
def test_the_real_engine_survives_five_killed_drivers_and_five_killed_workers(write_job, tmp_path):
    job = write_job([f"prompt {index}" for index in range(NUM_PROMPTS)], shard_size=8)
    output = tmp_path / "out"
    rng = random.Random(22)
    command = [sys.executable, "-m", "toprovar_batch", "submit", job]
    start = functools.partial(
        subprocess.Popen,
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    before = {}
    for _ in range(5):
        driver = start()
        workers = wait_for_parts(driver, output, 1)
        os.kill(rng.choice(workers), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=rng.uniform(0.1, 2.0))
        before |= published(output)
        driver.kill()
        driver.communicate()
    driver = start()
    said, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors
    assert f"{NUM_PROMPTS} images, 0 failed" in said
    check_dataset(job, output)
    after = published(output)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_poison_hangs_and_exceptions_become_rows_and_cost_nothing_else(
    write_job, tmp_path, make_engine_factory
):
    prompts = [f"prompt {index}" for index in range(40)]
    prompts[3], prompts[7], prompts[15], prompts[22], prompts[31] = (
        "exit 1",
        "exit 2",
        "hang",
        "raise",
        "hiccup-once",
    )
    job = write_job(prompts, shard_size=10, stall_timeout_s=3)
    summary = submit(job, engine_factory=make_engine_factory())
    assert summary.is_complete
    rows = check_dataset(job, tmp_path / "out", num_errors=4)
    killed = "killed its worker twice when generated alone"
    assert rows["exit 1"]["error"] == rows["exit 2"]["error"] == f"{killed}: its process died"
    assert rows["hang"]["error"] == f"{killed}: it gave no sign of life for 3 seconds"
    assert rows["raise"]["error"] == "ValueError: no such colour"
    assert rows["hiccup-once"]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_a_second_run_goes_on(write_job, tmp_path, number, exit_code):
    job = write_job([f"prompt {index}" for index in range(60)], shard_size=10)
    driver = start_driver(job, tmp_path)
    wait_until_generated(driver, tmp_path, 3)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == exit_code
    assert "draining: finishing" in said
    assert count_generated(tmp_path) == sum(
        pq.read_metadata(path).num_rows for path in (tmp_path / "out/data").iterdir()
    )
    driver = start_driver(job, tmp_path)
    driver.communicate(timeout=60)
    assert driver.returncode == 0
    assert count_generated(tmp_path) == 60
    check_dataset(job, tmp_path / "out")
