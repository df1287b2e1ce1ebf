"""Batches one behind the other: while one runs on the device, the one before it is encoded and handed out.

Nothing here knows torch or Ray: a batch is begun, leaves the device, and has its results, in this order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .request import GenerationRequest, GenerationResult

_ON_DEVICE = 2  # batches: one that runs, and one that is queued behind it


class PendingResults(Protocol):
    """A batch that an engine has begun."""

    def wait_until_made(self) -> None:
        """Wait until the batch has left the device; its images need not be encoded by then."""

    def results(self) -> list[GenerationResult]:
        """Wait for one result per request, in order."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """This batch enters the engine as soon as the next step is asked for."""

    batch: Sequence[GenerationRequest]


@dataclass(frozen=True, slots=True)
class Finished:
    """This batch has left the engine."""

    batch: Sequence[GenerationRequest]
    results: list[GenerationResult]


def run_batches(
    begin: Callable[[Sequence[GenerationRequest]], PendingResults],
    batches: Iterable[Sequence[GenerationRequest]],
    *,
    overlap: bool,
) -> Iterator[Beginning | Finished]:
    """Take batches through an engine.

    With `overlap` at most two batches are on the device and one more waits for its encoder or for the caller. Whatever
    the caller does with a result, it does while the device works on two batches. Without, each batch is finished
    before the next begins.

    Args:
        begin: of the engine.
        batches: in order.
        overlap: whether a batch may begin while another is under way.

    Yields:
        `Beginning` before each batch, and `Finished` of each in the same order.

    Raises:
        Exception: whatever the engine raises; batches that began and did not finish are lost then.
    """
    under_way: deque[tuple[Sequence[GenerationRequest], PendingResults]] = deque()
    for batch in batches:
        if len(under_way) == _ON_DEVICE:
            under_way[0][1].wait_until_made()
        yield Beginning(batch)
        under_way.append((batch, begin(batch)))
        while len(under_way) > (_ON_DEVICE if overlap else 0):
            yield _finish(under_way)
    while under_way:
        yield _finish(under_way)


def _finish(under_way: deque[tuple[Sequence[GenerationRequest], PendingResults]]) -> Finished:
    batch, pending = under_way.popleft()
    return Finished(batch, pending.results())
