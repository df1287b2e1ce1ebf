"""What `make chaos` takes for a weight that a job reads."""

import importlib
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.models import read_vae
from toprovar_batch.worker.presets import PRESETS


@pytest.fixture
def loading_faults(monkeypatch):
    """The module of `make chaos`, which no package holds, with those of its folder that it imports."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield importlib.import_module("loading_faults")
    for name in ("loading_faults", "faults", "scene"):
        sys.modules.pop(name, None)


def test_weights_that_are_struck_are_those_that_a_job_reads(loading_faults):
    file = fetch(PRESETS["tiny"].vae_file)
    _vae, taken = read_vae(PRESETS["tiny"].vae, file, with_encoder=False)

    assert loading_faults.drawn_with(load_file(file)) == sorted(taken)
