"""Starts workers where there is room for them and work, and says or ends what will not come."""

from collections.abc import Callable

from toprovar_batch.worker.errors import RunFailedError, UserError
from toprovar_batch.worker.words import counted

from .fleet import Fleet
from .ledger import ShardLedger
from .load_guard import LoadGuard
from .outcome import Outcome


class Hiring:
    """Keeps a fleet as large as there is room and work.

    Args:
        ledger: the shards to do.
        fleet: the workers.
        guard: counts failures to load.
        outcome: of the run; its last incident is the reason where no worker is left.
        say_once: tells the user a sentence on a topic, once for each topic.

    Attributes:
        places_lost: where no worker is to be started any more, for those that were there failed.
        mistake: of a place where the output is not.
    """

    def __init__(
        self,
        ledger: ShardLedger,
        fleet: Fleet,
        guard: LoadGuard,
        outcome: Outcome,
        say_once: Callable[[str, str], None],
    ) -> None:
        self._ledger, self._fleet, self._guard = ledger, fleet, guard
        self._outcome, self._say_once = outcome, say_once
        self.places_lost = 0
        self.mistake: UserError | None = None

    def hire(self) -> None:
        """Start workers while there is room for them and work that none of the coming ones will take.

        Raises:
            UserError: no place is left where the output is.
            RunFailedError: no worker is left and none will come.
        """
        for worker in self._fleet.leave_nodes():
            self._say_once(
                f"leaving {worker.node}",
                f"the node of worker {worker.name or 'that was loading'} is about to leave: what is begun there is finished, "
                "and no more is given to it",
            )
        workers = self._fleet.workers
        coming = self._fleet.in_phase("placing", "loading", "idle")
        room = self._fleet.room() - self.places_lost
        if room <= 0 and not workers:
            if self.mistake is not None:
                raise self.mistake
            raise RunFailedError(f"no worker is left that makes images: {self._last_reason()}")
        staying = sum(not worker.leaving for worker in workers)
        wanted = min(room - staying, self._ledger.num_waiting - len(coming))
        self._tell_of_starving()
        if self._guard.exhausted and not workers:
            count = counted(self._guard.failures_in_row, "worker")
            raise RunFailedError(f"{count} in a row could not load: {self._last_reason()}")
        for _ in range(self._guard.may_start(wanted, len(self._fleet.in_phase("placing", "loading")))):
            self._fleet.start_worker()

    def _tell_of_starving(self) -> None:
        """Say what all workers wait for, each time after twice as long; end the run where it will not come."""
        starving = self._fleet.starving()
        if starving is None:
            return
        if starving.for_good:
            raise RunFailedError(f"Ray on this machine has lost its node: there is no {starving.missing}")
        doubling = int(starving.waited_s).bit_length()
        self._say_once(
            f"starving {doubling}",
            f"still waiting for a {starving.missing}, for {starving.waited_s:.0f} seconds now",
        )

    def _last_reason(self) -> str:
        reason: str = self._outcome.incidents[-1]["reason"]
        return reason
