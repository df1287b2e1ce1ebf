"""An engine's spec with nothing left open: what a job leaves to its preset is filled in, once, and checked.

Nothing here imports PyTorch, so a job is resolved in no time.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from .errors import ModelSpecError
from .infinity.config import (
    T5Architecture,
    TransformerArchitecture,
    VaeArchitecture,
    check_transformer,
    check_vae,
)
from .infinity.schedule import ScaleSchedule, num_scales, scale_schedule
from .presets import ModelPreset, get_preset
from .pruning.policies.specs import PolicySpec
from .sampling_settings import SamplingSettings, per_scale
from .specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, SamplingSpec


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's three parts come from; None for a part that gets random weights."""

    transformer: str | None
    vae: str | None
    text_encoder: str | None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose every size and file is decided.

    Attributes:
        preset: its name.
        transformer: sizes.
        vae: sizes.
        random_text_encoder: sizes of a text encoder with random weights.
        files: of the three parts.
        weights_seed: of random weights.
        dtype: "auto", or the compute dtype by name.
    """

    preset: str
    transformer: TransformerArchitecture
    vae: VaeArchitecture
    random_text_encoder: T5Architecture
    files: ModelFiles
    weights_seed: int
    dtype: str


@dataclass(frozen=True, slots=True)
class ResolvedSpec:
    """Everything that decides what an engine generates, with no setting left to the preset.

    Attributes:
        model: its sizes and files.
        settings: how bits are drawn, one value per scale.
        written_out: the spec with every setting given.
    """

    model: ResolvedModel
    settings: SamplingSettings
    written_out: EngineSpec

    @property
    def image(self) -> ImageSpec:
        """Size and encoding of the images."""
        return self.written_out.image

    @property
    def policy(self) -> PolicySpec:
        """The settings of the pruning policy."""
        return self.written_out.policy

    @property
    def resolution(self) -> str:
        """Of the images, such as "1M"."""
        assert self.image.resolution is not None
        return self.image.resolution

    @property
    def num_scales(self) -> int:
        """S of every schedule at this resolution."""
        return num_scales(self.resolution)

    def schedule_of(self, h_div_w: float) -> ScaleSchedule:
        """The scale schedule of a requested height / width.

        Raises:
            ModelSpecError: the ratio is outside 1/3 to 3.
        """
        return scale_schedule(h_div_w, self.resolution)

    def with_policy(self, policy: PolicySpec) -> "ResolvedSpec":
        """The same under another policy."""
        return replace(self, written_out=self.written_out.model_copy(update={"policy": policy}))


@lru_cache(maxsize=16)
def resolve(spec: EngineSpec) -> ResolvedSpec:
    """Fill in what a spec leaves to its preset.

    Whether the policy fits the model is checked by `check_policy`.

    Raises:
        ModelSpecError: an unknown preset, sizes that no Infinity model can have, a part without a file, a list of the
            wrong length, or a guidance layer that the model lacks; names the field.
    """
    preset = get_preset(spec.model.preset)
    model = resolve_model(spec.model)
    resolution = spec.image.resolution or preset.resolution
    sampling = _written_out_sampling(spec.sampling, preset)
    return ResolvedSpec(
        model=model,
        settings=_settings(sampling, num_scales(resolution), model.transformer.depth),
        written_out=EngineSpec(
            model=_written_out_model(spec.model, model),
            sampling=sampling,
            image=_written_out_image(spec.image, resolution),
            policy=spec.policy,
        ),
    )


def resolve_model(spec: ModelSpec) -> ResolvedModel:
    """The preset's sizes and files with the spec's own in their place, checked against each other.

    Raises:
        ModelSpecError: an unknown preset, sizes that no Infinity model can have, a part without a file of these sizes,
            or files named beside random_weights; names the field.
    """
    preset = get_preset(spec.preset)
    transformer, vae = _architecture(spec.architecture, preset)
    return ResolvedModel(
        preset=spec.preset,
        transformer=transformer,
        vae=vae,
        random_text_encoder=preset.text_encoder,
        files=_files(spec, preset, transformer, vae),
        weights_seed=spec.weights_seed,
        dtype=spec.dtype,
    )


def _architecture(
    given: ArchitectureSpec, preset: ModelPreset
) -> tuple[TransformerArchitecture, VaeArchitecture]:
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
    check_transformer(transformer, "model.architecture.")
    check_vae(vae, "model.architecture.vae_")
    return transformer, vae


def _files(
    spec: ModelSpec, preset: ModelPreset, transformer: TransformerArchitecture, vae: VaeArchitecture
) -> ModelFiles:
    if spec.random_weights:
        if spec.transformer or spec.vae or spec.text_encoder:
            raise ModelSpecError(
                "model.random_weights: files are named too; drop them, or set random_weights to false"
            )
        return ModelFiles(None, None, None)
    files = ModelFiles(
        spec.transformer or preset.transformer_file,
        spec.vae or preset.vae_file,
        spec.text_encoder or preset.text_encoder_name,
    )
    missing = [part for part in ("transformer", "vae", "text_encoder") if getattr(files, part) is None]
    if missing:
        raise ModelSpecError(
            f"model.{missing[0]}: preset {spec.preset!r} has no released file for it; "
            "name one, or set model.random_weights to true"
        )
    for part, named, fits in (
        ("transformer", spec.transformer, transformer == preset.transformer),
        ("vae", spec.vae, vae == preset.vae),
    ):
        if named is None and not fits:
            raise ModelSpecError(
                f"model.{part}: the file of preset {spec.preset!r} has other sizes than model.architecture gives; "
                "name one that has these, or set model.random_weights to true"
            )
    return files


def _settings(sampling: SamplingSpec, count: int, depth: int) -> SamplingSettings:
    """The settings of `count` scales of a model of `depth` blocks."""
    if -sampling.cfg_insertion_layer > depth:
        raise ModelSpecError(
            f"sampling.cfg_insertion_layer: {sampling.cfg_insertion_layer} names no block of a model of depth "
            f"{depth}; use 0 to {-depth}"
        )
    assert sampling.cfg_scale is not None
    assert sampling.temperature is not None
    return SamplingSettings(
        cfg_scale=per_scale(sampling.cfg_scale, count, "sampling.cfg_scale"),
        temperature=per_scale(sampling.temperature, count, "sampling.temperature"),
        top_p=sampling.top_p,
        greedy=sampling.greedy or sampling.top_k == 1,
        cfg_insertion_layers=(sampling.cfg_insertion_layer,),
    )


def _written_out_sampling(given: SamplingSpec, preset: ModelPreset) -> SamplingSpec:
    values = {
        "cfg_scale": preset.cfg_scale if given.cfg_scale is None else given.cfg_scale,
        "temperature": preset.temperature if given.temperature is None else given.temperature,
    }
    return given.model_copy(update=values)


def _written_out_image(given: ImageSpec, resolution: str) -> ImageSpec:
    subsampling = given.jpeg_subsampling if given.format == "jpeg" else given.subsampling
    return given.model_copy(update={"resolution": resolution, "subsampling": subsampling})


def _written_out_model(given: ModelSpec, model: ResolvedModel) -> ModelSpec:
    architecture = ArchitectureSpec(
        depth=model.transformer.depth,
        width=model.transformer.width,
        num_heads=model.transformer.num_heads,
        text_width=model.transformer.text_width,
        codebook_dim=model.vae.codebook_dim,
        spatial_patchify=model.vae.spatial_patchify,
        vae_base_channels=model.vae.base_channels,
        vae_channel_multipliers=model.vae.channel_multipliers,
    )
    values = {
        "transformer": model.files.transformer,
        "vae": model.files.vae,
        "text_encoder": model.files.text_encoder,
        "architecture": architecture,
    }
    return given.model_copy(update=values)
