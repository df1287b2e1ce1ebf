"""From a job file and its overrides to the checked job."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.storage import is_url

from .errors import explain
from .policy_file import expand_policy, insert_policy_file
from .spec import JobSpec
from .yaml_file import (
    anchor_path,
    apply_override,
    freeze,
    parse_override,
    read_job_file,
)

_TEXT_ENCODER = ("model", "text_encoder")
_PROMPTS = ("prompts", "source")
_PATHS = (
    _PROMPTS,
    ("model", "transformer"),
    ("model", "vae"),
    _TEXT_ENCODER,
    ("policy", "file"),
)


def load_job(path: str, overrides: Sequence[str] = (), *, output: str | None = None) -> JobSpec:
    """Read and check a job file.

    Relative paths of prompts and model files count from the job file's folder; in overrides they count from
    the current folder, as `output` always does.

    Args:
        path: of the YAML file, or an fsspec URL.
        overrides: `key.sub=value` each, the value read as YAML; they win over the file.
        output: stands in for the file's `output`, taken literally.

    Returns:
        The frozen job; its `output` is absolute or a URL.

    Raises:
        JobSpecError: the file or an override is wrong; names the key and the file.
    """
    data = read_job_file(path)
    folder, stem = _split(path)
    data = _expand_shorthand(data)
    _anchor_paths(data, folder)
    overridden = [_override(data, override) for override in overrides]
    insert_policy_file(data, path)
    if output is not None:
        data["output"] = output
    if isinstance(data.get("output"), str):
        data["output"] = anchor_path(data["output"], str(Path.cwd()))
    if data.get("name") is None:
        data["name"] = stem
    try:
        # Strict: the text "1e3" is no number and `yes` is no text, instead of a silent guess.
        return JobSpec.model_validate(freeze(data), strict=True)
    except ValidationError as error:
        key, sentence = explain(error, JobSpec)
        from_override = any(_within(key, name) or _within(name, key) for name in overridden)
        raise JobSpecError(f"{'--set' if from_override else path}: {sentence}") from error


def _within(key: str, group: str) -> bool:
    """Whether a dotted key is `group` or under it."""
    return f"{key}.".startswith(f"{group}.")


def _split(path: str) -> tuple[str, str]:
    """Folder and stem of a job file's path or URL."""
    if is_url(path):
        folder, _, name = path.partition("?")[0].rpartition("/")
        return folder, posixpath.splitext(name)[0]
    return str(Path(path).expanduser().absolute().parent), Path(path).stem


def _expand_shorthand(data: dict[str, Any]) -> dict[str, Any]:
    """Write `policy: name` out, so that overrides find a group; drop groups left empty, as defaults do."""
    expanded = data | {"policy": expand_policy(data.get("policy"))}
    groups = ("model", "sampling", "image", "policy", "runtime")
    return {key: value for key, value in expanded.items() if not (key in groups and value is None)}


def _override(data: dict[str, Any], override: str) -> str:
    """Apply one `--set` to `data` in place and return its dotted key."""
    keys, value = parse_override(override)
    alone: dict[str, Any] = {}
    apply_override(alone, keys, value)
    _anchor_paths(alone, str(Path.cwd()))
    for key in keys[:-1]:
        alone = alone[key]
    apply_override(data, keys, alone[keys[-1]])
    data["policy"] = expand_policy(data.get("policy"))
    if data["policy"] is None:
        del data["policy"]
    return ".".join(keys)


def _anchor_paths(data: dict[str, Any], folder: str) -> None:
    """Make the relative paths of prompts, model and policy files absolute, in place."""
    for group, key in _PATHS:
        values = data.get(group)
        path = values.get(key) if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(path, str):
            continue
        if (group, key) == _PROMPTS and path == "-":  # standard input
            continue
        anchored = anchor_path(path, folder)
        # A text encoder may be a Hugging Face id, which looks like a relative path.
        is_id = (
            (group, key) == _TEXT_ENCODER and not path.startswith((".", "~")) and not Path(anchored).exists()
        )
        values[key] = path if is_id else anchored
