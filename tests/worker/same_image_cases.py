"""An image is the same to the byte in any batch on a Hopper GPU; elsewhere there is nothing to run.

`python -m pytest tests/worker/same_image_cases.py` on the GPU. A CPU makes images one by one, which `test_generator` holds.
"""

import pytest
import torch

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    ReplaySpec,
    SkipvarSpec,
    ToprovarSpec,
)
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, RuntimeSpec

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
PROMPTS = (
    "a red cube left of a blue sphere on a wooden floor",
    "x",
    "three green cones, two yellow cylinders and a mirror ball in a row before a brick wall, seen from above, at dusk",
    "a grey torus",
    "an isometric map of a small island with a harbour, a windmill and a winding path " * 5,
    "a blue pyramid",
)
POLICIES = {
    "dense": DenseSpec(),
    "paper-2b": ReplaySpec(preset="paper-2b"),
    "detail": DetailSpec(),
    "toprovar": ToprovarSpec(depth_threshold=1),
    "toprovar, unguided": ToprovarSpec(saliency="code_detail", restoration="identity", conditional_from=7),
    "fastvar": FastvarSpec(),
    "skipvar": SkipvarSpec(skip_below=0.05, conditional_below=0.5),
}
BATCHES = ((0, 1, 2, 3, 4, 5), (5, 3, 1), (4,), (2, 0, 1, 5, 3), (3,), (0, 1, 2, 3, 4, 5), (1,), (2,))


@pytest.fixture(scope="module", params=["tiny", "wide"])
def generators(request):
    """One that captures its work and one that does not."""
    wide = ModelSpec(
        preset="infinity-2b", random_weights=True, architecture=ArchitectureSpec(depth=4)
    )  # of the widths of 2B
    model = ModelSpec() if request.param == "tiny" else wide
    spec = resolve(EngineSpec(model=model, image=ImageSpec(resolution="0.25M")))
    made = [Generator(spec, RuntimeSpec(device="cuda", cuda_graphs=captures)) for captures in (True, False)]
    for generator in made:
        generator.setup()
    return made


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_an_image_is_the_same_in_any_batch(generators, policy):
    assert generators[0].describe()["least_rows"] is not None
    images = {}
    for generator in (each.with_policy(policy) for each in generators):
        for batch in BATCHES:
            requests = [GenerationRequest(f"s{n}", PROMPTS[n], None, n) for n in batch]
            for number, pixels in zip(batch, generator.generate(requests).pixels, strict=True):
                expected = images.setdefault(number, pixels)
                assert (pixels == expected).all(), f"image {number} in the batch {batch}"
