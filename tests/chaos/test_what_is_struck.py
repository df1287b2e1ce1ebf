"""What the faults of `make chaos` strike: what a job reads, and disks that have room for its dataset."""

import importlib
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.models import read_vae
from toprovar_batch.worker.presets import PRESETS

FOLDER = Path(__file__).parent
PIXELS = {"drawn": 16 * 16, "model": 256 * 256}  # of an image of each engine


@pytest.fixture
def module(monkeypatch):
    """Imports a module of `make chaos`, which no package holds, and those of its folder that it imports."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in sys.modules.keys() - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def test_weights_that_are_struck_are_those_that_a_job_reads(module):
    file = fetch(PRESETS["tiny"].vae_file)
    _vae, taken = read_vae(PRESETS["tiny"].vae, file, with_encoder=False)

    assert module("loading_faults").drawn_with(load_file(file)) == sorted(taken)


@pytest.mark.parametrize("engine", ["drawn", "model"])
def test_a_small_disk_has_room_for_the_dataset(module, engine):
    disk_bytes = module("storage_faults").DISK_MEGABYTES[engine] << 20
    incompressible = len(module("scene").PROMPTS) * 3 * PIXELS[engine]

    assert disk_bytes > 2 * incompressible
