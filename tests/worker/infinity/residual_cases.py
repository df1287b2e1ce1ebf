"""Scales with the Triton backend beside the PyTorch one: compiled on a GPU, elsewhere in Triton's interpreter.

Not collected by name, since Triton reads at its import whether to interpret. `test_residual` runs this file in a process
of its own; on a GPU run it directly: `python -m pytest tests/worker/infinity/residual_cases.py`.
"""

from dataclasses import replace

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH, Backend
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet
from toprovar_batch.worker.sampling_settings import SamplingSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = Backend("triton", "for this test")
SCHEDULE = scale_schedule(1.0, "0.06M")[:4]
SIZES = TransformerArchitecture(depth=3, width=96, num_heads=2, text_width=24, bits_per_token=8)


def _plan(scale_index, kind):
    """Of two prompts: all tokens; some of one prompt in the middle layer; or the second prompt without guidance."""
    h, w = SCHEDULE[scale_index]
    dense = ScalePlan.dense(h * w, SIZES.depth, 2)
    if kind == "dense" or scale_index < 2:
        return replace(dense, changes_of=(0, 1) if kind == "restored" else ())
    if kind == "unguided":
        return replace(dense, conditional_only=(False, True))
    mask = torch.zeros(2, h * w, dtype=torch.bool, device=DEVICE)
    mask[0, ::2], mask[1] = True, True
    some = TokenSet((int(mask[0].sum()), h * w), mask=mask)
    return replace(dense, layers=(None, some, None), restore=kind == "restored")


def _logits(backend, dtype, kind):
    """Of all scales, each fed the same bits."""
    model = random_transformer(SIZES, 3, DEVICE, dtype)
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(n, SIZES.text_width, generator=generator).to(DEVICE) for n in (3, 5, 2, 4)]
    settings = SamplingSettings((3.0,) * 4, (1.0,) * 4)
    with torch.inference_mode():
        text = model.encode_text(features)
        state = BatchRunner(
            model,
            text,
            SCHEDULE,
            settings,
            largest_map=(64, 64),
            codebook_dim=8,
            spatial_patchify=False,
            backend=backend,
        )
        logits = []
        for scale_index, (h, w) in enumerate(SCHEDULE):
            output = state.run_scale(scale_index, _plan(scale_index, kind))
            logits.append(output.logits)
            bits = torch.randint(0, 2, (2, h * w, 8), generator=generator).bool().to(DEVICE)
            state.add_bits(scale_index, bits, output)
    return logits


@pytest.mark.parametrize("kind", ["dense", "pruned", "restored", "unguided"])
def test_both_backends_give_the_same_logits(kind):
    for mine, plain in zip(
        _logits(TRITON, torch.float32, kind), _logits(PYTORCH, torch.float32, kind), strict=True
    ):
        assert (mine - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("kind", ["dense", "restored"])
def test_in_bfloat16_the_kernels_are_as_exact_as_pytorch(kind):
    exact = _logits(PYTORCH, torch.float32, kind)
    mine, plain = (_logits(backend, torch.bfloat16, kind) for backend in (TRITON, PYTORCH))

    def error(logits):
        return sum((each - other).square().sum().item() for each, other in zip(logits, exact, strict=True))

    assert error(mine) <= 2 * error(plain)
