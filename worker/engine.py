"""Requests in, encoded images and their statistics out: a generator that answers for every request."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .batching import common_h_div_w, plan_batches
from .generated import PhaseTimes
from .generator import Generator
from .image_statistics import ImageStatistics
from .images import encode_images
from .request import GenerationRequest, GenerationResult


class Engine:
    """Turns batches of requests into results, whatever becomes of a request."""

    def __init__(self, generator: Generator) -> None:
        """Wrap a generator; nothing is loaded before `setup`.

        Args:
            generator: makes the pixels.
        """
        self.generator = generator
        self._batch_limit: int | None = None
        self._out_of_memory: list[dict[str, int]] = []

    def setup(self) -> None:
        """Load the model.

        Raises:
            ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
            CheckpointError: a weight file that cannot be had or does not fit.
        """
        self.generator.setup()

    def plan_batches(
        self, requests: Sequence[GenerationRequest], batch_size: int | None = None
    ) -> list[list[GenerationRequest]]:
        """Group requests by image size and cut the groups into batches.

        Args:
            requests: in any order.
            batch_size: most images of a batch; None takes the generator's own.
        """
        return plan_batches(requests, batch_size or self.generator.batch_size)

    def generate(self, batch: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Generate one batch.

        A request that cannot be generated becomes a result with status "error". Out of GPU memory the batch
        is halved, for this and all later batches, down to one image.

        Args:
            batch: any number of requests of one image size.

        Returns:
            One result per request, in order.

        Raises:
            ValueError: the requests are of several image sizes.
        """
        if batch:
            common_h_div_w(batch)
        start = time.perf_counter()
        results: dict[str, GenerationResult] = {}
        pending = []
        for request in batch:
            problem = _problem(request)
            if problem is None:
                pending.append(request)
            else:
                results[request.sample_id] = GenerationResult.failed(request.sample_id, problem)
        while pending:
            chunk = pending[: self._batch_limit]
            done = self._attempt(chunk)
            if done is None:
                continue
            results |= {result.sample_id: result for result in done}
            pending = pending[len(chunk) :]
        total_ms = 1e3 * (time.perf_counter() - start)
        return [_with_total(results[request.sample_id], total_ms) for request in batch]

    def _attempt(self, chunk: Sequence[GenerationRequest]) -> list[GenerationResult] | None:
        """Generate a chunk; None where it must be tried again with the new, halved limit."""
        try:
            return self._generate_chunk(chunk)
        except torch.OutOfMemoryError:
            self._out_of_memory.append({"batch_size": len(chunk)})
        # Only here, past the handler, are the failed attempt's tensors free.
        self.generator.release()
        if self.generator.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(chunk) > 1:
            self._batch_limit = len(chunk) // 2
            return None
        message = "out of GPU memory even alone; use a smaller resolution or a larger GPU"
        return [GenerationResult.failed(chunk[0].sample_id, message)]

    def _generate_chunk(self, batch: Sequence[GenerationRequest]) -> list[GenerationResult]:
        image_spec = self.generator.spec.image
        made = self.generator.generate(batch)
        start = time.perf_counter()
        encoded = encode_images(made.pixels, image_spec)
        made.times.encode = time.perf_counter() - start
        height, width = made.pixels.shape[1:3]
        return [
            GenerationResult(
                request.sample_id,
                "ok",
                image=image,
                width=width,
                height=height,
                format=image_spec.format,
                statistics=_with_times(statistics, made.times, len(batch)),
            )
            if finite
            else GenerationResult.failed(
                request.sample_id,
                "the model gave numbers that are not finite; check its weights and dtype",
                statistics,
            )
            for request, image, finite, statistics in zip(
                batch, encoded, made.finite, made.statistics, strict=True
            )
        ]

    def describe(self) -> dict[str, Any]:
        """What this engine is, JSON-able; equal engines have equal descriptions, see `Generator.describe`."""
        return self.generator.describe()

    def usage(self) -> dict[str, Any]:
        """What loading and running took so far, JSON-able; `batch_limit` is what memory has set, or None."""
        return {
            **self.generator.usage(),
            "out_of_memory": list(self._out_of_memory),
            "batch_limit": self._batch_limit,
        }


def _with_times(statistics: ImageStatistics, times: PhaseTimes, batch_size: int) -> ImageStatistics:
    """An image's statistics with its share of the times of its batch."""
    share = 1e3 / batch_size
    return replace(
        statistics,
        text_ms=times.text * share,
        sample_ms=times.sample * share,
        decode_ms=times.decode * share,
        encode_ms=times.encode * share,
        batch_size=batch_size,
    )


def _with_total(result: GenerationResult, total_ms: float) -> GenerationResult:
    if result.statistics is None:
        return result
    return replace(result, statistics=replace(result.statistics, total_ms=total_ms))


def _problem(request: GenerationRequest) -> str | None:
    """Why a request cannot be generated, or None."""
    if not isinstance(request.prompt, str):
        return f"the prompt is {type(request.prompt).__name__}, not text"
    if not request.prompt.strip():
        return "the prompt is empty"
    return None
