"""The fused decoder by its kernels: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name, since Triton reads at its import whether to interpret. `test_vae` runs this file in a process of
its own; on a GPU run it directly: `python -m pytest tests/worker/infinity/vae_cases.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toprovar_batch.kernels.ops import PYTORCH, Backend
from toprovar_batch.worker.infinity.config import VaeArchitecture
from toprovar_batch.worker.infinity.vae import to_uint8
from toprovar_batch.worker.models import load_vae, random_vae
from toprovar_batch.worker.verify import MAX_PIXEL_DIFFERENCE, MAX_PIXEL_FRACTION

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TRITON = Backend("triton", "for this test")
GOLDEN = Path(__file__).parents[2] / "data" / "golden"


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """float32 means float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _decoders(dtype):
    """The same random decoder in `dtype` and in float64."""
    sizes = VaeArchitecture(8, 64, (1, 2, 2), spatial_patchify=False)
    vae = random_vae(sizes, 1, DEVICE, dtype)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):  # else they are zero
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    vae.to(memory_format=torch.channels_last)
    exact = random_vae(sizes, 1, DEVICE, torch.float64)
    exact.load_state_dict(vae.state_dict())
    return vae, exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_errors_are_at_most_twice_those_of_pytorch(dtype):
    vae, exact = _decoders(dtype)
    codes = torch.randn(2, 8, 5, 3, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
    expected = exact.decoder(codes.double())
    fused, plain = vae.decoder(codes, TRITON), vae.decoder(codes, PYTORCH)
    assert fused.dtype == dtype
    assert (fused - expected).abs().max() <= 2 * (plain - expected).abs().max()
    assert (fused - expected).square().mean() <= 2 * (plain - expected).square().mean()


@torch.inference_mode()
def test_an_image_is_the_same_alone_and_in_any_run():
    vae, _ = _decoders(torch.bfloat16)
    codes = torch.randn(1, 8, 6, 4, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    assert torch.equal(vae.decode(codes, TRITON), vae.decode(codes.clone(), TRITON))


@pytest.mark.skipif(not ON_GPU, reason="the interpreter would take minutes for images of 256 pixels")
@pytest.mark.parametrize("name", ["square", "patchify"])
@torch.inference_mode()
def test_recorded_images_of_the_official_implementation_are_met(name):
    meta = json.loads((GOLDEN / name / "meta.json").read_text())["vae"]
    sizes = VaeArchitecture(
        meta["z_channels"], meta["base_ch"], tuple(meta["ch_mult"]), spatial_patchify=False
    )
    vae = load_vae(sizes, GOLDEN / name / "vae.pth", DEVICE, torch.float32)
    recorded = load_file(GOLDEN / name / "io.safetensors")
    image = to_uint8(vae.decode(recorded["latent"].to(DEVICE), TRITON)).cpu().int()
    difference = (image.flip(-1) - recorded["image_bgr"].int()).abs()
    assert difference.max() <= MAX_PIXEL_DIFFERENCE
    assert (difference > 0).float().mean() <= MAX_PIXEL_FRACTION
