"""What a token gets in a layer that it does not run: the layer's change of an earlier, whole scale.

FastVAR restores each sublayer's output. The three enter the hidden state with factors that depend on the text alone,
and resizing is linear. So their sum, the change of the whole block, gives the same with a third of the memory.
"""

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.resize import resize

from .packing import LayerTokens, PackedScale


class LayerChanges:
    """For each layer and prompt, the change of the hidden state in the last whole scale that was kept."""

    def __init__(self, depth: int, num_prompts: int, dtype: torch.dtype) -> None:
        """Start with none.

        Args:
            depth: layers.
            num_prompts: B.
            dtype: of what is kept: the compute dtype, in which the updates that make up a change came.
        """
        # Of each layer: scale size -> (row of the batch -> place, changes [rows, h, w, C])
        self._kept: list[dict[tuple[int, int], tuple[dict[int, int], Tensor]]] = [{} for _ in range(depth)]
        self._num_prompts, self._dtype = num_prompts, dtype

    def keep(
        self, layer: int, size: tuple[int, int], packed: PackedScale, before: Tensor, after: Tensor
    ) -> None:
        """Keep what a layer changed in the prompts of `packed.plan.changes_of`, in place of what was kept of them.

        Args:
            layer: counted from 0.
            size: (h, w) of the scale.
            packed: of the scale.
            before: [A * N, C] float32, the layer's input.
            after: [A * N, C] float32, its output.
        """
        wanted = set(packed.plan.changes_of)
        places = [place for place, row in enumerate(packed.rows) if row % self._num_prompts in wanted]
        shape = (len(packed.rows), *size, before.shape[-1])
        if len(places) == len(packed.rows):
            change = (after - before).view(shape)
        else:
            index = packed.on_device(tuple(places))
            change = after.view(shape)[index] - before.view(shape)[index]
        kept = self._kept[layer]
        for old in list(kept):  # of prompts that are all kept anew
            if all(row % self._num_prompts in wanted for row in kept[old][0]):
                del kept[old]
        kept[size] = (
            {packed.rows[place]: index for index, place in enumerate(places)},
            change.to(self._dtype),
        )

    def restore(
        self, layer: int, size: tuple[int, int], packed: PackedScale, tokens: LayerTokens | None, x: Tensor
    ) -> None:
        """Add a layer's kept changes in place to every token of the prompts that do not run it whole.

        The tokens that do run are written over by the caller afterwards.

        Args:
            layer: counted from 0.
            size: (H, W) of the scale.
            packed: of the scale.
            tokens: what the layer runs; None: nothing.
            x: [A * N, C] float32, contiguous, the layer's input; it is changed.
        """
        rows = packed.rows
        pruned = [
            row
            for row in rows
            if tokens is None or tokens.counts[row % self._num_prompts] < packed.plan.num_tokens
        ]
        latest: dict[int, tuple[int, int]] = {}
        for old, (places, _) in self._kept[layer].items():  # later scales come later
            latest |= dict.fromkeys((row for row in pruned if row in places), old)
        states = x.view(len(rows), -1, x.shape[-1])
        for old in dict.fromkeys(latest.values()):
            places, change = self._kept[layer][old]
            of_scale = [row for row in pruned if latest.get(row) == old]
            source = packed.on_device(tuple(places[row] for row in of_scale))
            resized = _area_resize(change[source].to(x.dtype), size).flatten(1, 2)  # [rows, N, C]
            if of_scale == list(rows):
                states += resized
            else:
                target = packed.on_device(tuple(rows.index(row) for row in of_scale))
                states.index_add_(0, target, resized)


def _area_resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w, C] to [n, H, W, C], each place the mean of the area that it covers."""
    if maps.shape[1:3] == torch.Size(size):
        return maps
    return resize(maps.permute(0, 3, 1, 2), size, "area").permute(0, 2, 3, 1).contiguous()
