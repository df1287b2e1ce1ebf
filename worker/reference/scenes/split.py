"""Which combinations training never sees, decided by a hash so that no list has to be kept.

Three kinds of pairs are held out, about an eighth of each:

- pairs (shape, colour), which appear in no training scene;
- pairs (shape, floor), which no training scene of the one-object task shows;
- unordered pairs of shapes, which never make up a whole two-object training scene.
"""

import hashlib
from functools import cache
from typing import Final

from .vocab import COLOUR_NAMES, FLOORS, SHAPE_NAMES, SPLITS, TASK_SHAPES

HELDOUT_FRACTION: Final = 0.125
_SALT: Final = "scenes-8102"  # chosen so that every shape keeps 9 or more colours


def _is_heldout(*parts: str) -> bool:
    digest = hashlib.sha256("/".join((_SALT, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_FRACTION * 2**64


@cache
def heldout_colours(shape: str) -> frozenset[str]:
    """Colours in which training never shows `shape`."""
    return frozenset(colour for colour in COLOUR_NAMES if _is_heldout("colour", shape, colour))


@cache
def heldout_shapes(colour: str) -> tuple[str, ...]:
    """Shapes of the evaluation tasks which training never shows in `colour`."""
    return tuple(shape for shape in TASK_SHAPES if colour in heldout_colours(shape))


@cache
def heldout_floors(shape: str) -> frozenset[str]:
    """Floors on which no training scene of the one-object task shows `shape`."""
    return frozenset(floor for floor in FLOORS if _is_heldout("floor", shape, floor))


@cache
def is_heldout_pair(first: str, second: str) -> bool:
    """Whether these two different shapes, in either order, never make up a training scene of two objects."""
    return first != second and _is_heldout("pair", *sorted((first, second)))


@cache
def heldout_pairs() -> tuple[tuple[str, str], ...]:
    """The held-out (shape, colour) pairs among the shapes of the evaluation tasks."""
    return tuple(
        (shape, colour)
        for shape in TASK_SHAPES
        for colour in COLOUR_NAMES
        if colour in heldout_colours(shape)
    )


@cache
def allowed_colours(shape: str, split: str) -> tuple[str, ...]:
    """Colours in which a scene of `split` may show `shape`.

    Raises:
        ValueError: `split` is neither "train" nor "heldout".
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    hidden = heldout_colours(shape) if split == "train" else frozenset()
    return tuple(colour for colour in COLOUR_NAMES if colour not in hidden)


def seen_in_training(shape: str, colour: str) -> bool:
    """Whether training may show `shape` in `colour`."""
    return shape in SHAPE_NAMES and colour in COLOUR_NAMES and colour not in heldout_colours(shape)
