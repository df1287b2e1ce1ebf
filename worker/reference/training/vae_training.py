"""Stage 1: the VAE with binary spherical multi-scale quantisation."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from toprovar_batch.worker.infinity.bsq import ResidualSum, quantize
from toprovar_batch.worker.infinity.checkpoint import save_plain
from toprovar_batch.worker.infinity.config import VaeArchitecture
from toprovar_batch.worker.infinity.schedule import ScaleSchedule, scale_schedule
from toprovar_batch.worker.infinity.vae import Vae
from toprovar_batch.worker.models import load_vae
from toprovar_batch.worker.whole_file import write_whole

from .scene_stream import render_pixels, scene_batches
from .schedule import AveragedWeights, TimedCosine

_COMMITMENT = 0.25
_EDGES = 0.5
_SEED = 11
_EVALUATION_SEED = 9_001
# A run that is cut off leaves what it has learnt, though without the end of its cosine.
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class VaeTrainingSettings:
    """The recipe of stage 1.

    Attributes:
        minutes: of training, the evaluation comes on top.
        small_fraction: part of the time spent on 256 x 256 pictures; the rest on 512 x 512.
        batch_small, batch_large: pictures per step.
        peak_rate: learning rate of AdamW.
        num_workers: processes that make scenes.
    """

    minutes: float = 8.0
    small_fraction: float = 0.75
    batch_small: int = 96
    batch_large: int = 40
    peak_rate: float = 1.5e-3
    num_workers: int = 0


def quantized(features: Tensor, schedule: ScaleSchedule) -> Tensor:
    """The summed codes of features ([B, z, H, W]), with the gradient passed straight through."""
    with torch.no_grad():
        total = ResidualSum(schedule, features.shape[0], features.shape[1], False, features.device)
        for scale_index, bits in enumerate(quantize(features, schedule, spatial_patchify=False)):
            total.add(scale_index, bits)
    return features + (total.summed_codes - features).detach()


def _schedule(side: int) -> ScaleSchedule:
    return scale_schedule(1.0, "0.25M" if side == 512 else "0.06M")


def vae_loss(vae: Vae, images: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    """Loss of a batch, and its reconstruction's mean squared error.

    Args:
        vae: with its encoder.
        images: [B, 3, H, W] in [-1, 1].
        schedule: token map sizes that end in H / 16 x W / 16.
    """
    features = vae.encoder(images).float()
    codes = quantized(features, schedule)
    decoded = vae.decoder(codes).float()
    commitment = mse_loss(features, codes.detach())
    squared = mse_loss(decoded, images)
    edges = sum(l1_loss(decoded.diff(dim=axis), images.diff(dim=axis)) for axis in (2, 3))
    return l1_loss(
        decoded, images
    ) + 4 * squared + _EDGES * edges + _COMMITMENT * commitment, squared.detach()


@torch.inference_mode()
def reconstruction_psnr(vae: Vae, side: int, count: int, device: torch.device) -> dict[str, float]:
    """PSNR in dB on held-out scenes: the mean over pictures, of the simplest and of the most complex quarter.

    Args:
        vae: with its encoder.
        side: pixels.
        count: pictures.
        device: of the VAE.
    """
    schedule = _schedule(side)
    psnr, complexity = [], []
    for batch in scene_batches(_EVALUATION_SEED, min(16, count), -(-count // 16), split="heldout"):
        images = render_pixels(batch, side, device)
        codes = quantized(vae.encoder(images.to(vae.dtype)).float(), schedule)
        error = ((vae.decode(codes) - images) / 2).square().mean(dim=(1, 2, 3))
        psnr += (-10 * error.log10()).tolist()
        complexity += list(batch.complexity)
    ranked = [value for _, value in sorted(zip(complexity, psnr, strict=True))]
    quarter = max(1, len(ranked) // 4)
    return {
        "psnr_db": sum(ranked) / len(ranked),
        "psnr_db_simplest_quarter": sum(ranked[:quarter]) / quarter,
        "psnr_db_most_complex_quarter": sum(ranked[-quarter:]) / quarter,
    }


def train_vae(
    sizes: VaeArchitecture,
    settings: VaeTrainingSettings,
    output: Path,
    device: torch.device,
    resume: Path | None = None,
) -> dict[str, float]:
    """Train, save the averaged weights as bfloat16 safetensors, and measure them on held-out scenes.

    Args:
        sizes: of the VAE.
        settings: the recipe.
        output: the file to write; its record goes beside it as JSON.
        device: to train on.
        resume: weights to start from.

    Returns:
        The record: steps, seconds and PSNR.
    """
    torch.manual_seed(_SEED)
    if resume is None:
        vae = Vae(sizes, with_encoder=True).to(device)
    else:
        vae = load_vae(sizes, resume, device, torch.float32, with_encoder=True).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=1e-4, fused=device.type == "cuda"
    )
    averaged = AveragedWeights(vae, 0.998)
    phases = ((256, settings.batch_small, settings.small_fraction), (512, settings.batch_large, 1.0))
    if device.type == "cuda":
        _compile(vae, [(batch_size, side) for side, batch_size, _ in phases], device)
    clock = TimedCosine(settings.peak_rate, settings.minutes)
    step, saved_at = 0, 0.0
    for side, batch_size, until in phases:
        schedule = _schedule(side)
        batches = scene_batches(_SEED + side, batch_size, 1_000_000, num_workers=settings.num_workers)
        for batch in batches:
            if clock.fraction >= until:
                break
            images = render_pixels(batch, side, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss, squared = vae_loss(vae, images, schedule)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = clock.rate
            optimizer.step()
            averaged.update(vae)
            step += 1
            if step == 1:
                clock.restart()
            if clock.elapsed - saved_at > _SAVE_EVERY_S:
                saved_at = clock.elapsed
                _save(averaged, output)
            if step % 100 == 0:
                psnr = -10 * (squared / 4).log10().item()
                print(
                    f"{clock.elapsed:6.0f} s  step {step:6d}  {side} px  loss {loss.item():.4f}  psnr {psnr:.2f} dB",
                    flush=True,
                )
        del batches
    seconds = clock.elapsed
    _save(averaged, output)
    final = load_vae(sizes, output, device, torch.float32, with_encoder=True)
    record = {"steps": float(step), "seconds": seconds, **reconstruction_psnr(final, 512, 256, device)}
    write_whole(output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return record


def _compile(vae: Vae, forms: Sequence[tuple[int, int]], device: torch.device) -> None:
    """Compile encoder and decoder, each form (pictures, side) now: the training's clock does not run yet.

    Fused norms and channels-last convolutions: several times the speed of the eager modules.
    """
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae.encoder.compile(dynamic=False)
    vae.decoder.compile(dynamic=False)
    for count, side in forms:
        images = torch.zeros(count, 3, side, side, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = vae_loss(vae, images, _schedule(side))
        loss.backward()


def _save(averaged: AveragedWeights[Vae], output: Path) -> None:
    save_plain(copy.deepcopy(averaged.module).to(torch.bfloat16), output)
