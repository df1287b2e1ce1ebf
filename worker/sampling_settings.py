"""How bits are drawn: guidance, temperature and what else the sampler takes, one value per scale."""

from collections.abc import Sequence
from dataclasses import dataclass

from toprovar_batch.worker.words import counted

from .errors import ModelSpecError


@dataclass(frozen=True)
class SamplingSettings:
    """How bits are drawn, resolved for one schedule: one value per scale.

    Attributes:
        cfg_scale: guidance, guided = cfg * cond + (1 - cfg) * uncond.
        temperature: divides the logits.
        top_p: makes bits certain whose unlikely value has probability <= 1 - top_p; 0 and 1: off.
        greedy: take the likelier value of every bit.
        cfg_insertion_layers: 0 guides the logits; -k guides the output of block depth - k.
    """

    cfg_scale: tuple[float, ...]
    temperature: tuple[float, ...]
    top_p: float = 0.97
    greedy: bool = False
    cfg_insertion_layers: tuple[int, ...] = (0,)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional branch at all."""
        return any(cfg != 1 for cfg in self.cfg_scale)

    @property
    def guides_logits(self) -> tuple[bool, ...]:
        """For each scale, whether the logits of both branches are needed."""
        return tuple(cfg != 1 and 0 in self.cfg_insertion_layers for cfg in self.cfg_scale)


def per_scale(value: float | Sequence[float], count: int, name: str) -> tuple[float, ...]:
    """One value for each of `count` scales.

    Raises:
        ModelSpecError: a list of another length; names the setting.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * count
    if len(value) != count:
        raise ModelSpecError(
            f"{name}: the schedule has {counted(count, 'scale')}, but {counted(len(value), 'value is', 'values are')} given"
        )
    return tuple(float(each) for each in value)
