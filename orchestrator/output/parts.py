"""What the published parts say: counts from their footers, and a full check of their content."""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from toprovar_batch.worker.errors import OutputFolderError, RunFailedError
from toprovar_batch.worker.part_file import dataset_schema, read_stats
from toprovar_batch.worker.part_identity import PartOwner, check_part
from toprovar_batch.worker.part_reader import DAMAGE, UnreachableError, first_words, open_parquet
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.storage import explain_storage, storage_errors
from toprovar_batch.worker.words import counted

from .folder import PLAN_COLUMNS, OutputFolder
from .names import SAMPLES_FILE

_READERS = 32  # footers read at once: object stores answer slowly, but many at a time
_QUEUED = 64 * _READERS  # parts that wait for a reader: each takes memory, and there may be 100,000
# A file server's clients may see a new file late; after this long, in seconds, it is missing.
_LISTING_LAG_S = 60.0
_IDENTIFYING = ("sample_id", "seed")  # with the job, they decide a row
T = TypeVar("T")


@dataclass(frozen=True)
class Findings(Generic[T]):
    """What reading many parts came to, each by shard id.

    Attributes:
        good: what was read.
        damaged: why the part's content is wrong; no later reading will find it better.
        unreachable: why the storage did not give the part now: a time-out, a permission. The part may be whole.
    """

    good: dict[int, T] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    unreachable: dict[int, str] = field(default_factory=dict)


def read_footers(
    folder: OutputFolder, shard_ids: Iterable[int], num_shards: int, schema: pa.Schema | None = None
) -> Findings[ShardStats]:
    """Read the stats of published parts, without their images.

    Args:
        folder: the output; where it knows its job, parts of another job are damaged.
        shard_ids: whose parts are there.
        num_shards: of the job.
        schema: of the dataset, if it is known.

    Returns:
        The stats of those that can be read, and what is wrong with the others.
    """
    owner = PartOwner(folder.job, schema)

    def read(shard_id: int) -> ShardStats:
        with open_parquet(folder.filesystem, folder.part(shard_id, num_shards)) as part:
            if not read_stats(part.metadata):
                raise ValueError("its footer says nothing of a shard")
            return check_part(part, owner, shard_id)

    return _read_all(read, shard_ids)


@contextmanager
def open_own_part(
    folder: OutputFolder, path: str, shard_id: int | None, owner: PartOwner
) -> Iterator[pq.ParquetFile]:
    """Open a part that must be this output's, checksums on, for a reader that cannot go on without it.

    Raises:
        OutputFolderError: it is damaged, the part of another job or shard, or it cannot be read now, here or inside
            the block; names it.
    """
    with told_with_its_path(folder.shown(path), folder.url), open_parquet(folder.filesystem, path) as part:
        check_part(part, owner, shard_id)
        yield part


def damaged_sentence(path: str, reason: str) -> str:
    """Say of a part that its content is wrong; every command says it so."""
    return f"{path} is damaged: {reason}"


def repair_command(output: str) -> str:
    """The command that moves what is damaged or foreign out of an output."""
    return shlex.join(["toprovar-batch", "fsck", output, "--repair"])


def mend_sentence(output: str, what: str = "what is damaged") -> str:
    """Say what sets damaged parts right, and foreign files; every command says it so."""
    return f"{repair_command(output)} moves {what} aside, and the next submit makes what is missing"


def unreachable_sentence(path: str, reason: str) -> str:
    """Say of a part that the storage does not give it now; it may be whole."""
    return f"{path} cannot be read now: {reason}"


@contextmanager
def told_with_its_path(path: str, output: str) -> Iterator[None]:
    """Turn what reading a part raises in the block into one sentence with its path and the mend.

    Args:
        path: of the part, as a person would write it.
        output: that holds it.

    Raises:
        OutputFolderError: the part is damaged, or cannot be read now.
    """
    try:
        yield
    except UnreachableError as error:
        raise OutputFolderError(
            f"{unreachable_sentence(path, first_words(error))}; try again later"
        ) from error
    except DAMAGE as error:
        sentence = damaged_sentence(path, first_words(error))
        raise OutputFolderError(f"{sentence}; {mend_sentence(output, 'it')}") from error


def foreign_file_reasons(folder: OutputFolder, num_shards: int) -> dict[str, str]:
    """Path -> a sentence, for files that lie among the parts and are none of this job."""
    reason = "it is no part of this job, and whoever reads data/*.parquet reads it"
    return dict.fromkeys(map(folder.shown, folder.foreign_files(num_shards)), reason)


def missing_parts(folder: OutputFolder, shard_ids: Collection[int], num_shards: int) -> dict[int, str]:
    """Find shards that were published and whose part is nowhere to be seen.

    A worker may have written where only itself can see it: another mount, a local folder of the same name.

    Args:
        folder: the output.
        shard_ids: whose parts must be there.
        num_shards: of the job.

    Returns:
        Shard id -> a sentence.

    Raises:
        RunFailedError: the output cannot be listed.
    """
    patience = time.monotonic() + _LISTING_LAG_S
    try:
        while missing := set(shard_ids) - set(folder.finished(num_shards)):
            if time.monotonic() >= patience:
                break
            time.sleep(1)
    except storage_errors() as error:
        raise RunFailedError(
            f"{folder.url}: the finished parts cannot be listed: {explain_storage(error)}"
        ) from error
    return dict.fromkeys(sorted(missing), "its worker published a part that is not in the output folder")


def verify_parts(folder: OutputFolder, shard_ids: Iterable[int], num_shards: int) -> Findings[None]:
    """Read parts from end to end and compare their samples and seeds with the plan.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        Which parts read back to the last byte and hold every sample once.

    Raises:
        OutputFolderError: the plan cannot be read, so that nothing can be said about any part.
    """
    samples_of = _planned_samples(folder, num_shards)

    def verify(shard_id: int) -> None:
        planned = Counter(_rows(samples_of(shard_id)))
        found = Counter(_read_whole(folder.part(shard_id, num_shards), folder))
        if found != planned:
            raise ValueError(
                f"its {counted(found.total(), 'row is', 'rows are')} not the {counted(planned.total(), 'sample')} "
                "of its shard, with their seeds"
            )

    return _read_all(verify, shard_ids)


def read_parts(folder: OutputFolder, shard_ids: Iterable[int], num_shards: int) -> Findings[None]:
    """Read parts from end to end, where no plan tells which samples they must hold.

    Args:
        folder: the output.
        shard_ids: whose parts are there.
        num_shards: of the job.

    Returns:
        Which parts read back to the last byte and hold no sample twice.
    """

    def read(shard_id: int) -> None:
        found = Counter(sample for sample, _ in _read_whole(folder.part(shard_id, num_shards), folder))
        if found.total() > len(found):
            raise ValueError(f"it holds sample {found.most_common(1)[0][0]} more than once")

    return _read_all(read, shard_ids)


def planned_schema(folder: OutputFolder) -> pa.Schema | None:
    """The schema of the dataset, from the frozen plan; None where that cannot be read."""
    try:
        with open_parquet(folder.filesystem, folder.inside(*SAMPLES_FILE)) as plan:
            return dataset_schema(field for field in plan.schema_arrow if field.name not in PLAN_COLUMNS)
    except (UnreachableError, *DAMAGE):
        return None


def _planned_samples(folder: OutputFolder, num_shards: int) -> Callable[[int], pa.Table]:
    """Read the ids and seeds of every shard from the frozen plan, at once; gives those of a shard."""
    try:
        with open_parquet(folder.filesystem, folder.inside(*SAMPLES_FILE)) as plan:
            samples = plan.read(columns=list(_IDENTIFYING))
    except (UnreachableError, *DAMAGE) as error:
        raise OutputFolderError(
            f"{folder.url}: the plan {'/'.join(SAMPLES_FILE)} cannot be read ({first_words(error)}), so the parts "
            f"cannot be compared with it; where it is damaged, {repair_command(folder.url)} moves it aside, and the next "
            "submit writes it again"
        ) from error
    record = folder.read_job()
    # A row group may hold many shards, so the job's record tells where they end.
    shard_size: int = record["identity"].get("shard_size", 0) if record else 0
    found = -(-samples.num_rows // shard_size) if shard_size else 0
    if found != num_shards:
        raise OutputFolderError(
            f"{folder.url}: the plan {'/'.join(SAMPLES_FILE)} has {counted(found, 'shard')} and the job {num_shards}; "
            "delete it and submit the job again to have it written"
        )
    return lambda shard_id: samples.slice(shard_id * shard_size, shard_size)


def _read_whole(path: str, folder: OutputFolder) -> Iterator[tuple[str, int]]:
    """Read a part, checksums included, a row group at a time; give its sample ids with their seeds."""
    with open_parquet(folder.filesystem, path) as part:
        for group in range(part.num_row_groups):
            yield from _rows(part.read_row_group(group))


def _rows(table: pa.Table) -> Iterator[tuple[str, int]]:
    return zip(*(table[name].to_pylist() for name in _IDENTIFYING), strict=True)


def _read_all(read: Callable[[int], T], shard_ids: Iterable[int]) -> Findings[T]:
    """Call `read` for many shards at once; what is wrong with a part becomes a sentence."""
    findings: Findings[T] = Findings()

    def attempt(shard_id: int) -> None:
        try:
            findings.good[shard_id] = read(shard_id)
        except UnreachableError as error:
            findings.unreachable[shard_id] = str(error)
        except DAMAGE as error:
            findings.damaged[shard_id] = first_words(error)

    waiting = iter(shard_ids)
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(waiting, _QUEUED)):
            list(pool.map(attempt, some))
    return findings
