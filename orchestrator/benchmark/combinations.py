"""What `bench` compares side by side, and in which order it takes turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Combination:
    """One way to generate, in the words of the command line.

    Attributes:
        policy: its name or file.
        batch: images per batch.
        backend: auto, torch or triton.
        dtype: auto, or the compute dtype by name.
    """

    policy: str
    batch: int
    backend: str = "auto"
    dtype: str = "auto"

    @property
    def model(self) -> tuple[str, str]:
        """Backend and dtype: combinations that are equal here run on the same kernels and weights."""
        return self.backend, self.dtype


def combine(
    policies: Sequence[str], batches: Sequence[int], backends: Sequence[str], dtypes: Sequence[str]
) -> list[Combination]:
    """Every combination of the options; policies change fastest, batches slowest.

    An option that is given twice is timed twice: the two show how far equal runs differ.
    """
    return [
        Combination(policy, batch, backend, dtype)
        for batch, dtype, backend, policy in product(batches, dtypes, backends, policies)
    ]


def rotation(count: int, repeat: int) -> list[int]:
    """The order of `count` combinations in a repeat: each repeat starts one further, so none is always first.

    Args:
        count: of combinations.
        repeat: counted from 0.
    """
    return [(repeat + place) % count for place in range(count)]
