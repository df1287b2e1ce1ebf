"""Memory that the batches of a model use one after the other, with the graphs captured over it."""

from typing import Any

import torch
from torch import Tensor

from toprovar_batch.kernels.cuda_graphs import CudaGraphs, Replay
from toprovar_batch.kernels.flash_attention.config import queries_per_block
from toprovar_batch.kernels.ops import Backend

from .batch_memory import decoder_bytes, layer_bytes
from .infinity.config import VaeArchitecture
from .infinity.transformer import Infinity
from .static_batch import FINITE_BEHIND_TEXTS, BatchShape, StaticBatch, sizes_of


class Workspace:
    """Hands out the tensors of a batch shape, always the same ones.

    Shapes share their memory, so only the batch that was started last is whole. Memory that grows for a larger shape
    moves, which ends all graphs.

    Attributes:
        graphs: over these tensors.
    """

    def __init__(
        self,
        model: Infinity,
        backend: Backend,
        graphs: Replay | None = None,
        vae: VaeArchitecture | None = None,
    ) -> None:
        """Start without memory.

        Args:
            model: the transformer.
            backend: of the kernels.
            graphs: replay the work; None: CUDA graphs of the model's device.
            vae: whose decoder the graphs replay, too; None: there is none.
        """
        self._model, self._backend, self._vae = model, backend, vae
        self.graphs = CudaGraphs(model.device) if graphs is None else graphs
        self._flat: dict[str, Tensor] = {}
        self._batches: dict[BatchShape, StaticBatch] = {}

    @property
    def block_m(self) -> int:
        """Queries of a block of attention."""
        return queries_per_block(self._model.device, self._model.sizes.head_dim, self._model.dtype)

    def batch(self, shape: BatchShape) -> StaticBatch:
        """The tensors of a shape; `StaticBatch.start` comes next."""
        if shape not in self._batches:
            sizes, dtype = self._model.sizes, self._model.dtype
            self._grow(sizes_of(shape, sizes, dtype, self.block_m))
            widest = layer_bytes(sizes, shape.most_tokens, dtype)
            if self._vae is not None:
                widest = max(widest, decoder_bytes(self._vae, shape.schedule, dtype))
            self.graphs.reserve(widest)
            self._batches[shape] = StaticBatch(shape, self._model, self._backend, self.block_m, self._flat)
        return self._batches[shape]

    def _grow(self, wanted: dict[str, tuple[int, torch.dtype]]) -> None:
        small = [
            name
            for name, (size, _) in wanted.items()
            if name not in self._flat or len(self._flat[name]) < size
        ]
        if not small:
            return
        self._clear()
        for name in small:
            self._flat.pop(name, None)
        for name in small:
            size, dtype = wanted[name]
            make = torch.zeros if name in FINITE_BEHIND_TEXTS else torch.empty
            self._flat[name] = make(size, dtype=dtype, device=self._model.device)

    def release(self) -> None:
        """Give all memory back, as after a batch that did not fit."""
        self._clear()
        self._flat.clear()

    def _clear(self) -> None:
        if self._batches and self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # a batch that is queued still replays them
        self._batches.clear()
        self.graphs.clear()

    def usage(self) -> dict[str, Any]:
        """Bytes held, and what the graphs took; JSON-able."""
        held = sum(tensor.numel() * tensor.element_size() for tensor in self._flat.values())
        return {"bytes": held, **self.graphs.usage()}
