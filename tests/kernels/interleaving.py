"""Parts that run strictly one at a time, in an order that a seed decides; no clock has a say.

Each part is a thread, and there is one baton: a part runs from the moment it is given the baton until it hands it
back, at its next pause. Who goes next, and when a copy arrives, is drawn from the schedule's own generator. So the
same schedule gives the same interleaving on any machine under any load. A deadlock is a fact, not a lack of
patience: no part can go on and no copy is in flight.
"""

import random
import threading
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Schedule:
    """Who goes next.

    order: the indices of the parts, the most eager first; None to draw among those that can go on.
    copies: "early" copies arrive before any part goes on. "Late" ones arrive when no part can go on without them, first
        those that a part waits for. "Random" ones arrive at any time.
    """

    seed: int
    order: tuple[int, ...] | None = None
    copies: Literal["early", "late", "random"] = "random"


class Copy(NamedTuple):
    """A copy in flight: its name, the barrier it reports to, and what happens when it arrives."""

    name: str
    barrier: object
    deliver: object


class _StoppedError(BaseException):
    """Ends a part that will get no more turns."""


class Part:
    """A function that runs in turns, in a thread of its own."""

    def __init__(self, index, function, arguments):
        self.index, self.finished, self.failure = index, False, None
        self.awaited, self.can_go_on = None, lambda: True
        self.knowledge = {index: 1}  # of each part, this one too: how many steps are surely over
        self._is_stopped = False
        self._turn, self._baton_back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def _run(self, function, arguments):
        self._turn.acquire()
        try:
            if not self._is_stopped:
                function(*arguments)
        except _StoppedError:
            pass
        except BaseException as failure:  # noqa: BLE001 - raised by who gave the turn
            self.failure = failure
        self.finished = True
        self._baton_back.release()

    def take_turn(self):
        """Run until the next pause or the end; called by who holds the baton."""
        self._turn.release()
        self._baton_back.acquire()
        if self.failure:
            raise self.failure

    def pause(self, can_go_on, awaited):
        """Hand back the baton until it may be had again; called by the part itself."""
        self.can_go_on, self.awaited = can_go_on, awaited
        self._baton_back.release()
        self._turn.acquire()
        if self._is_stopped:
            raise _StoppedError

    def stop(self):
        """End the thread wherever it stands."""
        self._is_stopped = True
        if not self.finished:
            self.take_turn()
        self._thread.join()


class Interleaving:
    """Runs parts by a schedule. `trace` holds what happened: the parts that went on and the copies that arrived."""

    def __init__(self, schedule):
        self.schedule, self.trace = schedule, []
        self._random = random.Random(schedule.seed)
        self._parts, self._copies, self._copies_started = [], [], 0
        self.current = None

    def run(self, calls):
        """Run (function, arguments) of each part to its end.

        Raises:
            AssertionError: parts wait for what never comes, or a copy outlives them; or what a part raises.
        """
        self._parts = [Part(index, *call) for index, call in enumerate(calls)]
        try:
            while not all(part.finished for part in self._parts):
                self._go_on()
            assert not self._copies, "a copy is in flight when its program ends"
        finally:
            self.current = None
            for part in self._parts:
                part.stop()

    def pause(self, can_go_on, awaited):
        """Let others go first; the current part goes on at some later time at which `can_go_on()`. Returns it."""
        part = self.current
        part.pause(can_go_on, awaited)
        return part

    def start_copy(self, barrier, deliver):
        """Let `deliver()` be called when the copy arrives, which is when the schedule says so. Returns its name."""
        self._copies_started += 1
        self._copies.append(Copy(f"copy {self._copies_started}", barrier, deliver))
        return self._copies[-1].name

    def _go_on(self):
        ready = [part for part in self._parts if not part.finished and part.can_go_on()]
        assert ready or self._copies, "a barrier is never passed"
        if self._copies and self._copy_arrives(ready):
            copy = self._next_copy()
            self._copies.remove(copy)
            self.trace.append(copy.name)
            copy.deliver()
        else:
            self.current = self._next_part(ready)
            self.trace.append(f"part {self.current.index}")
            self.current.take_turn()

    def _copy_arrives(self, ready):
        if not ready or self.schedule.copies == "early":
            return True
        return self.schedule.copies == "random" and self._random.random() < 0.5

    def _next_copy(self):
        waiting = [part.awaited for part in self._parts if not part.finished]
        awaited = [copy for copy in self._copies if copy.barrier in waiting]
        is_late = self.schedule.copies == "late"
        return self._random.choice(awaited if is_late and awaited else self._copies)

    def _next_part(self, ready):
        if self.schedule.order is None:
            return self._random.choice(ready)
        return min(ready, key=lambda part: self.schedule.order.index(part.index))
