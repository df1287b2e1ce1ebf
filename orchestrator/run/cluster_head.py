"""Whether the head of a Ray cluster answers, known without asking Ray: it holds who asks for a minute, and then ends the process."""

import os
import time
from collections.abc import Callable

from .ray_probe import answers

_EVERY_S = 1.0
_SIGN_S = 0.5  # most seconds to wait for a sign of the head
_SURELY_S = 5.0  # the same before it is given up
_RAY_ENDS_S = 60.0  # Ray's own patience, unless this variable says otherwise
_RAY_ENDS = "RAY_gcs_rpc_server_reconnect_timeout_s"
_TO_END_S = 15.0  # to end a run before Ray does: with a summary and a record


class ClusterHead:
    """Asks for a sign of the head, at most once a second. Workers that are there need none for what they have.

    Args:
        address: gives that of the cluster's GCS, once Ray is there.
    """

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._asked = float("-inf")
        self._answers = True
        self._silent_since = float("inf")

    def answers(self) -> bool:
        """Whether it answered when it was asked last, a second ago at most."""
        now = time.monotonic()
        if now - self._asked > _EVERY_S:
            self._asked = now
            self._note(answers(self._address(), _SIGN_S), now)
        return self._answers

    def why_lost(self) -> str | None:
        """Say that a head has been silent for so long that Ray is about to end the process; None where it is not."""
        silent_s = 0.0 if self.answers() else time.monotonic() - self._silent_since
        if silent_s < _patience_s():
            return None
        self._note(answers(self._address(), _SURELY_S), time.monotonic())
        if self._answers:
            return None
        return f"the head of Ray at {self._address()} has not answered for {silent_s:.0f} seconds"

    def _note(self, there: bool, now: float) -> None:
        self._answers = there
        self._silent_since = float("inf") if there else min(self._silent_since, now)


def _patience_s() -> float:
    try:
        limit_s = float(os.environ.get(_RAY_ENDS, ""))
    except ValueError:
        limit_s = _RAY_ENDS_S
    return max(limit_s - _TO_END_S, limit_s / 2)
