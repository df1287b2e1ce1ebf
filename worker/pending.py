"""A batch that was queued: its images on their way to the host, and the clock of its phases."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .generated import GeneratedBatch, PhaseTimes
from .image_statistics import ImageStatistics

Phase = Literal["text", "sample", "decode"]


class PhaseClock:
    """Marks where the phases of a batch end, and waits for nothing.

    On a GPU a mark is an event in the stream. A phase is then what passed on the device from one mark to the next,
    with the time that it waited for launches of that phase. On a CPU a mark is the time of the call.
    """

    def __init__(self, device: torch.device) -> None:
        """Start the batch's time.

        Args:
            device: whose current stream is marked.
        """
        self._device = device
        self._start = time.perf_counter()
        self._marks: list[tuple[Phase | None, Any]] = []

    def mark(self, ended: Phase | None) -> None:
        """Note that a phase ends here, which began at the mark before; None: what ends has no name."""
        if self._device.type != "cuda":
            self._marks.append((ended, time.perf_counter()))
            return
        # To wait for a blocking event leaves the processor to the encoders.
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((ended, event))

    def wait(self) -> None:
        """Wait until the device is past the last mark."""
        if self._device.type == "cuda":
            self._marks[-1][1].synchronize()

    def times(self) -> PhaseTimes:
        """What the phases took, once the device is past the last mark; `wall` runs from the start until now."""
        times = PhaseTimes(wall=time.perf_counter() - self._start)
        for (_, first), (phase, second) in pairwise(self._marks):
            if phase is not None:
                seconds = second - first if self._device.type != "cuda" else first.elapsed_time(second) / 1e3
                setattr(times, phase, getattr(times, phase) + seconds)
        return times


@dataclass(frozen=True)
class QueuedImages:
    """Images that were queued together; from a GPU the tensors are filled when the device is past the last mark.

    Attributes:
        pixels: [B, H, W, 3] uint8 RGB, on the host.
        finite: [B] bool, on the host, see `GeneratedBatch`.
        pruning_maps: [B, tokens of all scales] uint8, on the host; None unless asked for.
        statistics: of each image, but for its times and its pruning map.
    """

    pixels: Tensor
    finite: Tensor
    pruning_maps: Tensor | None
    statistics: list[ImageStatistics]

    def with_maps(self) -> list[ImageStatistics]:
        """The statistics with the pruning maps in them."""
        if self.pruning_maps is None:
            return self.statistics
        maps = (row.tobytes() for row in self.pruning_maps.numpy())
        return [replace(each, pruning_map=one) for each, one in zip(self.statistics, maps, strict=True)]


class PendingBatch:
    """A batch that is queued on the device or done; any thread may wait for it."""

    def __init__(self, parts: Sequence[QueuedImages], clock: PhaseClock) -> None:
        """Remember what was queued.

        Args:
            parts: images of one size, in order.
            clock: its last mark is behind the last copy.
        """
        self._parts, self._clock = parts, clock

    def wait(self) -> None:
        """Wait until the batch has left the device."""
        self._clock.wait()

    def result(self) -> GeneratedBatch:
        """Wait for the batch, and give it."""
        self.wait()
        pixels = [part.pixels.numpy() for part in self._parts]
        return GeneratedBatch(
            pixels[0] if len(pixels) == 1 else np.concatenate(pixels),
            finite=[each for part in self._parts for each in part.finite.tolist()],
            statistics=[each for part in self._parts for each in part.with_maps()],
            times=self._clock.times(),
        )
