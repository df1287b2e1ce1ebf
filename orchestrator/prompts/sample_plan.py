"""The plan of a job: every sample with its id and seed, cut into shards. Pure: the same job gives the same plan."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.orchestrator.job.spec import JobSpec

from .column_types import nanoseconds_as_integers
from .ids import derived_ids
from .read import read_prompts

Array = np.ndarray[Any, Any]
_ROLES = ("prompt", "prompt_error", "sample_id", "negative_prompt", "h_div_w", "seed")
_CLIP = 60  # characters of a prompt in a message
_SHOWN = 3  # duplicates or bad rows that a message names


@dataclass(frozen=True)
class SamplePlan:
    """All samples of a job.

    Attributes:
        samples: one row per sample, in shard order: sample_id, prompt (null where it was no text),
            negative_prompt (or null), seed (int64), h_div_w (float64). Then prompt_error (null where the prompt is
            good). Then prompt_id and image_index where a prompt gives several samples. Then the columns that
            are passed through.
        shard_size: samples per shard; the last one may have fewer.
        num_prompts: rows of the prompt source.
        num_bad_prompts: those of them that become error rows.
        warnings: one sentence each, for the user.
    """

    samples: pa.Table
    shard_size: int
    num_prompts: int
    num_bad_prompts: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.samples.num_rows // self.shard_size)

    def shard(self, shard_id: int) -> pa.Table:
        """Samples of one shard, counted from 0.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard_id < self.num_shards:
            raise IndexError(f"shard {shard_id} of {self.num_shards}")
        return self.samples.slice(shard_id * self.shard_size, self.shard_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all samples, their order and their columns, the same for every pyarrow version."""
        digest = hashlib.sha256()
        for name in self.samples.column_names:
            _hash_column(digest, name, self.samples.column(name))
        return digest.hexdigest()


def plan_job(job: JobSpec) -> SamplePlan:
    """Read the prompts of a job and plan its samples; see `read_prompts` and `plan_samples`."""
    return plan_samples(job, read_prompts(job.prompts))


def plan_samples(job: JobSpec, table: pa.Table) -> SamplePlan:
    """Plan every sample of a job.

    Each prompt is repeated for every `image.h_div_w` and for every one of its images. A sample's seed is the
    first 63 bits of SHA-256 of "<job seed>/<sample id>", so it depends on nothing else. A seed from a column
    is taken as it is; further images of its prompt hash "<seed>/<image index>".

    Args:
        job: what to generate.
        table: the prompts, from `read_prompts`.

    Returns:
        The plan.

    Raises:
        ModelSpecError: there is no such preset.
    """
    ids, repeats = (
        (table.column("sample_id"), {}) if "sample_id" in table.column_names else derived_ids(table)
    )
    num_images, ratios = job.sampling.images_per_prompt, job.image.all_h_div_w
    # A requested ratio is the outer loop, so that shards and batches hold one image size where they can.
    prompt_index = np.tile(np.repeat(np.arange(table.num_rows), num_images), len(ratios))
    image_index = np.tile(np.arange(num_images, dtype=np.int32), table.num_rows * len(ratios))
    ratio = np.repeat(np.array(ratios), table.num_rows * num_images)
    several = len(prompt_index) > table.num_rows
    rows = table.append_column("prompt_id", ids).take(prompt_index) if several else table
    sample_ids = _sample_ids(rows.column("prompt_id"), image_index, ratio, job) if several else ids
    columns = {
        "sample_id": sample_ids,
        "prompt": rows.column("prompt"),
        "negative_prompt": _or_default(
            rows, "negative_prompt", job.sampling.negative_prompt or None, pa.string()
        ),
        "seed": _seeds(job.sampling.seed, sample_ids, rows, image_index),
        "h_div_w": _or_default(rows, "h_div_w", pa.array(ratio, pa.float64()), pa.float64()),
        "prompt_error": rows.column("prompt_error"),
    }
    if several:
        columns |= {"prompt_id": rows.column("prompt_id"), "image_index": pa.array(image_index)}
    columns |= {name: rows.column(name) for name in table.column_names if name not in _ROLES}
    num_bad = table.num_rows - table.column("prompt_error").null_count
    samples = pa.table(columns)
    warnings = (*_warnings(table, repeats), *_idle_negatives(job, samples))
    return SamplePlan(samples, job.shard_size, table.num_rows, num_bad, warnings)


def _sample_ids(ids: pa.ChunkedArray, image_index: Array, ratio: Array, job: JobSpec) -> pa.ChunkedArray:
    """Ids of samples whose prompt has several: `<id>-hw<h_div_w>-<image index>`, each part only where it varies.

    All ids of a job get the same number of parts without a hyphen in them, so different ids stay different.
    """
    parts = [ids]
    if len(job.image.all_h_div_w) > 1:
        parts.append(pa.array([f"hw{value!r}" for value in ratio.tolist()]))
    if job.sampling.images_per_prompt > 1:
        parts.append(pc.cast(pa.array(image_index), pa.string()))
    sample_ids = pc.binary_join_element_wise(*parts, "-")
    assert pc.count_distinct(sample_ids).as_py() == len(sample_ids)
    return sample_ids


def _or_default(rows: pa.Table, name: str, default: Any, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """A column with its nulls filled, or the default for all where there is no such column."""
    values = rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
    return values if default is None else pc.coalesce(values, default)


def _seeds(job_seed: int, sample_ids: pa.ChunkedArray, rows: pa.Table, image_index: Array) -> pa.Array:
    """Seeds, int64 from 0: hashed from job seed and sample id, or from the seed column."""
    hashed = (_hash_63(f"{job_seed}/{sample_id}") for sample_id in sample_ids.to_pylist())
    if "seed" not in rows.column_names:
        return pa.array(hashed, pa.int64())
    given = zip(rows.column("seed").to_pylist(), image_index.tolist(), hashed, strict=True)
    return pa.array(
        (
            derived if seed is None else _hash_63(f"{seed}/{index}") if index else seed
            for seed, index, derived in given
        ),
        pa.int64(),
    )


def _hash_63(text: str) -> int:
    """First 63 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _warnings(table: pa.Table, repeats: dict[str, list[int]]) -> Iterator[str]:
    """Sentences about bad rows and repeated prompts, naming the first few."""
    errors = table.column("prompt_error").to_pylist()
    bad = [index for index, error in enumerate(errors) if error is not None]
    if bad:
        named = "; ".join(f"row {index + 1}: {errors[index]}" for index in bad[:_SHOWN])
        yield f"prompts that cannot be used and become error rows: {len(bad):,} ({named}{_more(bad)})"
    again = [rows for rows in repeats.values() if errors[rows[0]] is None]
    if again:
        prompts = table.column("prompt")
        named = "; ".join(
            f"{_clip(prompts[rows[0]].as_py())!r} in rows {', '.join(str(row + 1) for row in rows[:_SHOWN])}{_more(rows)}"
            for rows in again[:_SHOWN]
        )
        yield f"repeated prompts, each copy with images of its own: {len(again):,} ({named}{_more(again)})"


def _idle_negatives(job: JobSpec, samples: pa.Table) -> Iterator[str]:
    """A sentence about negative prompts that nothing will look at."""
    count = samples.num_rows - samples.column("negative_prompt").null_count
    if count and not job.resolved.settings.guided:
        yield f"negative prompts without effect, as sampling.cfg_scale is 1 and guides nothing: {count:,}"


def _more(items: Sequence[Any]) -> str:
    """How many were not named."""
    return f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else f"{text[: _CLIP - 1]}…"


def _hash_column(digest: "hashlib._Hash", name: str, column: pa.ChunkedArray) -> None:
    """Feed a column's name, type and values; slow only for types that are rare in prompt files."""
    kind = column.type
    digest.update(f"{name}:{kind}:{len(column)}\n".encode())
    digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
    values = column.drop_null()
    if pa.types.is_string(kind):
        digest.update(pc.binary_length(values).to_numpy().tobytes())
        for text in values.to_pylist():
            digest.update(text.encode())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        digest.update(values.to_numpy().tobytes())
    else:
        digest.update(repr(values.cast(nanoseconds_as_integers(kind)).to_pylist()).encode())
