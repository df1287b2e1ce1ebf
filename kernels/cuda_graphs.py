"""Work that is launched again and again over the same tensors, captured as CUDA graphs.

Launching a layer kernel by kernel takes the host longer than a large GPU needs to run most of them. A graph takes one launch.
"""

import time
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol

import torch

from .compile_ahead import is_noting

MOST_GRAPHS = 8192


class Replay(Protocol):
    """Runs bodies of work that depend on nothing but their key and the content of tensors that stay where they are."""

    def run(self, key: Hashable, body: Callable[[], Any]) -> Any:
        """Do the work of a body.

        Args:
            key: equal for bodies that do the same to the same tensors.
            body: the work.

        Returns:
            What the body returned, of this run; tensors in it hold until the key runs again.
        """

    def reserve(self, size: int) -> None:
        """Make room for what bodies hold while they run.

        Args:
            size: most bytes of a body.

        Raises:
            torch.OutOfMemoryError: there is no such room.
        """

    def clear(self) -> None:
        """Forget every body: the tensors are about to move."""

    def usage(self) -> dict[str, Any]:
        """What it did so far, JSON-able."""


class CudaGraphs:
    """Runs a body once as it is, which compiles and plans whatever is new, captures it the second time, and replays it then.

    All graphs share one pool of memory. So what a body makes and does not return is overwritten by other bodies. A pool
    that grew with ever larger bodies would keep a piece for each, of which no two make up a larger one. So it begins with
    one piece for the largest.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with none.

        Args:
            device: a GPU.
        """
        self._device = device
        self.clear()
        self._replays = self._runs = 0
        self._seconds = 0.0
        self._problem: str | None = None

    def clear(self) -> None:
        """Forget every graph, and give the pool's memory back."""
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._seen: set[Hashable] = set()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self._device)
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """See `Replay`."""
        if size <= self._reserved:
            return
        torch.cuda.empty_cache()  # a capture cannot take back what other work has left in PyTorch's cache

        def body() -> None:
            torch.empty(size, dtype=torch.uint8, device=self._device)[:1].zero_()  # a graph holds some work

        self._capture(("reserve", size), body)
        self._reserved = size

    def run(self, key: Hashable, body: Callable[[], Any]) -> Any:
        """See `Replay`."""
        if is_noting():  # a graph of this would lack the kernels
            return body()
        found = self._graphs.get(key)
        if found is None and key in self._seen and len(self._graphs) < MOST_GRAPHS and self._problem is None:
            found = self._capture(key, body)
        if found is None:
            self._seen.add(key)
            self._runs += 1
            return body()
        graph, result = found
        graph.replay()
        self._replays += 1
        return result

    def _capture(self, key: Hashable, body: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any] | None:
        """Capture a body, which does not run; None, with the reason kept, where it cannot be captured."""
        start = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                # Other threads of the process go on with copies of their own.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    result = body()
                except BaseException:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            warnings.warn(f"work runs without CUDA graphs from here on: {self._problem}", stacklevel=3)
            return None
        self._graphs[key] = graph, result
        self._seconds += time.perf_counter() - start
        return graph, result

    def usage(self) -> dict[str, Any]:
        """What was captured, JSON-able: graphs, their replays, runs without one, seconds of capture, and what stopped it."""
        return {
            "graphs": len(self._graphs),
            "replays": self._replays,
            "runs_without": self._runs,
            "capture_seconds": round(self._seconds, 3),
            "problem": self._problem,
        }
