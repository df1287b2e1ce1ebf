"""The fixed shapes in which a GPU takes texts, so that what becomes of one never depends on the others."""

from collections import defaultdict
from collections.abc import Sequence

from .config import MAX_TEXT_TOKENS

CHUNK_ROWS = 8
_CAPACITIES = (64, 128, 256, MAX_TEXT_TOKENS)


def text_capacity(length: int) -> int:
    """Tokens that a text of some length is padded to."""
    return next(capacity for capacity in _CAPACITIES if length <= capacity)


def chunks(lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Cut texts into chunks of at most `CHUNK_ROWS` that are padded alike: (capacity, positions of the texts)."""
    groups: dict[int, list[int]] = defaultdict(list)
    for position, length in enumerate(lengths):
        groups[text_capacity(length)].append(position)
    return [
        (capacity, group[first : first + CHUNK_ROWS])
        for capacity, group in groups.items()
        for first in range(0, len(group), CHUNK_ROWS)
    ]
