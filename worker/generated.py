"""What the engine keeps of a batch while it is made."""

from dataclasses import dataclass, field

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


@dataclass
class PhaseTimes:
    """Seconds of a batch's phases; the device is idle at both ends of each."""

    text: float = 0.0
    sample: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    scales: list[float] = field(default_factory=list)
