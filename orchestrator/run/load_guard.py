"""Decides what failing to load a model means. No Ray, no files; the clock is given."""

import time
from collections.abc import Callable

_FIRST_WAIT_S, _LONGEST_WAIT_S = 30.0, 900.0


class LoadGuard:
    """Counts failures to load.

    After `max_failures` in a row one worker at a time is tried, with waits that double.

    Args:
        max_failures: failures in a row after which no worker is started at once.
        clock: gives seconds.
    """

    def __init__(self, max_failures: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._clock = max_failures, clock
        self._next_try = float("-inf")
        self.failures_in_row = 0
        self.ever_loaded = False

    def loaded(self) -> None:
        """Note that a worker is ready."""
        self.failures_in_row = 0
        self.ever_loaded = True

    def failed(self) -> None:
        """Note that a worker could not load."""
        self.failures_in_row += 1
        if self.exhausted:
            self._next_try = self._clock() + self.wait_s

    @property
    def exhausted(self) -> bool:
        """Whether loading failed so often in a row that it is tried with care, or not at all where nobody works."""
        return self.failures_in_row >= self._max_failures

    @property
    def wait_s(self) -> float:
        """Seconds from the last of so many failures to the next try."""
        doublings = min(self.failures_in_row - self._max_failures, 10)
        return min(_FIRST_WAIT_S * 2**doublings, _LONGEST_WAIT_S)

    def may_start(self, wanted: int, coming: int) -> int:
        """Say how many of the wanted workers are worth a try now, while others are being placed or loaded."""
        if not self.exhausted:
            return wanted
        return min(wanted, 1 - coming) if self._clock() >= self._next_try else 0
