"""What all training stages share: a clock that drives the learning rate, and averaged weights."""

import copy
import math
import time
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class TimedCosine:
    """A learning rate over wall-clock time: a linear warm-up, then a cosine to zero at the end of the budget.

    Device time is what training here is short of, so the budget is minutes, not steps. A run that continues an
    earlier one takes its place in the whole by `start` and `stop`.
    """

    def __init__(
        self,
        peak: float,
        minutes: float,
        *,
        start: float = 0.0,
        stop: float = 1.0,
        warmup_seconds: float = 15.0,
    ) -> None:
        """Start the clock.

        Args:
            peak: largest learning rate.
            minutes: of this run.
            start: where on the whole cosine this run begins, in [0, 1].
            stop: where it ends.
            warmup_seconds: of this run.
        """
        self._peak, self._seconds, self._warmup = peak, minutes * 60, warmup_seconds
        self._start, self._stop = start, stop
        self._begin = time.monotonic()

    def restart(self) -> None:
        """Begin again, once what is compiled at the first step has been."""
        self._begin = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begin

    @property
    def fraction(self) -> float:
        """Part of this run's time that is used, at most 1."""
        return min(1.0, self.elapsed / self._seconds)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.over_at(self.elapsed)

    def over_at(self, elapsed: float) -> bool:
        """Whether the time is up after so many seconds."""
        return elapsed >= self._seconds

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return self.rate_at(self.elapsed)

    def rate_at(self, elapsed: float) -> float:
        """The learning rate after so many seconds."""
        place = self._start + (self._stop - self._start) * min(1.0, elapsed / self._seconds)
        warm = min(1.0, elapsed / self._warmup)
        return self._peak * warm * 0.5 * (1 + math.cos(math.pi * place))


class AveragedWeights(Generic[M]):
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: M, decay: float) -> None:
        """Start from the module's present weights; the module must not be compiled yet."""
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, module: M) -> None:
        """Take in the module's present weights; early updates count more."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        ours: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
