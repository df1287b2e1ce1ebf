"""Sizes of the parts of an Infinity model, and which sizes a model can have."""

from dataclasses import dataclass
from typing import Final

from toprovar_batch.worker.errors import ModelSpecError

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


def check_transformer(sizes: TransformerArchitecture, where: str = "") -> None:
    """Check that a transformer can have these sizes.

    Args:
        sizes: to check.
        where: stands before the field's name in errors.

    Raises:
        ModelSpecError: it cannot; names the field.
    """
    for field in ("depth", "width", "num_heads", "text_width"):
        if getattr(sizes, field) < 1:
            raise ModelSpecError(f"{where}{field}: {getattr(sizes, field)} is not positive")
    if sizes.width % sizes.num_heads:
        raise ModelSpecError(f"{where}width: {sizes.width} is not divisible by num_heads {sizes.num_heads}")
    if not sizes.mlp_width:
        raise ModelSpecError(f"{where}width: {sizes.width} is too small; the feed-forward needs more than 32")
    if sizes.head_dim % 4:
        raise ModelSpecError(
            f"{where}num_heads: the head size {sizes.head_dim} (width / num_heads) must be divisible by 4"
        )
    if sizes.width % sizes.text_pool_heads:
        raise ModelSpecError(
            f"{where}text_width: width {sizes.width} is not divisible by the {sizes.text_pool_heads} "
            f"pooling heads that a text width of {sizes.text_width} gives"
        )


def check_vae(sizes: VaeArchitecture, where: str = "") -> None:
    """Check that a VAE can have these sizes and covers 16 x 16 pixels with a token.

    Args:
        sizes: to check.
        where: stands before the field's name in errors.

    Raises:
        ModelSpecError: it cannot; names the field.
    """
    if min(sizes.codebook_dim, sizes.base_channels, *sizes.channel_multipliers) < 1:
        raise ModelSpecError(f"{where}codebook_dim and the channels of the VAE must be positive")
    if sizes.base_channels % 32:
        raise ModelSpecError(
            f"{where}base_channels: {sizes.base_channels} is not divisible by the 32 groups of the norms"
        )
    levels = 4 if sizes.spatial_patchify else 5
    if len(sizes.channel_multipliers) != levels:
        raise ModelSpecError(
            f"{where}channel_multipliers: expected {levels} values (a token covers 16 x 16 pixels), "
            f"got {len(sizes.channel_multipliers)}"
        )
