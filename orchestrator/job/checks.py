"""Checks across the fields of a job that need neither a GPU nor any weights."""

from collections.abc import Iterator

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.fetch import is_packaged
from toprovar_batch.worker.resolved import ModelFiles
from toprovar_batch.worker.storage import locate, what_happened

from .spec import JobSpec


def check_job(job: JobSpec) -> list[str]:
    """Check what a job says about its model, sampling, image size and policy, and that local model files exist.

    Returns:
        One line a part of the model: where it comes from.

    Raises:
        ModelSpecError: an unknown preset, an impossible architecture, a per-scale list of the wrong length, a
            guidance layer that the model lacks, a policy that does not fit the model and its scales, or a missing
            local file.
    """
    spec = job.resolved
    # PyTorch takes seconds to import, and a job with a misspelled key does not get here.
    from toprovar_batch.worker.models import check_model_files  # noqa: PLC0415
    from toprovar_batch.worker.pruning.policies.build import policy_factory  # noqa: PLC0415

    policy_factory(spec.policy, spec.num_scales, spec.model.transformer.depth)
    return check_model_files(spec.model)


def check_remote_files(files: ModelFiles) -> Iterator[str]:
    """Look for the model files that are URLs or Hugging Face ids.

    Args:
        files: of the model.

    Yields:
        One sentence for each file whose server cannot be asked: it may still be in a worker's cache.

    Raises:
        ModelSpecError: a server says that it has no such file.
    """
    for part in ("transformer", "vae", "text_encoder"):
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
        except (ImportError, ValueError) as error:
            raise ModelSpecError(f"model.{part}: {location}: {error}") from error
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
