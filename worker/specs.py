"""The parts of a job that a worker needs: model, sampling, image and policy, checked once and frozen."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from toprovar_batch.worker.spec_base import FrozenSpec

from .pruning.policies.specs import DenseSpec, PolicySpec

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Resolution = Literal["0.06M", "0.25M", "0.60M", "1M"]
NonEmpty = Annotated[str, Field(min_length=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HDivW = Annotated[float, Field(ge=1 / 3 - 1e-3, le=3 + 1e-3)]
CfgScale = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_WHOLE_COLOUR_QUALITY = 95


class ArchitectureSpec(FrozenSpec):
    """Overrides of a preset's sizes, field by field; None keeps the preset's value."""

    depth: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    num_heads: int | None = Field(None, ge=1)
    text_width: int | None = Field(None, ge=1)
    codebook_dim: int | None = Field(None, ge=1, description="code bits z of the VAE")
    spatial_patchify: bool | None = None
    vae_base_channels: int | None = Field(None, ge=32)
    vae_channel_multipliers: tuple[PositiveInt, ...] | None = None


class ModelSpec(FrozenSpec):
    """Which model to run and where its files are.

    Each of `transformer`, `vae` and `text_encoder` overrides the preset's file: a local path, an fsspec URL,
    package:// for a file of this package, or (text encoder) a Hugging Face id. `random_weights` builds the model
    at full size from `weights_seed` without any file.
    """

    preset: str = "tiny"
    transformer: NonEmpty | None = None
    vae: NonEmpty | None = None
    text_encoder: NonEmpty | None = None
    architecture: ArchitectureSpec = ArchitectureSpec()
    random_weights: bool = False
    weights_seed: int = Field(0, ge=0, lt=2**63)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class SamplingSpec(FrozenSpec):
    """How bits are drawn. A list gives one value per scale; None takes the preset's value."""

    cfg_scale: CfgScale | tuple[CfgScale, ...] | None = None
    temperature: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    top_k: int = Field(0, ge=0, description="1 is greedy; other values have no effect on single bits")
    top_p: float = Field(0.97, ge=0, le=1, description="0 and 1 switch it off")
    greedy: bool = False
    cfg_insertion_layer: int = Field(
        0, le=0, description="0: guide the logits; -k: guide the output of block depth-k"
    )


class ImageFormatSpec(FrozenSpec):
    """Resolution and encoding of the images; None takes the preset's resolution."""

    resolution: Resolution | None = None
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = Field(95, ge=1, le=100, description="of jpeg and webp")
    subsampling: Subsampling | None = Field(
        None, description="of jpeg; null: 4:4:4 from quality 95 on, else 4:2:0"
    )

    @property
    def jpeg_subsampling(self) -> Subsampling:
        """How much of the colour a JPEG keeps; fine colour is what a high quality is asked for."""
        return self.subsampling or ("4:4:4" if self.quality >= _WHOLE_COLOUR_QUALITY else "4:2:0")


class ImageSpec(ImageFormatSpec):
    """Size and encoding of the images. `h_div_w` is height over width, 1/3 to 3."""

    h_div_w: HDivW = 1.0


class EngineSpec(FrozenSpec):
    """Everything that decides what an engine generates, and nothing about where or when it runs."""

    model: ModelSpec = ModelSpec()
    sampling: SamplingSpec = SamplingSpec()
    image: ImageSpec = ImageSpec()
    policy: PolicySpec = DenseSpec()


class RuntimeSpec(FrozenSpec):
    """Where and how fast an engine runs.

    None of it is part of a dataset's identity. It decides how numbers are rounded, though, and so an image may change
    with it: `docs/job-file.md` says what is exact.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "torch", "triton"] = "auto"
    batch_size: int | None = Field(
        None, ge=1, description="images per batch; None: what keeps the GPU busy and fits into it"
    )
    cuda_graphs: bool = Field(
        True, description="on GPUs with Triton's kernels: capture the work of layers, and replay it"
    )
