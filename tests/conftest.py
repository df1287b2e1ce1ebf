"""Shared fixtures: the recorded vectors, and what keeps a test from depending on others or on its user."""

import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_collection_modifyitems(items):
    """Several processes take a file each; those with slow tests come first, so that none of them is left at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(params=["square", "patchify"])
def golden_folder(request) -> Path:
    """Each folder of recorded vectors of the official implementation."""
    return GOLDEN / request.param


@pytest.fixture
def run_cases():
    """Runs kernels' cases: on a GPU as compiled, elsewhere in Triton's interpreter; gives how many passed.

    Triton reads the switch when it is imported, so the interpreter needs a process of its own.
    """
    pytest.importorskip("triton")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}

    def run(*cases):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *map(str, cases), "-W", "ignore", "-p", "no:cacheprovider"],
            env={**os.environ, **interpreted, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None, done.stdout[-5000:]
        return int(passed.group(1))

    return run


@pytest.fixture(autouse=True)
def _own_seed(request):
    """A test's random numbers depend on its name alone, not on what ran before it."""
    seed = zlib.crc32(request.node.name.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may use the global state
    torch.manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from a second thread, and wait for it ten times as long where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _nobodys_environment():
    """The cluster, cloud, cache and proxies of who runs the tests have no say, here and in processes started here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RAY_ADDRESS", "AWS_", "TOPROVAR_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        yield
