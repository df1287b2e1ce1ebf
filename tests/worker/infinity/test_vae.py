"""The VAE's decoder in its two forms, and the pixels it gives."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toprovar_batch.kernels import ops
from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.infinity import vae as module
from toprovar_batch.worker.infinity.config import VaeArchitecture
from toprovar_batch.worker.infinity.vae import Vae, to_uint8
from toprovar_batch.worker.models import load_vae, random_vae
from toprovar_batch.worker.verify import MAX_PIXEL_DIFFERENCE, MAX_PIXEL_FRACTION

CPU = torch.device("cpu")
SIZES = VaeArchitecture(8, 64, (1, 2, 2), spatial_patchify=False)


def _vae(dtype=torch.float64):
    vae = random_vae(SIZES, 1, CPU, dtype)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):  # else they are zero
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return vae


def _codes(dtype=torch.float64):
    return torch.randn(2, 8, 5, 3, generator=torch.Generator().manual_seed(3)).to(dtype)


def test_the_fused_decoder_adds_every_bias_and_shortcut():
    decoder = _vae().decoder
    with torch.no_grad():
        plain, fused = decoder(_codes()), decoder._fused(_codes(), PYTORCH)
    assert plain.shape == (2, 3, 20, 12)
    assert plain.std() > 0.01
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-6 * plain.abs().max().item())


def test_the_fused_decoder_gives_the_recorded_images(golden_folder):
    meta = json.loads((golden_folder / "meta.json").read_text())["vae"]
    sizes = VaeArchitecture(
        meta["z_channels"], meta["base_ch"], tuple(meta["ch_mult"]), spatial_patchify=False
    )
    vae = load_vae(sizes, golden_folder / "vae.pth", CPU, torch.float32)
    recorded = load_file(golden_folder / "io.safetensors")
    with torch.no_grad():
        image = to_uint8(vae.decoder._fused(recorded["latent"], PYTORCH).clamp(-1, 1)).int()
    difference = (image.flip(-1) - recorded["image_bgr"].int()).abs()
    assert difference.max() <= MAX_PIXEL_DIFFERENCE
    assert (difference > 0).float().mean() <= MAX_PIXEL_FRACTION


@pytest.mark.slow
def test_the_fused_decoder_passes_its_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("vae_cases.py")) > 0


def test_the_decoder_fuses_on_every_backend_but_pytorchs(monkeypatch):
    seen = []
    real = ops.group_norm_swish

    def norm(*tensors, backend, **options):
        seen.append(backend.name)
        return real(*tensors, backend=PYTORCH, **options)

    monkeypatch.setattr(module, "group_norm_swish", norm)
    monkeypatch.setattr(
        module, "residual_add", lambda *tensors, backend: ops.residual_add(*tensors, backend=PYTORCH)
    )
    vae = _vae()
    with torch.no_grad():
        plain = vae.decode(_codes())
        assert set(seen) == {"torch"}
        seen.clear()
        fused = vae.decode(_codes(), ops.Backend("triton", "for this test"))
    assert set(seen) == {"triton"}
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-6)


def test_training_reaches_every_parameter_and_compiles():
    vae = Vae(SIZES, with_encoder=True)
    vae.encoder.compile(backend="eager", fullgraph=True)
    vae.decoder.compile(backend="eager", fullgraph=True)
    features = vae.encoder(torch.randn(1, 3, 8, 8))
    codes = features.detach().requires_grad_()
    vae.decoder(codes).square().sum().backward()
    features.backward(codes.grad)
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_pixels_are_truncated_not_rounded():
    pixels = torch.tensor([-1.0, 0.0, 0.9999, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(pixels)[0, ..., 0].flatten().tolist() == [0, 127, 254, 255]
