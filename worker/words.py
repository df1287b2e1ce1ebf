"""Words for people."""

import difflib
import math
from collections.abc import Iterable


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "1,000 images".

    Args:
        count: of things, from 0.
        noun: for one of them.
        plural: for several; None adds an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def with_error(value: float, error: float | None) -> str:
    """A measured value with its standard error, both to the error's second digit: "0.058 ± 0.012".

    Args:
        value: what was measured.
        error: its standard error; None or 0 where none is known.
    """
    if not error:
        return f"{value:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option spelled most like `name`, or None when none is close."""
    lowered = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None
