"""What decides the content of a dataset, as a flat record: two jobs with equal records make the same dataset."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from toprovar_batch.orchestrator.job.named_files import MODEL_PARTS
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.credentials import without_credentials
from toprovar_batch.worker.words import counted

from .model_files import fingerprints

FILE_MARK = "(file)"
_MOST_SHOWN = 5  # differing fields that a message names
_SUBSAMPLING = "image.subsampling"
_FIRST_SUBSAMPLING: Final = "4:2:0"  # of every JPEG before there was a choice, when no identity named it


def job_identity(job: JobSpec, plan: SamplePlan | None = None) -> dict[str, Any]:
    """Everything that decides what the dataset holds, flat and JSON-able.

    The same job written differently (a default spelled out, another runtime, output or prompt path) has
    the same identity; settings left to the preset count as the preset's value.

    Args:
        job: whose dataset.
        plan: the job's samples; they stand in for the `prompts` keys. Without it the prompts are left out.

    Returns:
        Dotted keys and their values, two of them about the plan; a key such as "model.vae (file)" stands
        for the state of a file on this machine.

    Raises:
        ModelSpecError: the job describes no model that can be, see `resolve`.
    """
    content = job.model_dump(mode="json", include={"model", "sampling", "image", "policy", "shard_size"})
    written_out = job.resolved.written_out.model_dump(mode="json", include={"model", "sampling", "image"})
    flat = dict(_flatten(content)) | dict(_flatten(written_out))
    flat["image.h_div_w"] = list(job.image.all_h_div_w)
    del flat[_SUBSAMPLING]
    if job.image.format == "jpeg" and job.image.jpeg_subsampling != _FIRST_SUBSAMPLING:
        flat[_SUBSAMPLING] = job.image.jpeg_subsampling
    files = {part: flat[f"model.{part}"] for part in MODEL_PARTS}
    # A renewed signature or password is no other file, and none of them may be written down.
    flat |= {f"model.{part}": without_credentials(file) for part, file in files.items() if file is not None}
    flat |= {f"model.{part} {FILE_MARK}": value for part, value in fingerprints(files).items()}
    if plan is not None:
        flat["shard_size"] = plan.shard_size
        flat["prompts (number of samples)"] = plan.num_samples
        flat["prompts (content)"] = plan.fingerprint
    return flat


def as_begun(job: JobSpec, recorded: Mapping[str, Any]) -> JobSpec:
    """The job with what it leaves open settled as in a dataset that was begun before there was a choice.

    Args:
        job: about to continue a dataset, or to be refused there.
        recorded: identity of the dataset.
    """
    jpeg = job.image.format == recorded.get("image.format") == "jpeg"
    if not jpeg or job.image.subsampling is not None or _SUBSAMPLING in recorded:
        return job
    image = job.image.model_copy(update={"subsampling": _FIRST_SUBSAMPLING})
    return job.model_copy(update={"image": image})


def differing_fields(identity_a: Mapping[str, Any], identity_b: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ between two identities, or that only one of them has, in order.

    The state of a file counts only where both know it: a machine without the weights may drive a cluster.
    """
    keys = list(dict.fromkeys([*identity_a, *identity_b]))
    absent = object()
    differing = [key for key in keys if identity_a.get(key, absent) != identity_b.get(key, absent)]
    both = identity_a.keys() & identity_b.keys()
    return [key for key in differing if key in both or not key.endswith(FILE_MARK)]


def shown_differences(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Write which fields differ between two identities, with both values, the recorded one first; empty if none do."""
    fields = differing_fields(recorded, identity)
    shown = "; ".join(
        f"{field} ({_shown(recorded, field)} there, {_shown(identity, field)} here)"
        for field in fields[:_MOST_SHOWN]
    )
    left = len(fields) - _MOST_SHOWN
    return f"{shown} and {counted(left, 'more field')}" if left > 0 else shown


def _shown(identity: Mapping[str, Any], field: str) -> str:
    """Write a value so that a person sees the difference, not a page."""
    text = json.dumps(identity[field], ensure_ascii=False) if field in identity else "nothing"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _flatten(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
