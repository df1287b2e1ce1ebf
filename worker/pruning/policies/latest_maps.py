"""Maps that rank tokens, kept until a later scale needs them at its own size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_device
from toprovar_batch.worker.pruning.statistics import resize_maps

from .base import BatchContext


class LatestMaps:
    """Of every prompt the maps of the last scale that gave any, which may differ from prompt to prompt."""

    def __init__(self, context: BatchContext) -> None:
        """Start with none.

        Args:
            context: of the batch.
        """
        self._context = context
        self._source: list[int | None] = [None] * context.num_prompts
        self._maps: dict[int, tuple[tuple[int, ...], Tensor]] = {}  # scale -> its prompts, [K, n, N]

    def update(self, scale_index: int, prompts: Sequence[int], maps: Tensor) -> None:
        """Take the maps of a scale, [K, n, N] of n prompts."""
        for prompt in prompts:
            self._source[prompt] = scale_index
        self._maps[scale_index] = (tuple(prompts), maps)
        self._maps = {scale: entry for scale, entry in self._maps.items() if scale in self._source}

    def resized(self, scale_index: int) -> Tensor:
        """[K, B, N] at the size of a scale; every prompt has maps."""
        size = self._context.schedule[scale_index]
        parts: list[Tensor] = []
        order: list[int] = []
        for source, (prompts, maps) in self._maps.items():
            places = [place for place, prompt in enumerate(prompts) if self._source[prompt] == source]
            order += [prompts[place] for place in places]
            chosen = of_prompts(maps, places)
            parts.append(resize_maps(chosen.unflatten(-1, self._context.schedule[source]), size))
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return of_prompts(joined, [order.index(prompt) for prompt in range(self._context.num_prompts)])


def of_prompts(maps: Tensor, places: Sequence[int]) -> Tensor:
    """[K, n, N] maps of some prompts, in the order given."""
    if list(places) == list(range(maps.shape[1])):
        return maps
    return maps[:, to_device(places, maps.device)]
