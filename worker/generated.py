"""What the generator makes of a batch."""

from dataclasses import dataclass

import numpy as np

from .image_statistics import ImageStatistics


@dataclass
class PhaseTimes:
    """Seconds of a batch's phases; those of the model are a GPU's own time.

    Attributes:
        text: text encoding.
        sample: the transformer over all scales, and the draws.
        decode: the VAE decoder.
        encode: image files; 0 where none are written.
        wall: from the requests to the pixels on the host, with what lies between the phases and the wait for an earlier
            batch on the device.
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
        finite: for each image whether all its logits and all numbers of the decoder were; the pixels of one that is not
            show nothing.
        statistics: of each image; times and sizes of the batch are not yet in them.
        times: of the batch.
    """

    pixels: np.ndarray
    finite: list[bool]
    statistics: list[ImageStatistics]
    times: PhaseTimes

    @property
    def is_flat(self) -> bool:
        """Whether every picture that shows something is of one colour; false where none does."""
        shown = [image for image, finite in zip(self.pixels, self.finite, strict=True) if finite]
        return bool(shown) and all(map(_is_flat, shown))

    @property
    def fractions(self) -> list[float]:
        """Token-layers that ran over those of the dense model, of each image."""
        return [
            each.token_layer_fraction for each in self.statistics if each.token_layer_fraction is not None
        ]


def _is_flat(image: np.ndarray) -> bool:
    """Whether [H, W, 3] pixels are all alike; most pictures tell by their first row."""
    first = image[:1, :1]
    return bool((image[:1] == first).all() and (image == first).all())
