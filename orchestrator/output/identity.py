"""What decides the content of a dataset, as a flat record: two jobs with equal records make the same dataset."""

from collections.abc import Iterator, Mapping
from typing import Any

from toprovar_batch.orchestrator.job.named_files import MODEL_PARTS
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.infinity.config import get_preset, resolve_architecture
from toprovar_batch.worker.specs import (
    ModelSpec,
)

from .model_files import fingerprints

FILE_MARK = "(file)"


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
        ModelSpecError: there is no such preset, or the architecture is impossible.
    """
    defaults = _preset_values(job.model)
    content = job.model_dump(mode="json", include={"model", "sampling", "image", "policy", "shard_size"})
    content["image"]["h_div_w"] = list(job.image.all_h_div_w)
    flat = dict(_flatten(content))
    flat |= {key: value for key, value in defaults.items() if flat.get(key) is None}
    files = {part: flat[f"model.{part}"] for part in MODEL_PARTS}
    flat["model.random_weights"] = not any(files.values())
    flat |= {f"model.{part} {FILE_MARK}": value for part, value in fingerprints(files).items()}
    if plan is not None:
        flat["prompts (number of samples)"] = plan.samples.num_rows
        flat["prompts (content)"] = plan.fingerprint
    return flat


def differing_fields(identity_a: Mapping[str, Any], identity_b: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ between two identities, or that only one of them has, in order.

    The state of a file counts only where both know it: a machine without the weights may drive a cluster.
    """
    keys = list(dict.fromkeys([*identity_a, *identity_b]))
    absent = object()
    differing = [key for key in keys if identity_a.get(key, absent) != identity_b.get(key, absent)]
    both = identity_a.keys() & identity_b.keys()
    return [key for key in differing if key in both or not key.endswith(FILE_MARK)]


def _preset_values(model: ModelSpec) -> dict[str, Any]:
    """What the keys that a job left to its preset amount to."""
    preset = get_preset(model.preset)
    transformer, vae = resolve_architecture(model)
    files = {
        "model.transformer": preset.transformer_file,
        "model.vae": preset.vae_file,
        "model.text_encoder": preset.text_encoder_name,
    }
    return {
        "sampling.cfg_scale": preset.cfg_scale,
        "sampling.temperature": preset.temperature,
        "image.resolution": preset.resolution,
        "model.architecture.depth": transformer.depth,
        "model.architecture.width": transformer.width,
        "model.architecture.num_heads": transformer.num_heads,
        "model.architecture.text_width": transformer.text_width,
        "model.architecture.codebook_dim": vae.codebook_dim,
        "model.architecture.spatial_patchify": vae.spatial_patchify,
        "model.architecture.vae_base_channels": vae.base_channels,
        "model.architecture.vae_channel_multipliers": list(vae.channel_multipliers),
    } | ({} if model.random_weights else files)


def _flatten(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
