"""The hidden state of a scale in tensors that stay where they are, so that the work of each layer can be replayed."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from toprovar_batch.kernels.cuda_graphs import Replay
from toprovar_batch.kernels.layout import DeviceBlocks, KeyLengths, PackedRows, TokenLayout
from toprovar_batch.kernels.ops import AttentionInputs, Backend, attend, qk_norm_rope_append

from .infinity.kv_cache import KVCache
from .infinity.residual import Residual
from .infinity.transformer import Block, Infinity
from .pruning.packing import LayerTokens, PackedScale
from .static_batch import StaticBatch
from .static_tables import RunningLayer

T = TypeVar("T")


@dataclass
class _LayerMemory:
    """The cache as one layer sees it, whose room has been taken before."""

    cache: KVCache
    running: RunningLayer
    backend: Backend

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        q_scale: Tensor,
        rotation: Tensor,
        layout: PackedRows,
        *,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """See `SelfAttentionMemory`; rows that the device alone knows give the entropies of all."""
        running, rows = self.running, layout.num_rows
        keys, values = self.cache.room(layer, rows)
        starts = () if running.start is None else (running.start,) * rows
        q = qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, keys, values, backend=self.backend)
        seen: KeyLengths | DeviceBlocks | None = running.self_blocks
        if running.start is not None:
            assert isinstance(layout, TokenLayout)
            length = running.start + layout.row_lengths[0]
            keys, values = keys[:, :, :length], values[:, :, :length]
            seen = KeyLengths((length,) * rows, qkv.device)
        assert seen is not None
        inputs = AttentionInputs(q, keys, values, layout, seen, 1.0)
        return attend(inputs, entropy_rows=entropy_rows, backend=self.backend)


class GraphedStates:
    """What `ScaleStates` is, over the tensors of a `StaticBatch`; every step is work that can be replayed.

    Each layer leaves its last addition to the next one, in the tensors `update` and `some_update`. So what is left to add
    is known by the layer that left it.
    """

    def __init__(
        self,
        scale_index: int,
        packed: PackedScale,
        static: StaticBatch,
        model: Infinity,
        largest_map: tuple[int, int],
        graphs: Replay,
    ) -> None:
        """Start a scale, whose embedded tokens are still to be put into `static.x`.

        Args:
            scale_index: counted from 0.
            packed: of the scale.
            static: of the batch.
            model: the transformer.
            largest_map: (height, width) over which positions are spread.
            graphs: replay the work.
        """
        self._packed, self._static, self._model, self._graphs = packed, static, model, graphs
        self._rotation = static.rotation(scale_index, largest_map)
        rows = packed.num_layout_rows
        self._text = static.text if rows == static.shape.num_rows else static.text.first_rows(rows)
        self._num_tokens = len(packed.rows) * packed.plan.num_tokens
        self._x, self._update = static.x[: self._num_tokens], static.update[: self._num_tokens]
        self._scale = (static.shape, largest_map, scale_index, len(packed.rows))
        before = sum(height * width for height, width in static.shape.schedule[:scale_index])
        self._fill = lambda layers: static.tables.fill(
            layers,
            static.cache,
            static.text_lengths,
            num_tokens=packed.plan.num_tokens,
            before=before,
            running_rows=len(packed.rows),
        )
        self._left: int | None = None  # the layer that left an addition to all tokens
        # Whose tokens run, and the layer that left their addition.
        self._some: tuple[RunningLayer, int] | None = None
        self._running: dict[int, RunningLayer] = {}
        depth = model.sizes.depth
        if not any(packed.chooses_by_state(layer) for layer in range(depth)):
            tokens = ((layer, packed.layer_tokens(layer)) for layer in range(depth))
            self._running = self._fill([(layer, each) for layer, each in tokens if each is not None])

    def start(self, embed: Callable[[], Tensor]) -> None:
        """Put the embedded tokens [A * N, C] of the scale in their place."""
        if self._packed.are_first_rows:
            self._run(("embed",), lambda: self._x.copy_(embed()))
        else:
            self._x.copy_(embed())

    def _run(self, key: tuple[Hashable, ...], body: Callable[[], Any]) -> Any:
        return self._graphs.run((self._scale, *key), body)

    def advance(self, layer: int, tokens: LayerTokens, entropy_rows: Sequence[int]) -> Tensor | None:
        """Run a block on its tokens; see `Block.advance`."""
        running = self._running.get(layer) or self._fill([(layer, tokens)])[layer]
        assert running.tokens is tokens
        watched = tuple(range(max(entropy_rows) + 1)) if entropy_rows else ()
        if tokens.positions is None:
            self._put_back()
            left, self._left = self._left, layer
            state, update = self._x, self._update
            gathers = False
        else:
            assert self._static.shape.packs, "there is no room for tokens that run while others do not"
            gathers = self._some is None or self._some[0].tokens is not tokens
            if gathers:
                self._put_back()
                self._settle()
            left = None if gathers or self._some is None else self._some[1]
            self._some = running, layer
            state, update = self._static.some_x[: running.padded], self._static.some_update[: running.padded]

        def body() -> Tensor | None:
            if gathers:
                torch.index_select(self._static.x, 0, self._static.tables.positions(running), out=state)
            residual = Residual(state, running.layout, self._static.cache.backend, in_place=True)
            if left is not None:
                residual.add(update, self._gate(left))
            block = self._model.blocks[layer]
            assert isinstance(block, Block)
            return block.advance(
                residual,
                self._text.blocks[layer],
                running.text_blocks,
                self._rotation,
                _LayerMemory(self._static.cache, running, self._static.cache.backend),
                layer,
                entropy_rows=watched,
                out=update,
            )

        entropy = self._run(("layer", layer, running.key, left, gathers, watched), body)
        if entropy is None:
            return None
        return tokens.layout.of_rows(entropy[: tokens.layout.num_tokens], entropy_rows).clone()

    def _gate(self, layer: int) -> Tensor:
        """[rows, C]: what a layer's last addition is multiplied with."""
        return self._text.blocks[layer].adaln[1]

    def _put_back(self) -> None:
        """End the compact copy, if there is one."""
        if self._some is None:
            return
        (running, left), self._some = self._some, None

        def body() -> None:
            state, update = (
                tensor[: running.padded] for tensor in (self._static.some_x, self._static.some_update)
            )
            residual = Residual(state, running.layout, self._static.cache.backend, in_place=True)
            residual.add(update, self._gate(left))
            self._static.x.index_copy_(0, self._static.tables.positions(running), residual.settled())

        self._run(("put back", running.key, left), body)

    def _settle(self) -> None:
        """Make the addition that is left to all tokens."""
        if self._left is None:
            return
        left, self._left = self._left, None
        layout = self._packed.whole.layout

        def body() -> None:
            residual = Residual(self._x, layout, self._static.cache.backend, in_place=True)
            residual.add(self._update, self._gate(left))
            residual.settled()

        if self._packed.are_first_rows:
            self._run(("settle", left), body)
        else:
            body()

    def whole(self) -> Tensor:
        """[A * N, C] float32, with everything put back; what runs later changes it in place."""
        self._put_back()
        self._settle()
        return self._x

    def snapshot(self) -> Tensor:
        """[A * N, C] float32: the state as it is now, whatever comes after."""
        return self.whole().clone()

    def beside(self, tokens: LayerTokens | None) -> Tensor:
        """See `ScaleStates.beside`."""
        if tokens is None:
            return self.whole()
        self._settle()
        return self._x

    def finish(self, body: Callable[[], T], settings: Hashable) -> T:
        """Do what makes codes of the states, when every token has run in every layer and nothing is shown to a policy.

        Args:
            body: the work.
            settings: equal where it does the same.
        """
        self.whole()
        if not self._packed.are_first_rows:
            return body()
        result: T = self._run(("finish", settings), body)
        return result

    def replace(self, x: Tensor) -> None:
        """Go on with another state of all tokens."""
        self._some = self._left = None
        self._x.copy_(x)
