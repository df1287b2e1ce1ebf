"""The job: what a job file holds, checked once and frozen. `docs/job-file.md` explains every key."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from toprovar_batch.orchestrator.output.model_files import MODEL_PARTS, fingerprints, named_files
from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.infinity.config import get_preset, resolve_architecture
from toprovar_batch.worker.pruning.specs import DenseSpec, PolicySpec
from toprovar_batch.worker.spec_base import FrozenSpec
from toprovar_batch.worker.specs import (
    EngineSpec,
    HDivW,
    ImageFormatSpec,
    ImageSpec,
    ModelSpec,
    NonEmpty,
    RuntimeSpec,
    SamplingSpec,
)

from .errors import explain
from .policy_file import expand_policy, insert_policy_file
from .yaml_file import (
    anchor_path,
    apply_override,
    freeze,
    is_url,
    parse_override,
    read_job_file,
)

if TYPE_CHECKING:
    from toprovar_batch.orchestrator.prompts.sample_plan import Plan


def _refuse_nul(value: str) -> str:
    """Refuse the one character that no path can hold; every call on a file system would fail."""
    if "\0" in value:
        raise ValueError("holds a NUL character, which no path can")
    return value


Location = Annotated[NonEmpty, AfterValidator(_refuse_nul)]
AUTO_ID = "auto"
FILE_MARK = "(file)"
_TEXT_ENCODER = ("model", "text_encoder")
_PATHS = (
    ("prompts", "source"),
    ("model", "transformer"),
    ("model", "vae"),
    _TEXT_ENCODER,
    ("policy", "file"),
)
_MAX_SEED = 2**63


class PromptSpec(FrozenSpec):
    """Where the prompts are and which column means what."""

    source: Location
    format: Literal["auto", "parquet", "jsonl", "csv", "txt", "mjhq"] = "auto"
    prompt_column: NonEmpty = "prompt"
    id_column: NonEmpty | None = Field(
        AUTO_ID, description="auto: sample_id or id where there is one; null: derived from the content"
    )
    negative_prompt_column: NonEmpty | None = None
    h_div_w_column: NonEmpty | None = None
    seed_column: NonEmpty | None = None
    columns: tuple[str, ...] | None = Field(None, description="passed through to the dataset; null: all")
    limit: int | None = Field(None, ge=1, description="take only the first rows")


class JobSamplingSpec(SamplingSpec):
    """How bits are drawn, and how many images a prompt gets."""

    seed: int = Field(0, ge=0, lt=_MAX_SEED, description="with the sample's id it gives the sample's seed")
    images_per_prompt: int = Field(1, ge=1, le=100_000)
    negative_prompt: str | None = Field(None, description="of rows that have none of their own")


class JobImageSpec(ImageFormatSpec):
    """Size and encoding of the images; a list generates every prompt in every `h_div_w`."""

    h_div_w: HDivW | Annotated[tuple[HDivW, ...], Field(min_length=1)] = 1.0

    @field_validator("h_div_w")
    @classmethod
    def _refuse_repeats(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("the same value is in the list twice")
        return value

    @property
    def all_h_div_w(self) -> tuple[float, ...]:
        """The wished ratios, also when the job gives a single one."""
        return self.h_div_w if isinstance(self.h_div_w, tuple) else (self.h_div_w,)


class RuntimeJobSpec(RuntimeSpec):
    """Where a job runs and when it gives up; changing it never changes an image."""

    num_workers: int | None = Field(None, ge=1, description="null: one a GPU, on CPUs a few")
    cpus_per_worker: int = Field(1, ge=1)
    max_shard_attempts: int = Field(4, ge=1)
    stall_timeout_s: float = Field(900, gt=0, allow_inf_nan=False)
    load_timeout_s: float = Field(7200, gt=0, allow_inf_nan=False)
    max_load_failures: int = Field(3, ge=1)
    ray_address: NonEmpty | None = None


class JobSpec(FrozenSpec):
    """One job: prompts in, a dataset of images out."""

    name: NonEmpty | None = None
    prompts: PromptSpec
    model: ModelSpec = ModelSpec()
    sampling: JobSamplingSpec = JobSamplingSpec()
    image: JobImageSpec = JobImageSpec()
    policy: Annotated[PolicySpec, BeforeValidator(expand_policy)] = DenseSpec()
    output: Location
    shard_size: int = Field(64, ge=1, le=100_000, description="samples a part file holds")
    runtime: RuntimeJobSpec = RuntimeJobSpec()

    @field_validator("model")
    @classmethod
    def _refuse_nul_in_files(cls, model: ModelSpec) -> ModelSpec:
        for location in named_files(model).values():
            _refuse_nul(location)
        return model

    @model_validator(mode="after")
    def _refuse_two_sizes(self) -> Self:
        if self.prompts.h_div_w_column is not None and isinstance(self.image.h_div_w, tuple):
            raise ValueError(
                "prompts.h_div_w_column and a list in image.h_div_w exclude each other; drop one"
            )
        return self

    def engine_spec(self) -> EngineSpec:
        """The part of the job that an engine needs."""
        sampling = {key: getattr(self.sampling, key) for key in SamplingSpec.model_fields}
        image = {key: getattr(self.image, key) for key in ImageFormatSpec.model_fields}
        return EngineSpec(
            model=self.model,
            sampling=SamplingSpec(**sampling),
            image=ImageSpec(**image, h_div_w=self.image.all_h_div_w[0]),
            policy=self.policy,
        )

    def identity(self, plan: "Plan | None" = None) -> dict[str, Any]:
        """Everything that decides what the dataset holds, flat and JSON-able.

        The same job written differently (a default spelled out, another runtime, output or prompt path) has
        the same identity; settings left to the preset count as the preset's value.

        Args:
            plan: the job's samples; they stand in for the `prompts` keys. Without it the prompts are left out.

        Returns:
            Dotted keys and their values, two of them about the plan; a key such as "model.vae (file)" stands
            for the state of a file on this machine.

        Raises:
            ModelSpecError: there is no such preset, or the architecture is impossible.
        """
        defaults = _preset_values(self.model)
        content = self.model_dump(mode="json", include={"model", "sampling", "image", "policy", "shard_size"})
        content["image"]["h_div_w"] = list(self.image.all_h_div_w)
        flat = dict(_flatten(content))
        flat |= {key: value for key, value in defaults.items() if flat.get(key) is None}
        files = {part: flat[f"model.{part}"] for part in MODEL_PARTS}
        flat["model.random_weights"] = not any(files.values())
        flat |= {f"model.{part} {FILE_MARK}": value for part, value in fingerprints(files).items()}
        if plan is not None:
            flat["prompts (number of samples)"] = plan.samples.num_rows
            flat["prompts (content)"] = plan.fingerprint
        return flat


def _preset_values(model: ModelSpec) -> dict[str, Any]:
    """What the keys that a job left to its preset amount to."""
    preset = get_preset(model.preset)
    transformer, vae = resolve_architecture(model)
    files = {
        "model.transformer": preset.transformer_file,
        "model.vae": preset.vae_file,
        "model.text_encoder": preset.text_encoder_name,
    }
    return {
        "sampling.cfg_scale": preset.cfg_scale,
        "sampling.temperature": preset.temperature,
        "image.resolution": preset.resolution,
        "model.architecture.depth": transformer.depth,
        "model.architecture.width": transformer.width,
        "model.architecture.num_heads": transformer.num_heads,
        "model.architecture.text_width": transformer.text_width,
        "model.architecture.codebook_dim": vae.codebook_dim,
        "model.architecture.spatial_patchify": vae.spatial_patchify,
        "model.architecture.vae_base_channels": vae.base_channels,
        "model.architecture.vae_channel_multipliers": list(vae.channel_multipliers),
    } | ({} if model.random_weights else files)


def differing_fields(identity_a: Mapping[str, Any], identity_b: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ between two identities, or that only one of them has, in order.

    The state of a file counts only where both know it: a machine without the weights may drive a cluster.
    """
    keys = list(dict.fromkeys([*identity_a, *identity_b]))
    absent = object()
    differing = [key for key in keys if identity_a.get(key, absent) != identity_b.get(key, absent)]
    both = identity_a.keys() & identity_b.keys()
    return [key for key in differing if key in both or not key.endswith(FILE_MARK)]


def load_job(path: str, overrides: Sequence[str] = (), *, output: str | None = None) -> JobSpec:
    """Read and check a job file.

    Relative paths of prompts and model files count from the job file's folder; in overrides they count from
    the current folder, as `output` always does.

    Args:
        path: of the YAML file, or an fsspec URL.
        overrides: `key.sub=value` each, the value read as YAML; they win over the file.
        output: stands in for the file's `output`, taken literally.

    Returns:
        The frozen job; its `output` is absolute or a URL.

    Raises:
        JobSpecError: the file or an override is wrong; names the key and the file.
    """
    data = read_job_file(path)
    folder, stem = _split(path)
    data = _expand_shorthand(data)
    _anchor_paths(data, folder)
    overridden = [_override(data, override) for override in overrides]
    insert_policy_file(data, path)
    if output is not None:
        data["output"] = output
    if isinstance(data.get("output"), str):
        data["output"] = anchor_path(data["output"], str(Path.cwd()))
    if data.get("name") is None:
        data["name"] = stem
    try:
        # Strict: the text "1e3" is no number and `yes` is no text, instead of a silent guess.
        return JobSpec.model_validate(freeze(data), strict=True)
    except ValidationError as error:
        key, sentence = explain(error, JobSpec)
        from_override = any(_within(key, name) or _within(name, key) for name in overridden)
        raise JobSpecError(f"{'--set' if from_override else path}: {sentence}") from error


def _within(key: str, group: str) -> bool:
    """Whether a dotted key is `group` or under it."""
    return f"{key}.".startswith(f"{group}.")


def _split(path: str) -> tuple[str, str]:
    """Folder and stem of a job file's path or URL."""
    if is_url(path):
        folder, _, name = path.rpartition("/")
        return folder, posixpath.splitext(name)[0]
    return str(Path(path).expanduser().absolute().parent), Path(path).stem


def _expand_shorthand(data: dict[str, Any]) -> dict[str, Any]:
    """Write `policy: name` out, so that overrides find a group; drop groups left empty, as defaults do."""
    expanded = data | {"policy": expand_policy(data.get("policy"))}
    groups = ("model", "sampling", "image", "policy", "runtime")
    return {key: value for key, value in expanded.items() if not (key in groups and value is None)}


def _override(data: dict[str, Any], override: str) -> str:
    """Apply one `--set` to `data` in place and return its dotted key."""
    keys, value = parse_override(override)
    alone: dict[str, Any] = {}
    apply_override(alone, keys, value)
    _anchor_paths(alone, str(Path.cwd()))
    for key in keys[:-1]:
        alone = alone[key]
    apply_override(data, keys, alone[keys[-1]])
    data["policy"] = expand_policy(data.get("policy"))
    if data["policy"] is None:
        del data["policy"]
    return ".".join(keys)


def _anchor_paths(data: dict[str, Any], folder: str) -> None:
    """Make the relative paths of prompts, model and policy files absolute, in place."""
    for group, key in _PATHS:
        values = data.get(group)
        path = values.get(key) if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(path, str):
            continue
        anchored = anchor_path(path, folder)
        # A text encoder may be a Hugging Face id, which looks like a relative path.
        is_id = (
            (group, key) == _TEXT_ENCODER and not path.startswith((".", "~")) and not Path(anchored).exists()
        )
        values[key] = path if is_id else anchored


def _flatten(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
