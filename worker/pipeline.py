"""Batches one behind the other: while one runs on the device, the one before it is encoded and handed out.

Nothing here knows torch or Ray: a batch is begun, leaves the device, and has its results, in this order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .request import GenerationRequest, GenerationResult

BATCHES_ON_DEVICE = 2  # one that runs, and one that is queued behind it


class PendingResults(Protocol):
    """A batch that an engine has begun."""

    def wait_until_made(self) -> None:
        """Wait until the batch has left the device; its images need not be encoded by then."""

    def results(self) -> list[GenerationResult]:
        """Wait for one result per request, in order."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """This batch enters the engine as soon as the next step is asked for; `owner` is who it was added for."""

    batch: Sequence[GenerationRequest]
    owner: Any = None


@dataclass(frozen=True, slots=True)
class Finished:
    """This batch has left the engine."""

    batch: Sequence[GenerationRequest]
    results: list[GenerationResult]
    owner: Any = None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    batch: Sequence[GenerationRequest]
    pending: PendingResults
    owner: Any


class Pipeline:
    """Takes batches through an engine, one behind the other, whomever they belong to.

    At most two batches are on the device and one more waits for its encoder or for the caller. Whatever the caller does
    with a result, it does while the device works on two batches.

    Args:
        begin: of the engine.
    """

    def __init__(self, begin: Callable[[Sequence[GenerationRequest]], PendingResults]) -> None:
        self._begin = begin
        self._under_way: deque[_UnderWay] = deque()

    def add(
        self, batch: Sequence[GenerationRequest], *, overlap: bool, owner: Any = None
    ) -> Iterator[Beginning | Finished]:
        """Begin one more batch.

        Args:
            batch: what to generate together.
            overlap: whether it may begin while others are under way, and others while it is.
            owner: whose it is; comes back with its steps.

        Yields:
            `Beginning` of this batch, and `Finished` of those that had to make room for it, in their order. Without
            `overlap` all others finish before it begins, and it finishes, too.

        Raises:
            Exception: whatever the engine raises; batches that began and did not finish are lost then.
        """
        if not overlap:
            yield from self.drain()
        elif len(self._under_way) == BATCHES_ON_DEVICE:
            self._under_way[0].pending.wait_until_made()
        yield Beginning(batch, owner)
        self._under_way.append(_UnderWay(batch, self._begin(batch), owner))
        while len(self._under_way) > (BATCHES_ON_DEVICE if overlap else 0):
            yield self._finish()

    def drain(self) -> Iterator[Finished]:
        """Finish all batches that are under way, in their order.

        Raises:
            Exception: as `add`.
        """
        while self._under_way:
            yield self._finish()

    def _finish(self) -> Finished:
        oldest = self._under_way.popleft()
        return Finished(oldest.batch, oldest.pending.results(), oldest.owner)


def run_batches(
    begin: Callable[[Sequence[GenerationRequest]], PendingResults],
    batches: Iterable[Sequence[GenerationRequest]],
    *,
    overlap: bool,
) -> Iterator[Beginning | Finished]:
    """Take batches through an engine of which nobody else has any, see `Pipeline`.

    Yields:
        `Beginning` before each batch, and `Finished` of each in the same order.
    """
    pipeline = Pipeline(begin)
    for batch in batches:
        yield from pipeline.add(batch, overlap=overlap)
    yield from pipeline.drain()
