"""Checks across the fields of a job that need neither a GPU nor any weights."""

from collections.abc import Iterator
from pathlib import Path

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.fetch import is_packaged
from toprovar_batch.worker.model_files import check_model_files
from toprovar_batch.worker.model_size import LARGEST_GPU, count_parameters, host_memory, refuse_too_large
from toprovar_batch.worker.pruning.policies.fit import check_policy
from toprovar_batch.worker.resolved import ModelFiles
from toprovar_batch.worker.storage import locate, storage_errors, what_happened

from .named_files import MODEL_PARTS
from .spec import JobSpec


def check_job(job: JobSpec) -> list[str]:
    """Check what a job says about its model, sampling, image size and policy, and that local model files exist.

    Returns:
        One line a part of the model: where it comes from.

    Raises:
        ModelSpecError: an unknown preset, an impossible architecture, a per-scale list of the wrong length, a
            guidance layer that the model lacks, a policy that does not fit the model and its scales, a missing
            local file, or a URL that no file system of this installation takes.
    """
    spec = job.resolved
    _check_protocols(spec.model.files)
    check_policy(spec.policy, spec.num_scales, spec.model.transformer.depth)
    return check_model_files(spec.model)


def check_memory(job: JobSpec, *, elsewhere: bool = False) -> list[str]:
    """Check that this machine can hold the model of a job; where it has a GPU, who loads the model asks that.

    Args:
        job: to run here.
        elsewhere: the job may still be sent to another machine, so only what no GPU holds either is refused.

    Returns:
        What a run on this machine would refuse.

    Raises:
        ModelSpecError: the model is too large; names the key.
    """
    model = job.resolved.model
    try:
        itemsize = 2 if model.dtype in {"bfloat16", "float16"} else 4
        refuse_too_large(model, itemsize, host_memory(), "this machine")
    except ModelSpecError as error:
        on_cpu = job.runtime.device == "cpu" or not _has_gpu()
        if (on_cpu and not elsewhere) or 2 * count_parameters(model) > LARGEST_GPU:
            raise
        return [str(error)] if on_cpu else []
    return []


def _has_gpu() -> bool:
    """Whether the machine has a GPU, as far as that shows without PyTorch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _check_protocols(files: ModelFiles) -> None:
    """Refuse URLs of model files for which no worker will have a file system either; asks no server."""
    for part in MODEL_PARTS:
        location: str | None = getattr(files, part)
        if location is None or is_packaged(location) or "://" not in location:
            continue
        try:
            locate(location)
        except (ImportError, ValueError) as error:
            raise ModelSpecError(f"model.{part}: {location}: {error}") from error
        except storage_errors():
            continue


def check_remote_files(files: ModelFiles) -> Iterator[str]:
    """Look for the model files that are URLs or Hugging Face ids.

    Args:
        files: of the model.

    Yields:
        One sentence for each file whose server cannot be asked: it may still be in a worker's cache.

    Raises:
        ModelSpecError: a server says that it has no such file.
    """
    for part in MODEL_PARTS:
        location: str | None = getattr(files, part)
        if location is None or is_packaged(location):
            continue
        url = location
        if "://" not in location:
            if part != "text_encoder" or location.startswith((".", "/", "~")):
                continue
            url = f"hf://{location}/config.json"
        try:
            found = _exists(url)
        except Exception as error:  # noqa: BLE001 - every file system raises errors of its own kind
            yield f"model.{part}: {location} could not be looked up ({type(error).__name__})"
            continue
        if not found:
            raise ModelSpecError(f"model.{part}: {location}: there is no such file")


def _exists(url: str) -> bool:
    """Whether a file or folder is there; raises whatever its file system does when it cannot tell."""
    filesystem, path = locate(url)
    try:
        filesystem.info(path)
    except FileNotFoundError as error:
        reason = what_happened(error)
        if reason is not error:
            raise reason from error
        return False
    return True
