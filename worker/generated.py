"""What the generator makes of a batch."""

from dataclasses import dataclass

import numpy as np

from .image_statistics import ImageStatistics


@dataclass
class PhaseTimes:
    """Seconds of a batch's phases; the device is idle at both ends of each.

    Attributes:
        text: text encoding.
        sample: the transformer over all scales, and the draws.
        decode: the VAE decoder.
        encode: image files; 0 where none are written.
        wall: from the requests to the pixels, with what lies between the phases.
    """

    text: float = 0.0
    sample: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    wall: float = 0.0


@dataclass(frozen=True)
class GeneratedBatch:
    """A batch up to its pixels.

    Attributes:
        pixels: [B, H, W, 3] uint8 RGB.
        finite: for each image whether all its logits were; the pixels of one that is not show nothing.
        statistics: of each image; times and sizes of the batch are not yet in them.
        times: of the batch.
    """

    pixels: np.ndarray
    finite: list[bool]
    statistics: list[ImageStatistics]
    times: PhaseTimes

    @property
    def fractions(self) -> list[float]:
        """Token-layers that ran over those of the dense model, of each image."""
        return [
            each.token_layer_fraction for each in self.statistics if each.token_layer_fraction is not None
        ]

    @classmethod
    def joined(cls, parts: "list[GeneratedBatch]", times: PhaseTimes) -> "GeneratedBatch":
        """Batches of images of one size as one, in order."""
        return cls(
            parts[0].pixels if len(parts) == 1 else np.concatenate([part.pixels for part in parts]),
            finite=[each for part in parts for each in part.finite],
            statistics=[each for part in parts for each in part.statistics],
            times=times,
        )
