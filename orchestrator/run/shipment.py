"""What a job takes along to a cluster: the package, its job file, and the prompts that are on this machine."""

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import yaml
from fsspec.implementations.local import LocalFileSystem

import toprovar_batch
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.prompts.files import find_files
from toprovar_batch.worker.errors import JobSpecError, PromptSourceError
from toprovar_batch.worker.storage import is_url

JOB_NAME = "job.yaml"
_PROMPTS = "prompts"
_MOST_BYTES = 50 << 20  # of prompts: Ray takes 100 MiB in all, and the package has 40
_ON_NODES = ("torch", "ray", "triton")  # a node has its own, which fit its driver and its cluster


def pack(job: JobSpec, folder: Path) -> None:
    """Fill an empty folder with all that the job needs on a node; it becomes the job's working directory there.

    Args:
        job: from `load_job`; its output and model files are left where they are.
        folder: exists and is empty.

    Raises:
        PromptSourceError: the prompts are on this machine, and too large to be sent or a pipe.
        JobSpecError: the output is on this machine alone, as the system's temporary folder is.
    """
    package = Path(toprovar_batch.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    # Versions are looked up by the name of the distribution, which is not installed on the node.
    about = folder / f"toprovar_batch-{toprovar_batch.__version__}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: toprovar-batch\nVersion: {toprovar_batch.__version__}\n"
    )
    record = job.model_dump(mode="json")
    record["prompts"]["source"] = _pack_prompts(job.prompts.source, folder)
    record["runtime"]["ray_address"] = None  # that of the cluster it runs in
    folder.joinpath(JOB_NAME).write_text(
        yaml.safe_dump(record, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )


def requirements(job: JobSpec) -> list[str]:
    """What the package needs on a node besides PyTorch, Triton and Ray, which a node has; as pip reads it."""
    wanted = {"s3"} if any(place.startswith("s3") for place in (job.output, job.prompts.source)) else set()
    try:
        listed = requires("toprovar-batch") or []
    except PackageNotFoundError as error:
        raise JobSpecError(
            "toprovar-batch is not installed here, so what it needs is not known; use --no-install"
        ) from error
    found = []
    for line in listed:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        name = re.split(r"[^\w-]", requirement, maxsplit=1)[0].lower()
        if name not in _ON_NODES and (extra is None or extra[1] in wanted):
            found.append(requirement)
    return found


def runtime_env(job: JobSpec, folder: Path, *, install: bool) -> dict[str, Any]:
    """The environment of the job, as Ray takes it; `install` adds what the package needs on a node."""
    environment: dict[str, Any] = {"working_dir": str(folder)}
    return environment | ({"pip": requirements(job)} if install else {})


def _pack_prompts(source: str, folder: Path) -> str:
    """Copy prompts that are on this machine; gives the source as the shipped job file names it."""
    if is_url(source) and not source.startswith(("file://", "local://")):
        return source
    files = find_files(source)
    streams = [file.label for file in files if file.is_stream]
    if streams:
        raise PromptSourceError(
            f"{streams[0]} is read on this machine only, and not sent to a cluster; name a file"
        )
    sizes = {file.path: Path(file.path).stat().st_size for file in files}
    if sum(sizes.values()) > _MOST_BYTES:
        raise PromptSourceError(
            f"{source}: {sum(sizes.values()) >> 20:,} MiB of prompts are more than the {_MOST_BYTES >> 20} MiB that are "
            "sent to a cluster; put them where its nodes can read them, such as s3://, and name that in prompts.source"
        )
    assert all(isinstance(file.filesystem, LocalFileSystem) for file in files)
    target = folder / _PROMPTS
    target.mkdir()
    # Names keep their order, in which the samples come, and need no escape where they looked like a glob.
    names = [f"{index:06d}{''.join(Path(file.path).suffixes[-2:])}" for index, file in enumerate(files)]
    for file, name in zip(files, names, strict=True):
        shutil.copyfile(file.path, target / name)
    return _PROMPTS if len(names) > 1 else f"{_PROMPTS}/{names[0]}"
