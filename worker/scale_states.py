"""The hidden state of a scale, of which each layer takes the tokens that it runs."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout

from .infinity.kv_cache import KVCache
from .infinity.residual import Residual
from .infinity.text_context import TextContext
from .infinity.transformer import Block, Infinity
from .pruning.packing import LayerTokens

T = TypeVar("T")


class ScaleStates:
    """The states of all tokens of a scale, and a compact copy of those that run just now.

    Layers that run the same tokens one after the other go on with one compact copy. It is put back when other tokens run,
    and when the whole is asked for; so layers that share their tokens gather and scatter them once, not in every layer.
    """

    def __init__(
        self,
        x: Tensor,
        layout: TokenLayout,
        model: Infinity,
        text: TextContext,
        rotation: Tensor,
        cache: KVCache,
    ) -> None:
        """Start a scale.

        Args:
            x: [A * N, C] float32, packed by `layout`; it may be changed from here on.
            layout: of all tokens.
            model: the transformer.
            text: of the rows of the scale's layouts.
            rotation: [N, D / 2] complex64 of the scale.
            cache: of the batch.
        """
        self._all = Residual(x, layout, cache.backend)
        self._model, self._text, self._rotation, self._cache = model, text, rotation, cache
        self._some: tuple[LayerTokens, Residual] | None = None

    def whole(self) -> Tensor:
        """[A * N, C] float32, with everything put back; what runs later may change it in place."""
        if self._some is not None:
            tokens, running = self._some
            assert tokens.positions is not None
            self._all.settled().index_copy_(0, tokens.positions, running.settled())
            self._some = None
        return self._all.settled()

    def snapshot(self) -> Tensor:
        """[A * N, C] float32: the state as it is now, whatever comes after."""
        return self.whole().clone()

    def advance(self, layer: int, tokens: LayerTokens, entropy_rows: Sequence[int]) -> Tensor | None:
        """Run a block on its tokens; see `Block.advance`."""
        block = self._model.blocks[layer]
        assert isinstance(block, Block)
        return block.advance(
            self.running(tokens),
            self._text.blocks[layer],
            self._text.text_lengths,
            self._rotation,
            self._cache,
            layer,
            entropy_rows=entropy_rows,
        )

    def running(self, tokens: LayerTokens) -> Residual:
        """The states of the tokens that a layer runs; what becomes of them is theirs."""
        if tokens.positions is None:
            if self._some is not None:
                self.whole()
            return self._all  # not settled: its last addition rides on the layer's first norm
        if self._some is None or self._some[0] is not tokens:
            states = self.whole()[tokens.positions]
            self._some = tokens, Residual(states, tokens.layout, self._all.backend)
        return self._some[1]

    def beside(self, tokens: LayerTokens | None) -> Tensor:
        """[A * N, C] float32, to change the states of what does not run in place.

        Args:
            tokens: what runs and has been taken; their states here are written over when they are put back.
        """
        return self.whole() if tokens is None else self._all.settled()

    def finish(self, body: Callable[[], T], settings: Hashable) -> T:  # noqa: ARG002 - nothing is replayed
        """Do what makes codes of the states."""
        return body()

    def replace(self, x: Tensor) -> None:
        """Go on with another state of all tokens, which may be changed from here on."""
        self._some = None
        self._all.replace(x)
