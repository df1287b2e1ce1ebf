"""Words for people."""

import difflib
from collections.abc import Iterable


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "1,000 images".

    Args:
        count: of things, from 0.
        noun: for one of them.
        plural: for several; None adds an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option spelled most like `name`, or None when none is close."""
    lowered = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None
