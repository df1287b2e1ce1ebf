"""Batches that are queued on a GPU; on a CPU there is nothing to wait for, and these are left out."""

import numpy as np
import pytest
import torch

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ImageSpec, ModelSpec, RuntimeSpec

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture(scope="module")
def generator():
    spec = EngineSpec(model=ModelSpec(random_weights=True), image=ImageSpec(resolution="0.06M"))
    generator = Generator(resolve(spec), RuntimeSpec(device="cuda", batch_size=3))
    generator.setup()
    generator.generate(_requests(0))  # compiles what there is to compile
    return generator


def _requests(first):
    prompts = ("a red cube", "two blue spheres left of a green cone", "x")
    return [
        GenerationRequest(f"s{first + index}", prompt, None, first + index)
        for index, prompt in enumerate(prompts)
    ]


@pytest.fixture
def no_waiting():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def test_a_dense_batch_is_queued_without_waiting_for_the_gpu(generator, no_waiting):
    generator.begin(_requests(0))


def test_batches_queued_behind_each_other_are_those_made_one_after_the_other(generator):
    alone = [generator.generate(_requests(3 * number)) for number in range(3)]
    queued = [generator.begin(_requests(3 * number)) for number in range(3)]
    for one, other in zip(alone, [each.result() for each in queued], strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert one.finite == other.finite == [True] * 3
        assert min(other.times.text, other.times.sample, other.times.decode) > 0
