"""Tells a guilty sample from a broken worker or node. No Ray, no files, no clock."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from .ledger import Proof, Trouble

_IN_A_ROW: dict[Trouble, int] = {"exception": 3, "death": 8}
_ANYWHERE = ""  # in place of a host, as long as nobody has made an image


@dataclass(slots=True)
class _Chain:
    """Workers in a row that failed in the same way over samples that have nothing to do with each other."""

    last: frozenset[str] = frozenset()
    length: int = 0
    shard_ids: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A place where no worker makes an image.

    Attributes:
        host: where the workers were.
        failures: of workers in a row.
        reason: the same for all of them, but for numbers in it.
        shard_ids: of their shards, whose failures say nothing about samples.
        everywhere: nobody has made an image in this run.
    """

    host: str
    failures: int
    reason: str
    shard_ids: frozenset[int]
    everywhere: bool


class Breaker:
    """Watches workers that fail before they have made a single image.

    The same exception over unrelated samples, by three such workers of a host in a row, is the fault of the place and
    not of the samples. As long as nobody at all has made an image, all hosts count as one. Deaths count only then,
    and take eight, for they may come from outside.
    """

    def __init__(self) -> None:
        self._proven: set[str] = set()
        self._chains: dict[tuple[str, str], _Chain] = {}

    def succeeded(self, worker: str) -> None:
        """Note that a worker made an image."""
        if worker in self._proven:
            return
        self._proven.add(worker)
        places = _host(worker), _ANYWHERE
        self._chains = {key: chain for key, chain in self._chains.items() if key[0] not in places}

    def proof(self, worker: str) -> Proof:
        """Who has been seen to make images: this worker, another of the run, or nobody."""
        if worker in self._proven:
            return "worker"
        return "run" if self._proven else "nobody"

    def failed(
        self, worker: str, shard_id: int, in_flight: Collection[str], trouble: Trouble, reason: str
    ) -> Quarantine | None:
        """Note that a worker was lost over a shard; gives a verdict if it is one too many."""
        if worker in self._proven or (trouble == "death" and self._proven):
            return None
        place = _host(worker) if self._proven else _ANYWHERE
        key = place, re.sub(r"\d+", "#", reason)  # sizes and addresses differ from one failure to the next
        chain = self._chains.setdefault(key, _Chain())
        samples = frozenset(in_flight) or frozenset({f"shard {shard_id}"})
        chain.length += chain.last.isdisjoint(samples)
        chain.last = samples
        chain.shard_ids.add(shard_id)
        if chain.length < _IN_A_ROW[trouble]:
            return None
        del self._chains[key]
        everywhere = place == _ANYWHERE
        return Quarantine(_host(worker), chain.length, reason, frozenset(chain.shard_ids), everywhere)


def _host(worker: str) -> str:
    return worker.rpartition(":")[0]
