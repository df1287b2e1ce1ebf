"""What an evaluation reads from an output folder: samples with their pictures and what they were to show."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output
from toprovar_batch.orchestrator.output.parts import (
    foreign_file_reasons,
    mend_sentence,
    open_own_part,
    planned_schema,
    told_with_its_path,
)
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_identity import PartOwner
from toprovar_batch.worker.part_reader import open_parquet
from toprovar_batch.worker.reference.scenes import Wanted
from toprovar_batch.worker.reference.scoring.verdict import check_wanted
from toprovar_batch.worker.storage import explain_storage, storage_errors

NEEDED_COLUMNS: Final = ("sample_id", "prompt", "image", "status", "task", "wanted", "relation")
_SEED: Final = "seed"
_WANTED: Final = TypeAdapter(tuple[Wanted, ...])


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the dataset.

    Attributes:
        sample_id: of the row.
        prompt: its text.
        task: of the six.
        wanted: what the picture has to show.
        relation: of wanted[0] to wanted[1], or None.
        seed: that made the picture, or None where the dataset does not tell.
        content: bytes of the picture's file; None where there is no picture.
        path: of the part that holds it.
    """

    sample_id: str
    prompt: str
    task: str
    wanted: tuple[Wanted, ...]
    relation: str | None
    seed: int | None
    content: bytes | None
    path: str = ""


class EvaluationData:
    """The parts of an output folder, checked for the columns that scores need."""

    def __init__(self, output: str) -> None:
        """Open a dataset.

        Args:
            output: local path or fsspec URL.

        Raises:
            OutputFolderError: no dataset is there, it cannot be read, or it lacks a column.
        """
        self.output = output
        self._folder = locate_output(output)
        self._groups: list[tuple[str, int]] = []
        self._columns: tuple[str, ...] = NEEDED_COLUMNS
        try:
            parts, owner = _parts(self._folder)
            for path, shard_id in parts:
                with open_own_part(self._folder, path, shard_id, owner) as part:
                    self._check_columns(part.schema_arrow)
                    self._groups += [(path, group) for group in range(part.num_row_groups)]
        except storage_errors() as error:
            raise OutputFolderError(
                f"{output} cannot be read now: {explain_storage(error)}; try again later"
            ) from error
        if not self._groups:
            raise OutputFolderError(f"{output}: no dataset of a job is here (no data/*.parquet with a row)")

    def _check_columns(self, schema: pa.Schema) -> None:
        missing = [name for name in NEEDED_COLUMNS if name not in schema.names]
        if missing:
            raise OutputFolderError(
                f"{self.output}: has no column {' and no '.join(missing)}, so its pictures cannot be scored; "
                "make the dataset with jobs/geneval.yaml, whose prompts say what to expect"
            )
        if _SEED in schema.names:
            self._columns = (*NEEDED_COLUMNS, _SEED)

    @property
    def num_groups(self) -> int:
        """Row groups of all parts."""
        return len(self._groups)

    def __iter__(self) -> Iterator[list[Sample]]:
        """Read row group by row group.

        Raises:
            OutputFolderError: one cannot be read, or a row does not say what its picture has to show.
        """
        for group in range(self.num_groups):
            path = self._folder.shown(self._groups[group][0])
            yield [self._sample(row, path) for row in self._table(group, self._columns).to_pylist()]

    def sample_ids(self) -> set[str]:
        """The ids of all samples, without reading a picture.

        Raises:
            OutputFolderError: it cannot be read, or an id is there twice.
        """
        found: set[str] = set()
        for group in range(self.num_groups):
            for sample_id in self._table(group, ("sample_id",))["sample_id"].to_pylist():
                if sample_id in found:
                    raise OutputFolderError(f"{self.output}: sample {sample_id} is there twice")
                found.add(sample_id)
        return found

    def _table(self, group: int, columns: Sequence[str]) -> pa.Table:
        path, number = self._groups[group]
        filesystem = self._folder.filesystem
        with (
            told_with_its_path(self._folder.shown(path), self.output),
            open_parquet(filesystem, path) as part,
        ):
            return part.read_row_group(number, columns=list(columns))

    def _sample(self, row: dict[str, Any], path: str) -> Sample:
        try:
            wanted = read_wanted(row)
        except ValueError as error:
            raise OutputFolderError(f"{path}: sample {row['sample_id']}: {error}") from error
        good = row["status"] == "ok" and row["image"] is not None
        return Sample(
            row["sample_id"],
            row["prompt"] or "",
            row["task"],
            wanted,
            row["relation"],
            row.get(_SEED),
            row["image"]["bytes"] if good else None,
            path,
        )

    def decode(self, sample: Sample) -> Tensor:
        """The picture of a sample that has one: float32 [3, H, W], sRGB in [0, 1].

        Raises:
            OutputFolderError: the bytes are no picture.
        """
        try:
            with Image.open(io.BytesIO(sample.content or b"")) as picture:
                pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
        except (UnidentifiedImageError, OSError) as error:
            raise OutputFolderError(
                f"{sample.path} is damaged: the image of sample {sample.sample_id} is none; "
                "delete it and submit the job again"
            ) from error
        return torch.from_numpy(pixels / 255.0).permute(2, 0, 1).contiguous()


def read_wanted(row: Mapping[str, Any]) -> tuple[Wanted, ...]:
    """What the picture of a row has to show, from its columns `task`, `wanted` and `relation`.

    Raises:
        ValueError: they do not say; the message goes on from the name of the row.
    """
    try:
        wanted = _WANTED.validate_json(row["wanted"] or "")
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]["msg"]
        raise ValueError(f"its `wanted` is not a JSON list of shape, colour and count: {detail}") from error
    try:
        check_wanted(row["task"], wanted, row["relation"])
    except ValueError as error:
        raise ValueError(f"cannot be scored: {error}") from error
    return wanted


def _parts(folder: OutputFolder) -> tuple[list[tuple[str, int | None]], PartOwner]:
    """The parts of a folder with their shards, and whose they must be; a folder without a job's record has any.

    Raises:
        OutputFolderError: there are files that are no part of the folder's job.
    """
    job = folder.read_job()
    if job is None:
        return [(path, None) for path in folder.foreign_files(0)], PartOwner()
    num_shards = job["num_shards"]
    for path, reason in foreign_file_reasons(folder, num_shards).items():
        raise OutputFolderError(f"{path}: {reason}; {mend_sentence(folder.url, 'it')}")
    parts: list[tuple[str, int | None]] = [
        (folder.part(shard_id, num_shards), shard_id) for shard_id in folder.finished(num_shards)
    ]
    return parts, PartOwner(folder.owned_by(job).job, planned_schema(folder))
