"""Named models: their sizes, where their released files are, and how they are usually sampled."""

from dataclasses import dataclass, replace
from typing import Final

from .errors import ModelSpecError
from .infinity.config import T5Architecture, TransformerArchitecture, VaeArchitecture
from .words import nearest


@dataclass(frozen=True, slots=True)
class ModelPreset:
    """A named model: its sizes, released files, and the settings it is usually sampled with."""

    transformer: TransformerArchitecture
    vae: VaeArchitecture
    text_encoder: T5Architecture
    resolution: str
    cfg_scale: float
    temperature: float
    transformer_file: str | None = None
    vae_file: str | None = None
    text_encoder_name: str | None = None


_HUB = "hf://FoundationVision/Infinity"
_SHIPPED = "package://worker/reference/weights"  # docs/reference-model.md tells how they were made
_FLAN_T5_XL = T5Architecture(d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32)
_VAE_D32 = VaeArchitecture(32, 128, (1, 2, 4, 4, 4), spatial_patchify=False)
_VAE_D56 = VaeArchitecture(14, 128, (1, 2, 4, 4), spatial_patchify=True)


def _family(depth: int, width: int, num_heads: int) -> ModelPreset:
    return ModelPreset(
        transformer=TransformerArchitecture(depth, width, num_heads, 2048, _VAE_D32.bits_per_token),
        vae=_VAE_D32,
        text_encoder=_FLAN_T5_XL,
        resolution="1M",
        cfg_scale=3.0,
        temperature=1.0,
        text_encoder_name="google/flan-t5-xl",
    )


_VAE_TINY = VaeArchitecture(32, 32, (1, 2, 2, 4, 4), spatial_patchify=False)

PRESETS: Final[dict[str, ModelPreset]] = {
    "tiny": ModelPreset(
        transformer=TransformerArchitecture(9, 320, 5, 256, _VAE_TINY.bits_per_token),
        vae=_VAE_TINY,
        text_encoder=T5Architecture(d_model=256, d_kv=64, d_ff=256, num_layers=3, num_heads=4),
        resolution="0.25M",
        cfg_scale=3.0,
        temperature=1.0,
        transformer_file=f"{_SHIPPED}/transformer",
        vae_file=f"{_SHIPPED}/vae.safetensors",
        text_encoder_name=f"{_SHIPPED}/text_encoder",
    ),
    "infinity-2b": replace(
        _family(32, 2048, 16),
        cfg_scale=4.0,
        temperature=0.5,
        transformer_file=f"{_HUB}/infinity_2b_reg.pth",
        vae_file=f"{_HUB}/infinity_vae_d32reg.pth",
    ),
    "infinity-8b": ModelPreset(
        transformer=TransformerArchitecture(40, 3584, 28, 2048, _VAE_D56.bits_per_token),
        vae=_VAE_D56,
        text_encoder=_FLAN_T5_XL,
        resolution="1M",
        cfg_scale=3.0,
        temperature=1.0,
        transformer_file=f"{_HUB}/infinity_8b_weights",
        vae_file=f"{_HUB}/infinity_vae_d56_f8_14_patchify.pth",
        text_encoder_name="google/flan-t5-xl",
    ),
    "layer12": _family(12, 768, 8),
    "layer16": _family(16, 1152, 12),
    "layer24": _family(24, 1536, 16),
    "layer32": _family(32, 2080, 20),
    "layer40": _family(40, 2688, 24),
    "layer48": _family(48, 3360, 28),
}


def get_preset(name: str) -> ModelPreset:
    """The preset of that name.

    Raises:
        ModelSpecError: no such preset; names a near one.
    """
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        known = f"presets: {', '.join(PRESETS)}"
        mend = f"did you mean {near!r}? ({known})" if near else known
        raise ModelSpecError(f"model.preset: {name!r} does not exist; {mend}")
    return PRESETS[name]
