"""The plan of a job: every sample with its id and seed, cut into shards. Pure: the same job gives the same plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.orchestrator.job.spec import JobSpec

from .fingerprint import fingerprint
from .ids import DerivedIds, digests_of
from .read import read_prompts
from .shard_size import default_shard_size
from .table_spool import MOST_ROWS, TableSpool

Array = np.ndarray[Any, Any]
_ROLES = ("prompt", "prompt_error", "sample_id", "negative_prompt", "h_div_w", "seed")
_CLIP = 60  # characters of a prompt in a message
_SHOWN = 3  # duplicates or bad rows that a message names
_PIECE_BYTES = 1 << 30  # of text in rows that are made at once; a column of Arrow's strings holds 2 GiB


@dataclass(frozen=True)
class SamplePlan:
    """All samples of a job, of which few are in memory at a time where there are many.

    Attributes:
        spool: one row per sample, in shard order: sample_id, prompt (null where it was no text),
            negative_prompt (or null), seed (int64), h_div_w (float64). Then prompt_error (null where the prompt is
            good). Then prompt_id and image_index where a prompt gives several samples. Then the columns that
            are passed through.
        shard_size: samples per shard; the last one may have fewer.
        num_prompts: rows of the prompt source.
        num_bad_prompts: those of them that become error rows.
        warnings: one sentence each, for the user.
    """

    spool: TableSpool
    shard_size: int
    num_prompts: int
    num_bad_prompts: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Columns of the samples."""
        return self.spool.schema

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.spool.num_rows

    @property
    def num_bad_samples(self) -> int:
        """Number of samples of prompts that become error rows; every prompt has as many samples as the next."""
        return self.num_bad_prompts * (self.num_samples // self.num_prompts)

    @property
    def samples(self) -> pa.Table:
        """All samples in memory."""
        return self.spool.whole()

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_samples // self.shard_size)

    def shard(self, shard_id: int) -> pa.Table:
        """Samples of one shard, counted from 0.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard_id < self.num_shards:
            raise IndexError(f"shard {shard_id} of {self.num_shards}")
        return self.spool.slice(shard_id * self.shard_size, self.shard_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all samples, their order and their columns, the same for every pyarrow version."""
        return fingerprint(self.spool)


def plan_job(job: JobSpec) -> SamplePlan:
    """Read the prompts of a job and plan its samples; see `read_prompts` and `plan_samples`."""
    return plan_samples(job, read_prompts(job.prompts))


def plan_samples(job: JobSpec, prompts: TableSpool) -> SamplePlan:
    """Plan every sample of a job.

    Each prompt is repeated for every `image.h_div_w` and for every one of its images. A sample's seed is the
    first 63 bits of SHA-256 of "<job seed>/<sample id>", so it depends on nothing else. A seed from a column
    is taken as it is; further images of its prompt hash "<seed>/<image index>".

    Args:
        job: what to generate.
        prompts: from `read_prompts`.

    Returns:
        The plan.

    Raises:
        ModelSpecError: there is no such preset.
        PromptSourceError: the system's temporary folder cannot take the samples.
    """
    ids = None if "sample_id" in prompts.schema.names else DerivedIds(prompts)
    spool: TableSpool | None = None
    num_negatives = 0
    # A requested ratio is the outer loop, so that shards and batches hold one image size where they can.
    for ratio in job.image.all_h_div_w:
        start = 0
        for table in prompts.tables():
            prompt_ids = table.column("sample_id") if ids is None else ids.slice(start, table.num_rows)
            start += table.num_rows
            for samples in _samples(job, table, prompt_ids, ratio):
                spool = spool or TableSpool(samples.schema)
                spool.append(samples)
                num_negatives += samples.num_rows - samples.column("negative_prompt").null_count
    assert spool is not None  # there is a prompt at least
    bad, named = _bad_rows(prompts)
    warnings = (
        *_warnings_of_bad_rows(bad, named),
        *(_warnings_of_repeats(prompts, ids, ~bad) if ids is not None else ()),
        *_idle_negatives(job, num_negatives),
    )
    shard_size = job.shard_size or default_shard_size(spool.num_rows, job.runtime.num_workers)
    return SamplePlan(spool, shard_size, prompts.num_rows, int(bad.sum()), warnings)


def _samples(job: JobSpec, table: pa.Table, prompt_ids: pa.ChunkedArray, ratio: float) -> Iterator[pa.Table]:
    """The samples of some prompts at one ratio, a bounded number at a time."""
    num_images, ratios = job.sampling.images_per_prompt, job.image.all_h_div_w
    several = num_images > 1 or len(ratios) > 1
    at_once = _rows_at_once(table)
    for start in range(0, table.num_rows * num_images, at_once):
        sample_index = np.arange(start, min(start + at_once, table.num_rows * num_images))
        prompt_index, image_index = sample_index // num_images, (sample_index % num_images).astype(np.int32)
        rows = table.slice(start, at_once) if num_images == 1 else table.take(pa.array(prompt_index))
        ids = prompt_ids.slice(start, at_once) if num_images == 1 else prompt_ids.take(pa.array(prompt_index))
        sample_ids = _sample_ids(ids, image_index, ratio, job) if several else ids
        count = len(sample_index)
        columns = {
            "sample_id": sample_ids,
            "prompt": rows.column("prompt"),
            "negative_prompt": _or_default(
                rows, "negative_prompt", job.sampling.negative_prompt or None, pa.string()
            ),
            "seed": _seeds(job.sampling.seed, sample_ids, rows, image_index),
            "h_div_w": _or_default(rows, "h_div_w", pa.array(np.full(count, ratio)), pa.float64()),
            "prompt_error": rows.column("prompt_error"),
        }
        if several:
            columns |= {"prompt_id": ids, "image_index": pa.array(image_index)}
        columns |= {name: rows.column(name) for name in table.column_names if name not in _ROLES}
        yield pa.table(columns)


def _rows_at_once(table: pa.Table) -> int:
    """How many samples may be made of a table's prompts at once, if all were the one with the longest texts."""
    texts = [column for column in table.columns if pa.types.is_string(column.type)]
    longest = sum(pc.max(pc.binary_length(column)).as_py() or 0 for column in texts)
    return min(MOST_ROWS, max(1, _PIECE_BYTES // max(1, longest)))


def _sample_ids(ids: pa.ChunkedArray, image_index: Array, ratio: float, job: JobSpec) -> pa.ChunkedArray:
    """Ids of samples whose prompt has several: `<id>-hw<h_div_w>-<image index>`, each part only where it varies.

    All ids of a job get the same number of parts without a hyphen in them. So different ids stay different, and as
    those of prompts are, those of samples need no check.
    """
    parts = [ids]
    if len(job.image.all_h_div_w) > 1:
        parts.append(pa.scalar(f"hw{ratio!r}"))
    if job.sampling.images_per_prompt > 1:
        parts.append(pc.cast(pa.array(image_index), pa.string()))
    return pc.binary_join_element_wise(*parts, "-")


def _or_default(rows: pa.Table, name: str, default: Any, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """A column with its nulls filled, or the default for all where there is no such column."""
    values = rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
    return values if default is None else pc.coalesce(values, default)


def _seeds(job_seed: int, sample_ids: pa.ChunkedArray, rows: pa.Table, image_index: Array) -> pa.Array:
    """Seeds, int64 from 0: hashed from job seed and sample id, or from the seed column."""
    hashed = _hashes_63(pc.binary_join_element_wise(f"{job_seed}/", sample_ids, ""))
    if "seed" not in rows.column_names:
        return pa.array(hashed)
    given = rows.column("seed")
    indexes = pa.array(image_index)
    texts = pc.binary_join_element_wise(given.cast(pa.string()), indexes.cast(pa.string()), "/")
    further = pa.array(_hashes_63(pc.fill_null(texts, "")))
    return pc.coalesce(
        pc.if_else(pc.greater(indexes, 0), pc.if_else(pc.is_valid(given), further, None), given),
        pa.array(hashed),
    )


def _hashes_63(texts: pa.ChunkedArray) -> Array:
    """First 63 bits of the SHA-256 of each text, as int64."""
    return (digests_of(texts) >> 1).astype(np.int64)


def _bad_rows(prompts: TableSpool) -> tuple[Array, list[tuple[int, str]]]:
    """Which rows have an error, as booleans; and the first few of them, each with its error."""
    found: list[Array] = []
    named: list[tuple[int, str]] = []
    start = 0
    for table in prompts.tables():
        errors = table.column("prompt_error")
        found.append(errors.is_valid().to_numpy())
        wanted = np.flatnonzero(found[-1])[: _SHOWN - len(named)].tolist()
        named += [(start + index, errors[index].as_py()) for index in wanted]
        start += table.num_rows
    return np.concatenate(found), named


def _warnings_of_bad_rows(bad: Array, named: list[tuple[int, str]]) -> Iterator[str]:
    """A sentence about prompts that cannot be used, naming the first few."""
    count = int(bad.sum())
    if count:
        rows = "; ".join(f"row {index + 1}: {error}" for index, error in named)
        yield f"prompts that cannot be used and become error rows: {count:,} ({rows}{_more(count)})"


def _warnings_of_repeats(prompts: TableSpool, ids: DerivedIds, good: Array) -> Iterator[str]:
    """A sentence about repeated prompts, naming the first few."""
    count, repeats = ids.repeats(good, _SHOWN)
    if count:
        named = "; ".join(
            f"{_clip(prompts.slice(repeat.rows[0], 1)['prompt'][0].as_py())!r} in rows "
            f"{', '.join(str(row + 1) for row in repeat.rows)}{_more(repeat.count)}"
            for repeat in repeats
        )
        yield f"repeated prompts, each copy with images of its own: {count:,} ({named}{_more(count)})"


def _idle_negatives(job: JobSpec, count: int) -> Iterator[str]:
    """A sentence about negative prompts that nothing will look at."""
    if count and not job.resolved.settings.guided:
        yield f"negative prompts without effect, as sampling.cfg_scale is 1 and guides nothing: {count:,}"


def _more(count: int) -> str:
    """How many were not named."""
    return f" and {count - _SHOWN:,} more" if count > _SHOWN else ""


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else f"{text[: _CLIP - 1]}…"
