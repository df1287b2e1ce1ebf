"""The job: what a job file holds, checked once and frozen. `docs/job-file.md` explains every key."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from toprovar_batch.worker.pruning.policies.specs import DenseSpec, PolicySpec
from toprovar_batch.worker.resolved import ResolvedSpec, resolve
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

from .named_files import named_files
from .policy_file import expand_policy


def _refuse_nul(value: str) -> str:
    """Refuse the one character that no path can hold; every call on a file system would fail."""
    if "\0" in value:
        raise ValueError("holds a NUL character, which no path can")
    return value


Location = Annotated[NonEmpty, AfterValidator(_refuse_nul)]
AUTO_ID = "auto"
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
        """The requested ratios, also when the job gives a single one."""
        return self.h_div_w if isinstance(self.h_div_w, tuple) else (self.h_div_w,)


class RuntimeJobSpec(RuntimeSpec):
    """Where a job runs and when it gives up.

    None of it is part of the dataset's identity; `docs/job-file.md` says which keys may change how numbers are rounded.
    """

    num_workers: int | None = Field(None, ge=1, description="null: one per GPU, on CPUs a few")
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
    shard_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="samples a part file holds; null: at most 64, so that all workers get some",
    )
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

    @property
    def resolved(self) -> ResolvedSpec:
        """What the job's engines generate with, nothing left to the preset; worked out once.

        Raises:
            ModelSpecError: the model or its settings cannot be; names the field.
        """
        return resolve(self.engine_spec())
