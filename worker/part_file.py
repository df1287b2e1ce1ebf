"""One shard's output: a Parquet file that exists whole or not at all.

The columns of the dataset, the writer that collects rows in a file aside, and the one step that publishes it.
`docs/dataset.md` says what every column means.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from .file_aside import FileAside
from .image_statistics import STATISTIC_COLUMNS
from .storage import locate

STATS_KEY = b"toprovar"
SCHEMA_VERSION = 1
"""Counts up whenever a column of `dataset_schema` comes, goes or changes its type; each part names its own."""
CHECKSUM = "checksum"  # key of a record, over all others
ROW_GROUP_BYTES = 32 << 20  # a row group holds about this much; 32 images of 1 MB
_PAGE_CHECK_ROWS = 4  # the writer looks at its page size every so many rows: keeps pages of images near 4 MB
_NAME_BYTES = 200  # of an image's name; file systems end at 255
_PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_DEVICE_NAME = re.compile(r"con|prn|aux|nul|(?:com|lpt)\d")

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what Hugging Face reads as Image

_PROMPT_TRUNCATED, *_MEASURED = STATISTIC_COLUMNS
_SAMPLE_FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("negative_prompt", pa.string()),
)
_RESULT_FIELDS = (
    pa.field("seed", pa.int64()),
    pa.field("h_div_w", pa.float64()),
    pa.field("image", IMAGE_TYPE),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
    pa.field("status", pa.string()),
    pa.field("error", pa.string()),
    _PROMPT_TRUNCATED,
    pa.field("attempt", pa.int32()),
    pa.field("worker", pa.string()),
    pa.field("model", pa.string()),
    pa.field("policy", pa.string()),
    *_MEASURED,
)
RESULT_COLUMNS: tuple[str, ...] = tuple(field.name for field in _SAMPLE_FIELDS + _RESULT_FIELDS)
"""Every column this package writes; a pass-through column must have another name."""

_REPEATING = ("format", "status", "error", "worker", "model", "policy", "negative_prompt")


def dataset_schema(passthrough: Iterable[pa.Field]) -> pa.Schema:
    """Give the Arrow schema of a part file.

    Args:
        passthrough: columns taken over from the prompt source; they stand between prompt and results.

    Returns:
        The schema, whose metadata tells Hugging Face datasets that `image` is an Image. The types of the
        other columns need no metadata there.
    """
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    fields = [*_SAMPLE_FIELDS, *passthrough, *_RESULT_FIELDS]
    return pa.schema(fields, metadata={b"huggingface": json.dumps(features).encode()})


def image_path(sample_id: str, image_format: str) -> str:
    """Name an image after its sample, with nothing in it that a file system, shell or WebDataset could trip over.

    Different ids give different names, also where case and the form of accents do not count. An id of lower-case ASCII
    letters, digits, `_` and `-` is the name, unless it begins with a hyphen or Windows keeps it for a device. Any other
    one is changed, and gets a hash of the id.
    """
    stem = re.sub(r"[^\w-]", "_", sample_id)  # a dot would end the name of a sample of WebDataset
    stem = re.sub(r"^-", "_", stem)  # a command would take it for an option
    stem = stem.encode(errors="ignore")[:_NAME_BYTES].decode(errors="ignore") or "image"
    is_plain = _PLAIN_NAME.fullmatch(sample_id) and not _DEVICE_NAME.fullmatch(sample_id)
    if stem != sample_id or not is_plain:
        stem += f"-{hashlib.blake2b(sample_id.encode(), digest_size=6).hexdigest()}"
    return f"{stem}.{'jpg' if image_format == 'jpeg' else image_format}"


def result_rows(samples: pa.Table, results: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Join samples with their results, row by row.

    Args:
        samples: rows of the plan; gives the sample and pass-through columns, whatever their types.
        results: one mapping per sample; a column it leaves out is null.
        schema: of the dataset.
    """
    columns = [
        samples[field.name].cast(field.type)
        if field.name in samples.column_names
        else pa.array([result.get(field.name) for result in results], field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


class PartWriter:
    """Collects the rows of one shard and publishes them as one Parquet file, in one step.

    Rows go to a file aside. Leaving the `with` block without `publish` removes it. A killed process leaves at most
    a file that no reader looks at, and that a later process removes.

    Args:
        target: where the part appears: a local path or an fsspec URL.
        schema: of the rows, from `dataset_schema`.
        scratch: folder for the unfinished file. For a local target it must be on the target's file system.
            None: the system's temporary folder, for remote targets.
    """

    def __init__(self, target: str, schema: pa.Schema, scratch: str | None = None) -> None:
        self._filesystem, self._target = locate(target)
        self._schema = schema
        self._scratch = scratch
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0

    def __enter__(self) -> Self:
        leaves = _leaf_columns(self._schema)
        with ExitStack() as stack:
            self._path = stack.enter_context(FileAside(Path(self._target).name, self._scratch))
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                compression={leaf: "NONE" if leaf == "image.bytes" else "ZSTD" for leaf in leaves},
                use_dictionary=[leaf for leaf in leaves if leaf in _REPEATING],
                write_statistics=[leaf for leaf in leaves if leaf != "image.bytes"],
                write_batch_size=_PAGE_CHECK_ROWS,
                write_page_checksum=True,
            )
            self._aside = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._aside:
            if self._writer.is_open:
                self._writer.close()

    def write(self, rows: pa.Table) -> None:
        """Add rows of the writer's schema; a full row group goes to disk."""
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def publish(self, stats: Mapping[str, Any]) -> int:
        """Close the file with `stats` in its footer and make it visible under its name, see `seal` and `show`."""
        size = self.seal(stats)
        self.show()
        return size

    def seal(self, stats: Mapping[str, Any]) -> int:
        """Close the file with `stats` in its footer; nothing is visible yet.

        Args:
            stats: JSON-able record of the shard, read back by `read_stats`. The footer adds the schema version, and a
                checksum of the record.

        Returns:
            Size of the part in bytes.

        Raises:
            OSError: the file aside cannot be written.
        """
        self._flush()
        record = {**stats, "schema_version": SCHEMA_VERSION}
        record[CHECKSUM] = record_checksum(record)
        self._writer.add_key_value_metadata({STATS_KEY: json.dumps(record, ensure_ascii=False).encode()})
        self._writer.close()
        return self._path.stat().st_size

    def show(self) -> None:
        """Make a sealed part visible under its name.

        Raises:
            OSError: the target cannot be written; nothing is visible then, and another try may be made.
        """
        publish_file(self._path, self._filesystem, self._target)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


def publish_file(
    source: Path, filesystem: fsspec.AbstractFileSystem, target: str, *, replace: bool = True
) -> None:
    """Move a finished local file to its target in one step that readers see whole or not at all.

    Args:
        source: the finished file; for a local target on the same file system.
        filesystem: the target's.
        target: path within `filesystem`.
        replace: also where there is a file; without it only for local targets, on file systems with hard links.

    Raises:
        FileExistsError: there is a file, and it must not be replaced.
        OSError: the target cannot be written.
    """
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.put_file(str(source), target)  # an object appears when its upload is complete
        source.unlink()
        return
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    _sync(source)
    if replace or not _link(source, target):
        source.replace(target)
    _sync(folder)


def publish_bytes(
    content: bytes,
    filesystem: fsspec.AbstractFileSystem,
    target: str,
    scratch: str | None,
    *,
    replace: bool = True,
) -> None:
    """Write a small file the way parts are written: aside, then published in one step.

    Args:
        content: of the file.
        filesystem: the target's.
        target: path within `filesystem`.
        scratch: folder for the unfinished file, as of `PartWriter`.
        replace: as of `publish_file`.

    Raises:
        FileExistsError: there is a file, and it must not be replaced.
        OSError: the target cannot be written.
    """
    with FileAside(Path(target).name, scratch) as aside:
        aside.write_bytes(content)
        publish_file(aside, filesystem, target, replace=replace)


def read_stats(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Read the shard's record from a part's footer; empty when the file has none."""
    stats: dict[str, Any] = json.loads((metadata.metadata or {}).get(STATS_KEY, b"{}"))
    return stats


def record_checksum(record: Mapping[str, Any]) -> str:
    """Hash a shard's record, however its keys are ordered; a checksum that is in it does not count."""
    rest = {key: value for key, value in record.items() if key != CHECKSUM}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=8).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: str) -> bool:
    """Give a file a second name, never over another file; False where the file system cannot."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


@lru_cache(maxsize=4)  # the parts of a dataset share one
def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Name the Parquet leaf columns of a schema, as the writer's per-column settings want them."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    leaves = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return [leaves.column(index).path for index in range(len(leaves))]
