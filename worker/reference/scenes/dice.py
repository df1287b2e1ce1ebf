"""Seeded choices that stay the same across Python versions: all of them come from `Random.random` alone."""

import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of random choices named by a string."""

    def __init__(self, name: str) -> None:
        self.number = Random(name).random

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all as likely."""
        return options[int(self.number() * len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """One of the options, as likely as its weight."""
        rest = self.number() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            rest -= weight
            if rest < 0.0:
                return option
        return options[-1]

    def between(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.number()

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + math.floor(self.number() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.number() < probability

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        return [options[i] for _, i in sorted((self.number(), i) for i in range(len(options)))]
