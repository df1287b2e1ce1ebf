"""How exact a compute dtype is: logits of every scale against those of float32, both fed the same bits."""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from toprovar_batch.kernels.ops import PYTORCH, Backend, fastest_attention
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.infinity.schedule import largest_map
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.loaded import refuse_too_large_for
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.resolved import ResolvedSpec

# For each image the text tokens of its prompt, and those of the words that stand in for it.
_TEXT_TOKENS = ((17, 40), (9, 23))
MAX_BATCH = len(_TEXT_TOKENS)


@dataclass(frozen=True)
class ScaleAccuracy:
    """How far the logits of one scale are from float32.

    Attributes:
        tokens: of the scale's map.
        rms_error: root mean square of the difference, over the largest float32 logit.
        flipped_bits: fraction of the drawn bits that differ, for the same noise.
    """

    tokens: int
    rms_error: float
    flipped_bits: float


def measure_accuracy(
    spec: ResolvedSpec,
    *,
    dtype: torch.dtype,
    backend: Backend,
    device: torch.device,
    seed: int = 0,
    batch: int = 1,
) -> list[ScaleAccuracy]:
    """Compare a dtype and backend with float32 in plain PyTorch, on random weights of the given sizes.

    Args:
        spec: sizes, schedule and sampling settings.
        dtype: compute dtype in question.
        backend: of its kernels.
        device: where both run.
        seed: of weights, text and noise.
        batch: images that run together, at most `MAX_BATCH`; errors are those of all.

    Returns:
        One record per scale.
    """
    refuse_too_large_for(spec.model, device, torch.float32)
    transformer, vae, settings = spec.model.transformer, spec.model.vae, spec.settings
    schedule = spec.schedule_of(spec.image.h_div_w)
    exact = random_transformer(transformer, seed, device, torch.float32)
    model = random_transformer(transformer, seed, device, dtype)
    for parameter, source in zip(model.parameters(), exact.parameters(), strict=True):
        parameter.copy_(source)  # drawn in another dtype, the weights would be others
    text = _random_text(spec, batch, device, seed)
    seeds = torch.arange(seed, seed + batch, device=device)

    def runner(model: Infinity, backend: Backend) -> BatchRunner:
        return BatchRunner(
            model,
            model.encode_text(text),
            schedule,
            settings,
            largest_map=largest_map(spec.image.h_div_w),
            codebook_dim=vae.codebook_dim,
            spatial_patchify=vae.spatial_patchify,
            backend=backend,
        )

    with torch.inference_mode(), fastest_attention(device):
        theirs, ours = runner(exact, PYTORCH), runner(model, backend)
        return [_compare(theirs, ours, seeds, scale_index) for scale_index in range(len(schedule))]


def _random_text(spec: ResolvedSpec, batch: int, device: torch.device, seed: int) -> list[Tensor]:
    """Features [n, Ct5] of each row, conditional rows first."""
    generator = torch.Generator(device).manual_seed(seed)
    branches = zip(*_TEXT_TOKENS[:batch], strict=True)
    return [
        torch.randn(count, spec.model.transformer.text_width, generator=generator, device=device)
        for counts in islice(branches, 2 if spec.settings.guided else 1)
        for count in counts
    ]


def _compare(theirs: BatchRunner, ours: BatchRunner, seeds: Tensor, scale_index: int) -> ScaleAccuracy:
    expected, output = theirs.run_scale(scale_index), ours.run_scale(scale_index)
    bits = theirs.draw_bits(scale_index, expected, seeds).bits
    drawn = ours.draw_bits(scale_index, output, seeds).bits
    for each, its_output in ((theirs, expected), (ours, output)):
        each.add_bits(scale_index, bits, its_output)
    difference = (output.logits - expected.logits).square().mean().sqrt() / expected.logits.abs().max()
    height, width = theirs.schedule[scale_index]
    return ScaleAccuracy(height * width, difference.item(), (drawn != bits).float().mean().item())
