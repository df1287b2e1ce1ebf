"""The hidden state between sublayers, in float32."""

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import PackedRows
from toprovar_batch.kernels.ops import Backend, Modulation, add_and_norm, gated_add, modulated_norm


class Residual:
    """A hidden state whose last addition may be still to make, so that the norm that follows makes it in its own pass.

    It is float32 whatever the compute dtype: every sublayer adds a little to it, and bfloat16 would round each sum.
    No tensor is changed by what is done here, unless the state is to stay in its place.

    Attributes:
        layout: rows of the packed tokens.
        backend: of the additions and norms.
    """

    def __init__(self, x: Tensor, layout: PackedRows, backend: Backend, *, in_place: bool = False) -> None:
        """Start with [T, C] float32 packed by `layout`; `in_place` keeps every sum in the tensor given."""
        self.layout, self.backend = layout, backend
        self._x = x
        self._out = x if in_place else None
        self._update: Tensor | None = None
        self._gate: Tensor | None = None

    def add(self, update: Tensor, gate: Tensor | None = None) -> None:
        """Add an update [T, C] in any dtype, times the gate [R, C] float32 of each token's row."""
        self._x = self.settled()
        self._update, self._gate = update, gate

    def settled(self) -> Tensor:
        """[T, C] float32, with nothing left to add."""
        if self._update is not None:
            self._x = gated_add(
                self._x, self._update, self._gate, self.layout, out=self._out, backend=self.backend
            )
            self._update = None
        return self._x

    def replace(self, x: Tensor) -> None:
        """Go on with another hidden state of the same shape."""
        self._x, self._update = x, None

    def normed(self, modulation: Modulation, dtype: torch.dtype) -> Tensor:
        """[T, C] in `dtype`: LN(x) * scale + shift. On every backend the same whether x was settled before or not."""
        if self._update is None:
            return modulated_norm(self._x, modulation, self.layout, dtype, backend=self.backend)
        self._x, normed = add_and_norm(
            self._x,
            self._update,
            self._gate,
            modulation,
            self.layout,
            dtype,
            out=self._out,
            backend=self.backend,
        )
        self._update = None
        return normed
