"""The type of options that are numbers."""

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """Refuses what the plain one lets through: not a number, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the number; click reports what is wrong."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number; name one", param, ctx)
        return number
