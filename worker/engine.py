"""Requests in, encoded images and their statistics out: a generator that answers for every request."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from .arrivals import ByteCount
from .batching import common_h_div_w, cut_equally, plan_batches
from .device_memory import told_from_others
from .generated import GeneratedBatch, PhaseTimes
from .generator import Generator
from .image_statistics import ImageStatistics
from .images import encode_images, encoding_threads
from .models import fetch_model
from .pending import PendingBatch
from .request import GenerationRequest, GenerationResult

_TOO_LARGE = "out of GPU memory even alone; use a smaller resolution or a larger GPU"


class EngineBatch:
    """A batch under way: on the device, at the encoders, or done."""

    def __init__(self, made: Sequence[PendingBatch], results: Future[list[GenerationResult]]) -> None:
        """Remember what to wait for.

        Args:
            made: all that was queued for the batch.
            results: of the batch, in order.
        """
        self._made, self._results = made, results

    def wait_until_made(self) -> None:
        """Wait until the batch has left the device; its images need not be encoded by then."""
        for each in self._made:
            each.wait()

    def results(self) -> list[GenerationResult]:
        """Wait for one result per request, in order.

        Raises:
            Exception: whatever went wrong on the device or at the encoders.
        """
        return self._results.result()


class Engine:
    """Turns batches of requests into results, whatever becomes of a request."""

    def __init__(self, generator: Generator) -> None:
        """Wrap a generator; nothing is loaded before `setup`.

        Args:
            generator: makes the pixels.
        """
        self.generator = generator
        # Its one thread finishes batches in their order; it waits for the device and for the encoders.
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._encoders = encoding_threads()
        self._batch_limit: int | None = None
        self._out_of_memory: list[dict[str, int]] = []
        self._flat_batches = 0

    def fetch(self, count: ByteCount) -> None:
        """Bring the model's files to this machine, and count the bytes that arrive.

        Raises:
            CheckpointError: a file cannot be had; names it.
        """
        fetch_model(self.generator.spec.model.files, count)

    def setup(self) -> None:
        """Load the model.

        Raises:
            ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
            CheckpointError: a weight file that cannot be had or does not fit.
            DeviceFullError: other processes hold the GPU's memory.
        """
        torch.cuda.empty_cache()  # of an earlier try
        with told_from_others():
            self.generator.setup()

    def plan_batches(
        self, requests: Sequence[GenerationRequest], batch_size: int | None = None
    ) -> list[list[GenerationRequest]]:
        """Group requests by image size and cut the groups into batches.

        Args:
            requests: in any order.
            batch_size: most images of a batch; None takes the generator's own for their size. There are no more than the
                memory was found to hold.
        """

        def most(h_div_w: float) -> int:
            wanted = batch_size or self.generator.batch_size_of(h_div_w)
            return min(wanted, self._batch_limit or wanted)

        return plan_batches(requests, most)

    def generate(self, batch: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Generate one batch and wait for its results, see `begin`."""
        return self.begin(batch).results()

    def begin(self, batch: Sequence[GenerationRequest]) -> "EngineBatch":
        """Queue one batch on the device; its images are encoded by threads as soon as they are made.

        A request that cannot be generated becomes a result with status "error". Out of GPU memory the batch
        is halved, for this and all later batches, down to one image.

        Args:
            batch: any number of requests of one image size.

        Returns:
            The batch under way. Its results come in the order of the requests, and batches finish in the order in which
            they began.

        Raises:
            ValueError: the requests are of several image sizes.
        """
        if batch:
            common_h_div_w(batch)
        start = time.perf_counter()
        failed, sound = [], []
        for request in batch:
            problem = _problem(request)
            if problem is None:
                sound.append(request)
            else:
                failed.append(GenerationResult.failed(request.sample_id, problem))
        chunks = []
        while sound:
            chunk = cut_equally(sound, self._batch_limit or len(sound))[0]
            begun = self._attempt(chunk)
            if begun is not None:
                chunks.append((chunk, begun))
            elif len(chunk) > 1:
                self._batch_limit = len(chunk) // 2
                continue
            else:
                failed.append(GenerationResult.failed(chunk[0].sample_id, _TOO_LARGE))
            sound = sound[len(chunk) :]
        results = self._finisher.submit(self._finish, batch, chunks, failed, start)
        return EngineBatch([pending for _, pending in chunks], results)

    def _attempt(self, chunk: Sequence[GenerationRequest]) -> PendingBatch | None:
        """Queue a chunk; None where the memory does not hold it."""
        try:
            return self.generator.begin(chunk)
        except torch.OutOfMemoryError:
            self._out_of_memory.append({"batch_size": len(chunk)})
        # Only here, past the handler, are the failed attempt's tensors free.
        self.generator.release()
        if self.generator.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _finish(
        self,
        batch: Sequence[GenerationRequest],
        chunks: Sequence[tuple[Sequence[GenerationRequest], PendingBatch]],
        failed: Sequence[GenerationResult],
        start: float,
    ) -> list[GenerationResult]:
        """Wait for a batch that began at `start`, and encode it; runs in the finisher's thread."""
        made = [result for chunk, pending in chunks for result in self._encode(chunk, pending.result())]
        results = {result.sample_id: result for result in [*failed, *made]}
        total_ms = 1e3 * (time.perf_counter() - start)
        return [_with_total(results[request.sample_id], total_ms) for request in batch]

    def _encode(self, chunk: Sequence[GenerationRequest], made: GeneratedBatch) -> list[GenerationResult]:
        image_spec = self.generator.spec.image
        start = time.perf_counter()
        encoded = encode_images(made.pixels, image_spec, self._encoders)
        made.times.encode = time.perf_counter() - start
        self._flat_batches += made.is_flat
        height, width = made.pixels.shape[1:3]
        return [
            GenerationResult(
                request.sample_id,
                "ok",
                image=image,
                width=width,
                height=height,
                format=image_spec.format,
                statistics=_with_times(statistics, made.times, len(chunk)),
            )
            if finite
            else GenerationResult.failed(
                request.sample_id,
                "the model gave numbers that are not finite; check its weights and dtype",
                statistics,
            )
            for request, image, finite, statistics in zip(
                chunk, encoded, made.finite, made.statistics, strict=True
            )
        ]

    def describe(self) -> dict[str, Any]:
        """What this engine is, JSON-able; equal engines have equal descriptions, see `Generator.describe`."""
        return self.generator.describe()

    def usage(self) -> dict[str, Any]:
        """What loading and running took so far, JSON-able.

        `batch_limit` is what memory has set, or None; `flat_batches` counts those with pictures of one colour alone.
        """
        return {
            **self.generator.usage(),
            "out_of_memory": list(self._out_of_memory),
            "batch_limit": self._batch_limit,
            "flat_batches": self._flat_batches,
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
