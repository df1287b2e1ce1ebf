"""What the engine keeps of a batch while it is made."""

from dataclasses import dataclass

import numpy as np

from .pruning.history import PromptWork


@dataclass
class GeneratedBatch:
    """A batch up to its pixels.

    Attributes:
        pixels: [B, H, W, 3] uint8 RGB.
        truncated: for each image whether its text was cut.
        finite: for each image whether all its logits were.
        work: what each prompt ran.
        low_entropy_ratio: of each prompt and scale; None where not measured.
        layer_representation_score: of each prompt and layer; empty where not measured.
        pruning_maps: of each prompt, where they are asked for.
    """

    pixels: np.ndarray
    truncated: list[bool]
    finite: list[bool]
    work: list[PromptWork]
    low_entropy_ratio: list[list[float | None]]
    layer_representation_score: list[list[float]]
    pruning_maps: list[bytes] | None

    @classmethod
    def joined(cls, parts: "list[GeneratedBatch]") -> "GeneratedBatch":
        """Batches of images of one size as one, in order."""
        if len(parts) == 1:
            return parts[0]
        maps = [each for part in parts for each in part.pruning_maps or ()]
        return cls(
            np.concatenate([part.pixels for part in parts]),
            truncated=[each for part in parts for each in part.truncated],
            finite=[each for part in parts for each in part.finite],
            work=[each for part in parts for each in part.work],
            low_entropy_ratio=[each for part in parts for each in part.low_entropy_ratio],
            layer_representation_score=[each for part in parts for each in part.layer_representation_score],
            pruning_maps=maps or None,
        )


@dataclass
class PhaseTimes:
    """Seconds of a batch's phases; the device is idle at both ends of each."""

    text: float = 0.0
    sample: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
