"""A policy by itself: its name, its file, and how both get into a job."""

import re
from typing import Any

from pydantic import ValidationError

from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.pruning.policies.specs import PolicySpec
from toprovar_batch.worker.spec_base import FrozenSpec

from .errors import describe_value, explain
from .yaml_file import freeze, read_job_file

PROVENANCE = "provenance"
"""The key of a policy file that tells how its settings were found; it is no setting."""


_IN_JOB = re.compile(r"\bpolicy\.")


class _Policy(FrozenSpec):
    """A policy alone, checked as in a job."""

    policy: PolicySpec


def expand_policy(value: Any) -> Any:
    """Let `policy: dense` stand for `policy: {name: dense}`."""
    return {"name": value} if isinstance(value, str) else value


def insert_policy_file(data: dict[str, Any], source: str) -> None:
    """Put the settings of a policy file in the place of a job's `policy.file`; what stands beside it wins.

    Args:
        data: of the job, changed in place.
        source: names the job in errors.

    Raises:
        JobSpecError: there is no such file, its settings are wrong, or it is of another policy than the job names.
    """
    policy = data.get("policy")
    path = policy.get("file") if isinstance(policy, dict) else None
    if not isinstance(policy, dict) or path is None:
        return
    if not isinstance(path, str):
        raise JobSpecError(f"{source}: policy.file must be text, got {describe_value(path)}")
    if not path:
        raise JobSpecError(f"{source}: policy.file is empty; name a file")
    settings = _settings(path)
    _validated(settings, path)  # here, since of what is wrong after the merge nobody could tell whose it is
    beside = {key: value for key, value in policy.items() if key != "file"}
    if beside.get("name") is None:
        beside.pop("name", None)
    elif beside["name"] != settings["name"]:
        raise JobSpecError(
            f"{source}: policy.name: {beside['name']} is asked for, but {path} is of {settings['name']}; "
            "drop one of name and file"
        )
    data["policy"] = settings | beside


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
    if is_file:
        return _validated(settings, policy)
    return _validated(settings, "--policy", "; paper-2b and a policy file (.yaml) are taken as well")


def _validated(settings: dict[str, Any], source: str, more: str = "") -> PolicySpec:
    try:
        return _Policy.model_validate(freeze({"policy": settings}), strict=True).policy
    except ValidationError as error:
        _, sentence = explain(error, _Policy)
        # In a file of its own a policy's keys stand at the top.
        raise JobSpecError(f"{source}: {_IN_JOB.sub('', sentence)}{more}") from error


def _settings(path: str) -> dict[str, Any]:
    settings = read_job_file(path, "policy file")
    settings.pop(PROVENANCE, None)
    if "name" not in settings:
        lost = "; its settings stand at the top, not under policy" if "policy" in settings else ""
        raise JobSpecError(f"{path}: name is missing, such as name: toprovar{lost}")
    return settings
