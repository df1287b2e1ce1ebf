"""Shared fixtures: the recorded vectors and small models with random weights."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(params=["square", "patchify"])
def golden_folder(request) -> Path:
    """Each folder of recorded vectors of the official implementation."""
    return GOLDEN / request.param
