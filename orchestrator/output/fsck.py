"""What is wrong in an output folder, and setting it right: what is damaged goes aside, and the next run makes it again."""

import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.file_aside import orphans
from toprovar_batch.worker.part_reader import DAMAGE, UnreachableError, first_words, open_parquet
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.storage import explain_storage, storage_errors
from toprovar_batch.worker.words import counted

from .folder import OutputFolder, locate_output
from .names import JOB_FILE, JOB_FOLDER, LOCK_FILE, SAMPLES_FILE
from .parts import planned_schema, read_footers, read_parts, verify_parts
from .place import is_read_only, refuse_read_only
from .run_lock import RunLock

REMOVED_FOLDER = (JOB_FOLDER, "removed")
_ASIDE = "fsck --repair moves it to _job/removed"
_AGAIN = f"{_ASIDE}, and the next submit makes its shard again"
_KILLED = "its process was killed before it was done"
_LATER = "leave it, and look again later"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in an output folder that should be otherwise.

    Attributes:
        kind: "damaged" (a part), "foreign", "stale" (an unfinished file), "plan", "record", or "unreachable".
        path: of the file, as a person would write it.
        reason: what is the matter with it.
        repair: what sets it right, or what did.
        is_done: whether that has been done.
    """

    kind: str
    path: str
    reason: str
    repair: str
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Examination:
    """What is in an output folder.

    Attributes:
        job: its record `_job/job.json`.
        good: what the footers of the good parts say, by shard id.
        missing: ids of the shards without a part, after what was repaired; ascending.
        findings: all that is wrong with what is there.
        has_plan: whether the samples and seeds of the parts could be compared with the plan.
        num_hopeless: error rows of the good parts that no try mends, as their prompts cannot be used; None without a plan.
    """

    job: dict[str, Any]
    good: dict[int, ShardStats]
    missing: list[int]
    findings: list[Finding]
    has_plan: bool
    num_hopeless: int | None = None


def examine(output: str, *, repair: bool = False) -> Examination:
    """Read an output folder from end to end.

    Args:
        output: local path or fsspec URL.
        repair: move what is damaged or foreign into `_job/removed`, and delete stale files. What is good stays.

    Raises:
        OutputFolderError: it is no job's output, its record is damaged, a run is writing there, it cannot be read now, or
            not be repaired where it is.
    """
    if repair:
        refuse_read_only(output)
    folder = locate_output(output)
    try:
        job = folder.need_job()
        with _locked(folder, repair=repair) as is_alone:
            return _Inspector(folder.owned_by(job), job, repair=repair).examine(sweep=is_alone)
    except storage_errors() as error:
        raise OutputFolderError(
            f"{output} cannot be read now: {explain_storage(error)}; try again later"
        ) from error


@contextmanager
def _locked(folder: OutputFolder, *, repair: bool) -> Iterator[bool]:
    """Keep runs out of a local folder; gives whether that is certain. Object storage has no locks."""
    with ExitStack() as held:
        is_alone = False
        if folder.is_local:
            try:
                lock = held.enter_context(RunLock(Path(folder.inside(*LOCK_FILE)), passing=True))
                is_alone = lock.held
            except OSError as error:
                if repair:
                    raise OutputFolderError(
                        f"{folder.url}: cannot be written: {explain_storage(error)}"
                    ) from error
        yield is_alone


class _Inspector:
    """Looks through one folder."""

    def __init__(self, folder: OutputFolder, job: dict[str, Any], *, repair: bool) -> None:
        self._folder, self._job, self._repair = folder, job, repair
        self._num_shards: int = job["num_shards"]
        self._findings: list[Finding] = []
        self._bad_prompts: Counter[int] = Counter()  # by shard

    def examine(self, *, sweep: bool) -> Examination:
        folder, num_shards = self._folder, self._num_shards
        finished = folder.finished(num_shards)
        has_plan = self._plan_is_whole()
        footers = read_footers(folder, finished, num_shards, planned_schema(folder) if has_plan else None)
        whole = (verify_parts if has_plan else read_parts)(folder, footers.good, num_shards)
        damaged, unreachable = footers.damaged | whole.damaged, footers.unreachable | whole.unreachable
        doubtful = self._doubtful(footers.good, damaged) if damaged else set()
        for shard_id, reason in sorted(damaged.items()):
            if shard_id in doubtful:
                continue
            self._found("damaged", folder.part(shard_id, num_shards), reason, _AGAIN, self._move)
        for shard_id, reason in sorted(unreachable.items()):
            self._found("unreachable", folder.part(shard_id, num_shards), reason, _LATER)
        for path in self._foreign():
            reason = "it is no part of this job, and whoever reads data/ meets it"
            self._found("foreign", path, reason, _ASIDE, self._move)
        if sweep and folder.scratch is not None:
            for leftover in sorted(Path(folder.scratch).glob("*.tmp")):
                mend = "fsck --repair deletes it, and so does the next submit"
                self._found("stale", str(leftover), _KILLED, mend, self._delete)
        # Unfinished files of a remote output are on the machines of its workers, of which this may be one.
        if not folder.is_local and not is_read_only(folder.url):
            for path in map(str, orphans(Path(tempfile.gettempdir()))):
                mend = "fsck --repair deletes it, and so does the next part on this machine"
                self._found("stale", path, _KILLED, mend, self._delete, shown=path)
        there = set(folder.finished(num_shards))
        return Examination(
            job=self._job,
            good={shard_id: footers.good[shard_id] for shard_id in whole.good},
            missing=[shard_id for shard_id in range(num_shards) if shard_id not in there],
            findings=self._findings,
            has_plan=has_plan,
            num_hopeless=sum(self._bad_prompts[shard_id] for shard_id in whole.good) if has_plan else None,
        )

    def _plan_is_whole(self) -> bool:
        """Read the plan; what is wrong with it is a finding, and a lost one is none: the next run writes it."""
        folder, path = self._folder, self._folder.inside(*SAMPLES_FILE)
        if not folder.filesystem.exists(path):
            return False
        try:
            with open_parquet(folder.filesystem, path) as plan:
                num_read = 0
                for group in range(plan.num_row_groups):
                    rows = plan.read_row_group(group)
                    self._note_bad_prompts(rows, num_read)
                    num_read += rows.num_rows
                if plan.metadata.num_rows != self._job["num_samples"]:
                    raise ValueError(
                        f"it has {counted(plan.metadata.num_rows, 'sample')} "
                        f"where the job has {self._job['num_samples']:,}"
                    )
        except UnreachableError as error:
            self._found("unreachable", path, first_words(error), _LATER)
        except DAMAGE as error:
            mend = f"{_ASIDE}, and the next submit writes it again"
            self._found("plan", path, first_words(error), mend, self._move)
        else:
            return True
        return False

    def _note_bad_prompts(self, rows: pa.Table, first: int) -> None:
        """Count the prompts that cannot be used among rows of the plan, of which `first` come before."""
        shard_size = self._job["identity"].get("shard_size")
        if not isinstance(shard_size, int) or shard_size < 1:
            return
        bad = pc.indices_nonzero(pc.is_valid(rows["prompt_error"])).to_pylist()
        self._bad_prompts.update((first + index) // shard_size for index in bad)

    def _doubtful(self, good: dict[int, ShardStats], damaged: dict[int, str]) -> set[int]:
        """Shards whose parts all name one other job, where no part names the record's: that may be what was changed."""
        if any(stats.job for stats in good.values()):
            return set()
        footers = read_footers(replace(self._folder, job=""), damaged, self._num_shards)
        others = {shard_id: stats.job for shard_id, stats in footers.good.items() if stats.job}
        if len(set(others.values())) != 1 or self._folder.job in others.values():
            return set()
        self._found(
            "record",
            self._folder.inside(*JOB_FILE),
            f"{counted(len(others), 'part names', 'parts name')} another job than it, and none this one",
            "put back a copy of it where it was changed; else delete these parts, which stay",
        )
        return set(others)

    def _foreign(self) -> list[str]:
        """All files among the parts that are none, also in folders there; readers pass over those with _ or . first."""
        folder, data = self._folder, self._folder.inside("data")
        own = {folder.part(shard_id, self._num_shards) for shard_id in folder.finished(self._num_shards)}
        found = [path for path in folder.filesystem.find(data) if path not in own]
        return sorted(
            path
            for path in found
            if not any(name.startswith((".", "_")) for name in posixpath.relpath(path, data).split("/"))
        )

    def _found(
        self,
        kind: str,
        path: str,
        reason: str,
        repair: str,
        mend: Callable[[str], str] | None = None,
        shown: str | None = None,
    ) -> None:
        """Note something, and set it right where that is wanted and `mend` can; `shown` is of a file elsewhere."""
        finding = Finding(kind, shown or self._folder.shown(path), reason, repair)
        if self._repair and mend is not None:
            try:
                finding = replace(finding, repair=mend(path), is_done=True)
            except storage_errors() as error:
                finding = replace(finding, repair=f"it cannot be removed: {explain_storage(error)}")
        self._findings.append(finding)

    def _move(self, path: str) -> str:
        """Move a file to where no reader looks, under a name that is free there; says where."""
        filesystem = self._folder.filesystem
        stem = self._folder.inside(*REMOVED_FOLDER, posixpath.basename(path))
        names = (f"{stem}.removed{f'-{number}' if number else ''}" for number in count())
        target = next(name for name in names if not filesystem.exists(name))
        if self._folder.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(path).rename(target)
        else:
            filesystem.cp_file(path, target)
            filesystem.rm_file(path)
        return f"moved to {self._folder.shown(target)}"

    @staticmethod
    def _delete(path: str) -> str:
        Path(path).unlink(missing_ok=True)
        return "deleted"
