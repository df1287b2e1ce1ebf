"""The error of a compute dtype, on a small model."""

import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.orchestrator.benchmark.accuracy import measure_accuracy
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec

ARCHITECTURE = ArchitectureSpec(depth=4, width=128, num_heads=2)
SPEC = resolve(
    EngineSpec(
        model=ModelSpec(random_weights=True, architecture=ARCHITECTURE), image=ImageSpec(resolution="0.06M")
    )
)


def _measure(dtype):
    return measure_accuracy(SPEC, dtype=dtype, backend=PYTORCH, device=torch.device("cpu"))


def test_float32_is_exact():
    found = _measure(torch.float32)
    assert [scale.tokens for scale in found] == [1, 4, 16, 36, 64, 144, 256]
    assert all(scale.rms_error == scale.flipped_bits == 0 for scale in found)


def test_bfloat16_rounds_each_product_and_no_sum_between_them():
    """Stored in bfloat16, the hidden state alone gave errors of 1e-2."""
    found = _measure(torch.bfloat16)
    assert all(1e-4 < scale.rms_error < 4e-3 for scale in found)
    assert found[-1].flipped_bits < 0.01


def test_two_images_are_measured_together():
    found = measure_accuracy(SPEC, dtype=torch.bfloat16, backend=PYTORCH, device=torch.device("cpu"), batch=2)
    assert all(1e-4 < scale.rms_error < 4e-3 for scale in found)
