"""Timing of generation: combinations of policy, batch, kernels and dtype take turns in one process."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from toprovar_batch.orchestrator.steps import SILENT, Steps
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.generated import GeneratedBatch
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.images import encode_images
from toprovar_batch.worker.request import GenerationRequest

from .combinations import Combination, rotation
from .floors import Ceilings, Floors, ImageWork, batch_floors, weight_bytes
from .launches import PhaseLaunches, profile_launches

PROMPTS = (
    "a photo of a red apple on a wooden table beside a blue ceramic cup",
    "an old lighthouse on a cliff above a stormy sea at dusk, oil painting, thick brush strokes",
    "a crowded night market in the rain, neon signs reflected in puddles, people under umbrellas",
    "portrait of an astronaut reading a newspaper in a small cafe, soft window light, shallow focus",
    "three glass bottles, green, amber and clear, in a row on a marble shelf",
    "an isometric map of a small island with a harbour, a windmill, pine trees and a winding path",
    "a grey cat asleep on a stack of books, watercolour",
    "macro photograph of frost on a spider web, backlit by the morning sun, very fine detail",
)


@dataclass
class CombinationTiming:
    """Timings of one combination, one number for each repeat.

    Attributes:
        combination: what was timed.
        seconds: wall time of a batch, from the prompts to the files' bytes.
        phase_ms: text, transformer, decode and encode.
        scale_ms: transformer, sampling and codes of each scale, measured on the device; median of the repeats.
        peak_memory_gb: of the device, with all that is loaded or kept from batch to batch (GPU only), 10**9 bytes.
        token_layer_fraction: token-layers that ran over those of the dense model, mean over the images.
        floors: the least time of the phases; None on a CPU.
        launches: by phase; None where nothing was profiled.
        memory_retries: how often a timed batch had to wait for memory that other combinations kept (GPU only).
        error: why there are no timings, or None.
    """

    combination: Combination
    seconds: list[float] = field(default_factory=list)
    phase_ms: dict[str, list[float]] = field(default_factory=dict)
    scale_ms: list[float] = field(default_factory=list)
    peak_memory_gb: float | None = None
    token_layer_fraction: float = 1.0
    floors: Floors | None = None
    launches: dict[str, PhaseLaunches] | None = None
    memory_retries: int = 0
    error: str | None = None

    @property
    def images_per_second(self) -> float:
        """From the median; 0 without timings."""
        return self.combination.batch / statistics.median(self.seconds) if self.seconds else 0.0

    def busy_share(self, phase: str) -> float | None:
        """The part of a phase's median time in which the GPU ran a kernel; None where it was not profiled."""
        if not self.launches or phase not in self.launches:
            return None
        return self.launches[phase].busy_ms / statistics.median(self.phase_ms[phase])

    def speed_over(self, first: "CombinationTiming") -> list[float]:
        """Each repeat's images per second over those of another combination in the same repeat."""
        images = self.combination.batch / first.combination.batch
        return [images * theirs / ours for ours, theirs in zip(self.seconds, first.seconds, strict=False)]


def time_combinations(
    generators: Sequence[Generator],
    combinations: Sequence[Combination],
    *,
    warmup: int,
    repeats: int,
    ceilings: Sequence[Ceilings | None],
    profiled: bool = False,
    steps: Steps = SILENT,
) -> list[CombinationTiming]:
    """Warm each combination, the largest batches first, then time all in turns; each repeat starts with another.

    The first batch of each is checked before anything is timed: every logit finite, every picture with contrast.

    Args:
        generators: of each combination, set up, with its policy.
        combinations: what they stand for.
        warmup: batches of each combination before the timed ones, beside the first.
        repeats: timed batches of each.
        ceilings: of each combination, for its floors; None where there are none.
        profiled: profile a batch more of each at the end (on a GPU).
        steps: is told what goes on, a batch a piece.

    Raises:
        RunFailedError: a first batch is wrong.
    """
    runs = [
        _Run(generator, combination) for generator, combination in zip(generators, combinations, strict=True)
    ]
    # The largest first: what is kept from batch to batch then grows no more, and nothing warm is lost.
    steps.begin("warming up", len(runs) * (1 + warmup))
    for place in sorted(range(len(runs)), key=lambda place: -combinations[place].batch):
        runs[place].warm(warmup, ceilings[place], steps)
    steps.begin("timing batches", len(runs) * repeats)
    for repeat in range(repeats):
        for place in rotation(len(runs), repeat):
            runs[place].time_one()
            steps.advance()
    if profiled:
        steps.begin("profiling batches", len(runs))
        for run in runs:
            run.profile()
            steps.advance()
    return [run.finished() for run in runs]


class _Run:
    """One combination under way; once memory ran out it only keeps that error."""

    def __init__(self, generator: Generator, combination: Combination) -> None:
        self._generator = generator
        h_div_w = generator.spec.image.h_div_w
        self._requests = [
            GenerationRequest(f"bench-{index}", PROMPTS[index % len(PROMPTS)], None, index, h_div_w)
            for index in range(combination.batch)
        ]
        self._is_gpu = generator.device.type == "cuda"
        self._clock = _ScaleClock(self._is_gpu)
        self._timing = CombinationTiming(combination)
        self._scales: list[list[float]] = []

    def warm(self, warmup: int, ceilings: Ceilings | None, steps: Steps) -> None:
        """Check a first batch, and make the others that are not timed."""
        made = self._make()
        steps.advance()
        if made is None:
            return
        _check(made)
        self._timing.token_layer_fraction = statistics.fmean(made.fractions)
        if ceilings is not None:
            self._timing.floors = self._floors(made, ceilings)
        for _ in range(warmup):
            self._make()
            steps.advance()

    def time_one(self) -> None:
        """Time a batch."""
        retries = self._memory_retries()
        if (made := self._make()) is None:
            return
        timing, times = self._timing, made.times
        timing.memory_retries += self._memory_retries() - retries
        timing.seconds.append(times.wall + times.encode)
        phases = {
            "text": times.text,
            "transformer": times.sample,
            "decode": times.decode,
            "encode": times.encode,
        }
        for phase, seconds in phases.items():
            timing.phase_ms.setdefault(phase, []).append(1e3 * seconds)
        self._scales.append(self._clock.take())

    def profile(self) -> None:
        """Profile a batch, which is not timed."""
        if self._timing.error is None and self._is_gpu:
            num_scales = self._generator.spec.num_scales
            self._timing.launches = profile_launches(
                lambda on_scale: self._generator.generate(self._requests, on_scale), num_scales
            )

    def finished(self) -> CombinationTiming:
        """What was found."""
        self._timing.scale_ms = [statistics.median(values) for values in zip(*self._scales, strict=True)]
        return self._timing

    def _make(self) -> GeneratedBatch | None:
        """Make a batch and its files, or note that the memory does not hold it."""
        if self._timing.error is not None:
            return None
        self._clock.take()
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats()
        made = None
        with suppress(torch.OutOfMemoryError):  # which keeps the batch's tensors for as long as it lives
            made = self._generator.generate(self._requests, self._clock)
        if made is None:
            self._fail("out of GPU memory")
            return None
        start = time.perf_counter()
        encode_images(made.pixels, self._generator.spec.image)
        made.times.encode = time.perf_counter() - start
        if self._is_gpu:
            peak = torch.cuda.max_memory_allocated() / 1e9
            self._timing.peak_memory_gb = max(peak, self._timing.peak_memory_gb or 0.0)
        return made

    def _memory_retries(self) -> int:
        """How often PyTorch's allocator has given back what it kept, to find room; this waits for the GPU."""
        return torch.cuda.memory_stats()["num_alloc_retries"] if self._is_gpu else 0

    def _fail(self, error: str) -> None:
        self._timing, self._scales = CombinationTiming(self._timing.combination, error=error), []
        self._generator.release()
        torch.cuda.empty_cache()  # what it left behind is the others'

    def _floors(self, made: GeneratedBatch, ceilings: Ceilings) -> Floors:
        images = [ImageWork(each.keep_ratio, each.flops or 0.0) for each in made.statistics]
        weights = weight_bytes(self._generator.model.transformer)
        return batch_floors(self._generator.spec, images, weights, ceilings)


def _check(made: GeneratedBatch) -> None:
    if not all(made.finite):
        raise RunFailedError("the model gave numbers that are not finite; nothing was timed")
    if any(image.std() == 0 for image in made.pixels):
        raise RunFailedError("the model gave a picture of one colour; nothing was timed")


class _ScaleClock:
    """Marks the end of each scale, on the GPU's own clock where there is one.

    The first mark, of index -1, is made when the transformer starts on the text, so scale 0 includes that.
    """

    def __init__(self, is_gpu: bool) -> None:
        self._is_gpu = is_gpu
        self._marks: list[tuple[int, Any]] = []

    def __call__(self, scale_index: int) -> None:
        if not self._is_gpu:
            self._marks.append((scale_index, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((scale_index, event))

    def take(self) -> list[float]:
        """Milliseconds of each scale, over all the pieces that a batch was made in; the next batch starts anew.

        The device must be idle.
        """
        total: dict[int, float] = defaultdict(float)
        for (_, first), (scale, second) in pairwise(self._marks):
            if scale >= 0:
                total[scale] += first.elapsed_time(second) if self._is_gpu else 1e3 * (second - first)
        self._marks = []
        return [total[scale] for scale in sorted(total)]
