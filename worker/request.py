"""What the engine takes and gives: one request and one result per sample."""

from dataclasses import dataclass
from typing import Literal

from .image_statistics import ImageStatistics


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One image to generate.

    Attributes:
        sample_id: identity of the sample within its job.
        prompt: the text; longer than 512 tokens is cut and flagged in the result.
        negative_prompt: stands in for the unconditional branch, or None.
        seed: 0 <= seed < 2**63; together with the prompt it alone decides the image.
        h_div_w: requested height over width; the nearest row of the schedule table is generated.
    """

    sample_id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    h_div_w: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One finished sample: an encoded image with its statistics, or an error.

    Attributes:
        sample_id: the request's.
        status: "ok", or "error" with `error` set and no image.
        error: one sentence, or None.
        image: encoded bytes in `format`, or None on error.
        width, height: pixels; 0 on error.
        format: "png", "jpeg" or "webp".
        statistics: what was measured; None on an error before anything was.
    """

    sample_id: str
    status: Literal["ok", "error"]
    error: str | None = None
    image: bytes | None = None
    width: int = 0
    height: int = 0
    format: str = ""
    statistics: ImageStatistics | None = None

    @classmethod
    def failed(
        cls, sample_id: str, error: str, statistics: ImageStatistics | None = None
    ) -> "GenerationResult":
        """The result of a sample without an image."""
        return cls(sample_id, "error", error, statistics=statistics)
