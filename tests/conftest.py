"""Shared fixtures: the recorded vectors, and what keeps a test from depending on others or on its user."""

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(params=["square", "patchify"])
def golden_folder(request) -> Path:
    """Each folder of recorded vectors of the official implementation."""
    return GOLDEN / request.param


@pytest.fixture(autouse=True)
def _own_seed(request):
    """A test's random numbers depend on its name alone, not on what ran before it."""
    seed = zlib.crc32(request.node.name.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may use the global state
    torch.manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def _nobodys_environment():
    """The cluster, cloud, cache and proxies of who runs the tests have no say, here and in processes started here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RAY_ADDRESS", "AWS_", "TOPROVAR_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        yield
