"""What is too far from plain float32 to be timed."""

import math

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH, Backend
from toprovar_batch.orchestrator.benchmark import accuracy_limits
from toprovar_batch.orchestrator.benchmark.accuracy import ScaleAccuracy
from toprovar_batch.orchestrator.benchmark.accuracy_limits import LIMITS, check_accuracy, judge
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec

SPEC = resolve(EngineSpec(model=ModelSpec(random_weights=True)))
CPU = torch.device("cpu")
TRITON = Backend("triton", "to be checked")


def _scales(*errors):
    return [ScaleAccuracy(1, error, 0.0) for error in errors]


def test_errors_up_to_the_limit_pass():
    check = judge(_scales(1e-3, 2e-2, 5e-3), LIMITS[torch.bfloat16])
    assert (check.worst_rms_error, check.fault) == (2e-2, None)


def test_the_worst_scale_above_the_limit_is_named():
    check = judge(_scales(1e-5, 3e-4, 2e-4), LIMITS[torch.float32])
    assert check.fault == "check failed: scale 1 rms 3.0e-04 over limit 0.0001"
    assert check.worst_rms_error == 3e-4


def test_an_error_that_is_no_number_fails():
    check = judge(_scales(1e-5, math.nan), LIMITS[torch.float32])
    assert check.fault == "check failed: scale 1 rms nan over limit 0.0001"
    assert check.worst_rms_error is None


def test_the_plain_path_is_its_own_reference(monkeypatch):
    monkeypatch.setattr(accuracy_limits, "measure_accuracy", None)
    assert check_accuracy(SPEC, dtype=torch.float32, backend=PYTORCH, device=CPU).worst_rms_error == 0


@pytest.mark.parametrize(("held", "error"), [(2, 1e-6), (1, 1e-6), (0, None)])
def test_fewer_images_are_compared_where_the_memory_does_not_hold_two(monkeypatch, held, error):
    asked = []

    def measure(_spec, *, batch, **_options):
        asked.append(batch)
        if batch > held:
            raise torch.OutOfMemoryError
        return _scales(1e-6)

    monkeypatch.setattr(accuracy_limits, "measure_accuracy", measure)
    check = check_accuracy(SPEC, dtype=torch.float32, backend=TRITON, device=CPU)
    assert asked == list(range(2, max(held, 1) - 1, -1))
    assert check.worst_rms_error == error
    assert (check.fault is None) == (error is not None)
    if check.fault:
        assert "--no-check" in check.fault
