"""A policy by itself: its name, its file, and how both get into a job."""

from typing import Any

from pydantic import ValidationError

from toprovar_batch.orchestrator.job_file import freeze, read_job_file
from toprovar_batch.orchestrator.spec_errors import describe_value, explain
from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.pruning.specs import PolicySpec
from toprovar_batch.worker.spec_base import FrozenSpec

PROVENANCE = "provenance"
"""The key of a policy file that tells how its settings were found; it is no setting."""


class _Policy(FrozenSpec):
    """A policy alone, checked as in a job."""

    policy: PolicySpec


def expand_policy(value: Any) -> Any:
    """Let `policy: dense` stand for `policy: {name: dense}`."""
    return {"name": value} if isinstance(value, str) else value


def insert_policy_file(data: dict[str, Any], source: str) -> tuple[str | None, set[str]]:
    """Put the settings of a policy file in the place of a job's `policy.file`; what stands beside it wins.

    Args:
        data: of the job, changed in place.
        source: names the job in errors.

    Returns:
        The file, and the dotted keys that came from it.

    Raises:
        JobSpecError: there is no such file, or it is of another policy than the job names.
    """
    policy = data.get("policy")
    path = policy.get("file") if isinstance(policy, dict) else None
    if not isinstance(policy, dict) or path is None:
        return None, set()
    if not isinstance(path, str):
        raise JobSpecError(f"{source}: policy.file must be text, got {describe_value(path)}")
    settings = _settings(path)
    beside = {key: value for key, value in policy.items() if key != "file"}
    name = beside.get("name", settings.get("name"))
    if name != settings.get("name"):
        raise JobSpecError(
            f"{source}: policy.name: {name} is asked for, but {path} is of {settings.get('name')}; drop one of name and file"
        )
    data["policy"] = settings | beside
    return path, {f"policy.{key}" for key in settings.keys() - beside.keys()}


def read_policy(policy: str) -> PolicySpec:
    """A policy by its name, `paper-2b` for the replay of that name, or the file (.yaml, .yml) that holds one.

    Raises:
        JobSpecError: there is no such policy or file, or its settings are wrong.
    """
    is_file = policy.endswith((".yaml", ".yml"))
    if is_file:
        settings = _settings(policy)
    else:
        settings = {"name": "replay", "preset": policy} if policy == "paper-2b" else {"name": policy}
    try:
        return _Policy.model_validate(freeze({"policy": settings}), strict=True).policy
    except ValidationError as error:
        _, sentence = explain(error, _Policy)
        raise JobSpecError(f"{policy if is_file else '--policy'}: {sentence}") from error


def _settings(path: str) -> dict[str, Any]:
    settings = read_job_file(path, "policy file")
    settings.pop(PROVENANCE, None)
    return settings
