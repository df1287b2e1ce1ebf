"""A model in the memory of its device, with the kernels that run it."""

import platform
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from toprovar_batch.kernels.cuda_graphs import CudaGraphs
from toprovar_batch.kernels.ops import Backend

from .model_size import host_memory, refuse_too_large
from .models import Model, build_model
from .picture_decoder import PictureDecoder
from .resolved import ResolvedModel
from .row_independence import make_rows_independent
from .runtime import backend_fallback, resolve_device, resolve_dtype, resolve_kernels
from .specs import RuntimeSpec
from .text_chunks import TextChunks
from .workspace import Workspace


@dataclass(frozen=True)
class LoadedModel:
    """A model on a device.

    Attributes:
        model: its three parts.
        device: where they are.
        dtype: compute dtype.
        backend: which kernels run, and why.
        fallback: one sentence for the user where faster kernels were expected to run and do not; else None.
        free_bytes: of the GPU's memory, with the model in it; None on a CPU.
        seconds: that loading took.
        captures: whether work may be captured in CUDA graphs.
        least_rows: see `row_independence`; None where a row's bits depend on how many there are, and on a CPU.
        rows_independent: whether products were then seen to give a row the same bits among many rows.
        decoder: of pictures, on `backend` and over the graphs of `workspace`.
        workspace: where batches run whose work is captured; None where none is.
        text_chunks: makes what the text gives to the transformer on a GPU; None on a CPU.
    """

    model: Model
    device: torch.device
    dtype: torch.dtype
    backend: Backend
    fallback: str | None
    free_bytes: int | None
    seconds: float
    decoder: PictureDecoder
    captures: bool = False
    least_rows: int | None = None
    rows_independent: bool = False
    text_chunks: TextChunks | None = None
    workspace: Workspace | None = None

    def with_backend(self, setting: str, head_dim: int) -> "LoadedModel":
        """The same model in the same memory, run by the kernels of a setting; itself where it runs by them already.

        Raises:
            ModelSpecError: kernels that cannot run on the device; says why.
        """
        backend = resolve_kernels(setting, self.device, head_dim)
        if backend.name == self.backend.name:
            return self
        workspace = _workspace(self.model, backend) if self.captures else None
        return replace(
            self,
            backend=backend,
            fallback=backend_fallback(setting, self.device, backend),
            decoder=_decoder(self.model, backend, workspace),
            workspace=workspace,
        )

    def describe(self) -> dict[str, Any]:
        """What decides the rounding and the speed, JSON-able; equal for equal models on equal devices."""
        is_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else platform.processor() or "cpu",
            "device_type": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": None if is_gpu else torch.get_num_threads(),  # a product is split over them
            "backend": self.backend.name,
            "backend_reason": self.backend.reason,
            "backend_fallback": self.fallback,
            "least_rows": self.least_rows,
            "rows_independent": self.rows_independent,
            "torch": str(torch.__version__),  # its own type would have the driver import torch
            "parameters": sum(parameter.numel() for parameter in self.model.transformer.parameters()),
        }

    def usage(self) -> dict[str, Any]:
        """What loading and running took so far, JSON-able."""
        is_gpu = self.device.type == "cuda"
        return {
            "load_seconds": round(self.seconds, 3),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if is_gpu else None,
            "cuda_graphs": None if self.workspace is None else self.workspace.usage(),
        }


def load_model(model: ResolvedModel, runtime: RuntimeSpec) -> LoadedModel:
    """Load a model onto the device that a runtime names, and see how much memory it leaves.

    Raises:
        ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
        CheckpointError: a weight file that cannot be had or does not fit.
    """
    start = time.perf_counter()
    device = resolve_device(runtime.device)
    dtype = resolve_dtype(model.dtype, device)
    refuse_too_large_for(model, device, dtype)
    # Before the weights, so that a setting that cannot be is told at once.
    backend = resolve_kernels(runtime.backend, device, model.transformer.head_dim)
    parts, free_bytes, rows, independent, chunks = build_model(model, device, dtype), None, None, False, None
    captures = device.type == "cuda" and runtime.cuda_graphs
    if device.type == "cuda":
        rows, independent = make_rows_independent(parts.transformer, backend)
        graphs = CudaGraphs(device) if captures else None
        parts.text_encoder.replay, chunks = graphs, TextChunks(parts.transformer, graphs)
        parts.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what loading left behind counts as free
        free_bytes = torch.cuda.mem_get_info(device)[0]
    fallback = backend_fallback(runtime.backend, device, backend)
    workspace = _workspace(parts, backend) if captures else None
    seconds = time.perf_counter() - start
    return LoadedModel(
        parts,
        device,
        dtype,
        backend,
        fallback,
        free_bytes,
        seconds,
        _decoder(parts, backend, workspace),
        captures,
        rows,
        independent,
        chunks,
        workspace,
    )


def refuse_too_large_for(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that the memory of a device cannot hold, before anything is built.

    Raises:
        ModelSpecError: it cannot; names the key.
    """
    if device.type == "cuda":
        refuse_too_large(model, dtype.itemsize, torch.cuda.mem_get_info(device)[1], "the GPU")
        refuse_too_large(model, 0, host_memory(), "this machine")
    else:
        refuse_too_large(model, dtype.itemsize, host_memory(), "this machine")


def _workspace(model: Model, backend: Backend) -> Workspace | None:
    """Where captured batches run: only Triton's kernels take rows that the device alone knows."""
    if backend.name != "triton":
        return None
    return Workspace(model.transformer, backend, vae=model.vae.sizes)


def _decoder(model: Model, backend: Backend, workspace: Workspace | None) -> PictureDecoder:
    return PictureDecoder(model.vae, backend, None if workspace is None else workspace.graphs)
