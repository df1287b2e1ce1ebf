"""A job in a folder, an engine that misbehaves on order, and one Ray for all tests that need it."""

import functools
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

from .permitted_driver import PermittedDriver


def _load_fake_engine():
    spec = importlib.util.spec_from_file_location("fake_engine", Path(__file__).with_name("fake_engine.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_engine"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ray_cluster():
    """A small Ray of this test session; runs under test find it and leave it alone."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def make_engine_factory(tmp_path, ray_cluster):
    """Makes a factory of FakeEngine that Ray workers can unpickle without the tests on their path."""
    import ray

    module = _load_fake_engine()
    ray.cloudpickle.register_pickle_by_value(module)

    def make(**settings):
        return functools.partial(module.FakeEngine, tmp_path, **settings)

    return make


@pytest.fixture
def start_driver(tmp_path):
    """Starts drivers of a job whose engines wait for permits."""
    numbers, drivers = itertools.count(), []

    def start(job, engine="fake"):
        driver = PermittedDriver(job, tmp_path, tmp_path / f"driver-{next(numbers)}", engine)
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.kill()


@pytest.fixture
def write_job(tmp_path):
    """Writes a job of given prompts, by default eight in shards of four; gives the job file's path."""

    def write(prompts=None, shard_size=4, output=None, **runtime):
        prompts = [f"prompt {index}" for index in range(8)] if prompts is None else prompts
        (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
        settings = {"num_workers": 2, "device": "cpu"} | runtime
        lines = [
            "prompts: {source: prompts.txt}",
            f"output: {output or tmp_path / 'out'}",
            f"shard_size: {shard_size}",
            "model: {random_weights: true, architecture: {depth: 2, width: 64, num_heads: 2}}",
            "image: {resolution: 0.06M}",
            "runtime:",
            *(f"  {key}: {value}" for key, value in settings.items()),
        ]
        job = tmp_path / "job.yaml"
        job.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(job)

    return write
