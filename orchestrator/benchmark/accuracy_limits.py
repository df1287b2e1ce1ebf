"""Whether kernels and dtypes are exact enough to be timed: a speed whose result is wrong is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker.resolved import ResolvedSpec

from .accuracy import MAX_BATCH, ScaleAccuracy, measure_accuracy

LIMITS: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
"""The largest root mean square error of a scale's logits, over the largest logit, by compute dtype."""


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        worst_rms_error: over the scales; 0 for the plain path itself, None where it is no finite number or nothing was checked.
        fault: why nothing may be timed, or None.
    """

    worst_rms_error: float | None
    fault: str | None = None


def check_accuracy(
    spec: ResolvedSpec, *, dtype: torch.dtype, backend: Backend, device: torch.device
) -> Check:
    """Compare a dtype and backend with float32 in plain PyTorch, fed the same bits, on random weights.

    Two images run together, or one where the memory does not hold two.

    Args:
        spec: sizes, schedule and sampling settings.
        dtype: compute dtype to be timed.
        backend: of its kernels.
        device: where both run.
    """
    if backend.name == "torch" and dtype == torch.float32:
        return Check(0.0)
    for batch in range(MAX_BATCH, 0, -1):
        try:
            found = measure_accuracy(spec, dtype=dtype, backend=backend, device=device, batch=batch)
        except torch.OutOfMemoryError:
            found = []
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if found:
            return judge(found, LIMITS[dtype])
    return Check(
        None,
        "check failed: the memory does not hold the model and its float32 form; --no-check leaves it out",
    )


def judge(scales: Sequence[ScaleAccuracy], limit: float) -> Check:
    """Hold the worst scale against a limit; an error that is no number fails.

    Args:
        scales: from the coarsest.
        limit: of the error.
    """
    errors = [math.inf if math.isnan(scale.rms_error) else scale.rms_error for scale in scales]
    worst = max(range(len(errors)), key=errors.__getitem__)
    error = errors[worst] if math.isfinite(errors[worst]) else None
    if error is not None and error <= limit:
        return Check(error)
    return Check(error, f"check failed: scale {worst} rms {scales[worst].rms_error:.1e} over limit {limit:g}")
