"""Sizes of the Infinity models and where their released files are."""

import difflib
from dataclasses import dataclass, replace
from typing import Final

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.specs import ModelSpec

_MLP_MULTIPLE = 256
MAX_TEXT_TOKENS: Final = 512
MAX_LEVELS: Final = 15


@dataclass(frozen=True, slots=True)
class TransformerArchitecture:
    """Sizes of a transformer.

    Attributes:
        depth: blocks.
        width: channels C of the hidden state.
        num_heads: attention heads H; the head size is C / H.
        text_width: channels of the text encoder's output.
        bits_per_token: D, code bits predicted for a token.
    """

    depth: int
    width: int
    num_heads: int
    text_width: int
    bits_per_token: int

    @property
    def head_dim(self) -> int:
        """D."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward: the multiple of 256 nearest to 4C."""
        return round(4 * self.width / _MLP_MULTIPLE) * _MLP_MULTIPLE

    @property
    def text_pool_heads(self) -> int:
        """Heads of the attentive pooling over the text."""
        return max(1, self.text_width // (64 if self.width > 4096 else 128))


@dataclass(frozen=True, slots=True)
class VaeArchitecture:
    """Sizes of a VAE.

    Attributes:
        codebook_dim: code bits z.
        base_channels: channels at the outermost level.
        channel_multipliers: of the levels, outermost first; each level but the last halves the size.
        spatial_patchify: a token holds 2 x 2 codes (pixel shuffle).
    """

    codebook_dim: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    spatial_patchify: bool

    @property
    def bits_per_token(self) -> int:
        """Code bits that one token of the transformer predicts."""
        return self.codebook_dim * (4 if self.spatial_patchify else 1)


@dataclass(frozen=True, slots=True)
class T5Architecture:
    """Sizes of a T5 encoder built with random weights."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int


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
        ModelSpecError: no such preset; names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise ModelSpecError(
            f"model.preset: {name!r} does not exist; did you mean {near[0]!r}? (presets: {', '.join(PRESETS)})"
        )
    return PRESETS[name]


def resolve_architecture(spec: ModelSpec) -> tuple[TransformerArchitecture, VaeArchitecture]:
    """The preset's sizes with the spec's overrides, checked against each other.

    Raises:
        ModelSpecError: an unknown preset, or sizes that no Infinity model can have; names the field.
    """
    preset = get_preset(spec.preset)
    given = spec.architecture
    vae = VaeArchitecture(
        codebook_dim=given.codebook_dim or preset.vae.codebook_dim,
        base_channels=given.vae_base_channels or preset.vae.base_channels,
        channel_multipliers=given.vae_channel_multipliers or preset.vae.channel_multipliers,
        spatial_patchify=preset.vae.spatial_patchify
        if given.spatial_patchify is None
        else given.spatial_patchify,
    )
    transformer = TransformerArchitecture(
        depth=given.depth or preset.transformer.depth,
        width=given.width or preset.transformer.width,
        num_heads=given.num_heads or preset.transformer.num_heads,
        text_width=given.text_width or preset.transformer.text_width,
        bits_per_token=vae.bits_per_token,
    )
    check_transformer(transformer)
    check_vae(vae)
    return transformer, vae


def check_transformer(sizes: TransformerArchitecture) -> None:
    """Check that a transformer can have these sizes.

    Raises:
        ModelSpecError: it cannot; names the field.
    """
    field = "model.architecture"
    if min(sizes.depth, sizes.width, sizes.num_heads, sizes.text_width) < 1:
        raise ModelSpecError(f"{field}: depth, width, num_heads and text_width must be positive")
    if sizes.width % sizes.num_heads:
        raise ModelSpecError(f"{field}.width: {sizes.width} is not divisible by num_heads {sizes.num_heads}")
    if not sizes.mlp_width:
        raise ModelSpecError(
            f"{field}.width: {sizes.width} is too small; the feed-forward needs more than 32"
        )
    if sizes.head_dim % 4:
        raise ModelSpecError(
            f"{field}.num_heads: the head size {sizes.head_dim} (width / num_heads) must be divisible by 4"
        )
    if sizes.width % sizes.text_pool_heads:
        raise ModelSpecError(
            f"{field}.text_width: width {sizes.width} is not divisible by the {sizes.text_pool_heads} "
            f"pooling heads that a text width of {sizes.text_width} gives"
        )


def check_vae(sizes: VaeArchitecture) -> None:
    """Check that a VAE can have these sizes and covers 16 x 16 pixels a token.

    Raises:
        ModelSpecError: it cannot; names the field.
    """
    field = "model.architecture"
    if min(sizes.codebook_dim, sizes.base_channels, *sizes.channel_multipliers) < 1:
        raise ModelSpecError(f"{field}: codebook_dim and the channels of the VAE must be positive")
    if sizes.base_channels % 32:
        raise ModelSpecError(
            f"{field}.vae_base_channels: {sizes.base_channels} is not divisible by the 32 groups of the norms"
        )
    levels = 4 if sizes.spatial_patchify else 5
    if len(sizes.channel_multipliers) != levels:
        raise ModelSpecError(
            f"{field}.vae_channel_multipliers: expected {levels} values (a token covers 16 x 16 pixels), "
            f"got {len(sizes.channel_multipliers)}"
        )
