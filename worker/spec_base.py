"""The base of every part of a job file."""

from pydantic import BaseModel, ConfigDict


class FrozenSpec(BaseModel):
    """Base of all specs: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
