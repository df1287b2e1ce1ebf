"""What a user should know of the engines that load: a slower backend than expected, and parts that will not match."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from toprovar_batch.worker.shard_stats import Computation


class EngineWatch:
    """Finds a sentence for each thing that is worth a warning, the first time it is met.

    Args:
        published: what the images of the published parts were computed with.
    """

    def __init__(self, published: Iterable[Computation] = ()) -> None:
        self._known = list(dict.fromkeys(published))
        self._told: set[str] = set()

    def notice(self, worker: str, description: Mapping[str, Any]) -> Iterator[str]:
        """Look at the engine of a worker that has loaded.

        Args:
            worker: its name.
            description: of the engine.

        Yields:
            Sentences for the user.
        """
        fallback = description.get("backend_fallback")
        if fallback is not None and fallback not in self._told:
            self._told.add(fallback)
            yield f"Warning: worker {worker}: {fallback}"
        computation = Computation.of_engine(description)
        if computation is None:
            return
        if computation in self._known:
            return
        nearest = min((_differences(computation, known) for known in self._known), key=len, default=[])
        if nearest:
            yield (
                f"Warning: worker {worker} differs from other parts of this dataset: {', '.join(nearest)}; "
                "the same prompt and seed may give slightly different pixels"
            )
        self._known.append(computation)


def _differences(own: Computation, other: Computation) -> list[str]:
    """Name the fields that both have and that differ, with both values."""
    values = [(item.name, getattr(own, item.name), getattr(other, item.name)) for item in fields(own)]
    return [
        f"{name} {here} instead of {there}"
        for name, here, there in values
        if None not in (here, there) and here != there
    ]
