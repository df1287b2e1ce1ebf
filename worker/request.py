"""What the engine takes and gives: one request and one result a sample."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One image to generate.

    Attributes:
        sample_id: identity of the sample within its job.
        prompt: the text; longer than 512 tokens is cut and flagged in the result.
        negative_prompt: stands in for the unconditional branch, or None.
        seed: 0 <= seed < 2**63; together with the prompt it alone decides the image.
        h_div_w: wished height over width; the nearest row of the schedule table is generated.
    """

    sample_id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    h_div_w: float = 1.0


@dataclass(slots=True)
class GenerationResult:
    """One finished sample: an encoded image with its statistics, or an error.

    Attributes:
        sample_id: the request's.
        status: "ok", or "error" with `error` set and no image.
        error: one sentence, or None.
        image: encoded bytes in `format`, or None on error.
        width, height: pixels; 0 on error.
        format: "png", "jpeg" or "webp".
        prompt_truncated: the prompt (or negative prompt) was longer than the text encoder takes.
        text_ms, sample_ms, decode_ms, encode_ms: this image's share (the batch's time over its size).
        total_ms: wall time of the whole batch this image was generated in.
        batch_size: images in that batch.
        pruning_start_scale: first pruned scale counted from 0; the number of scales where nothing was pruned.
        low_entropy_ratio: fraction of low-entropy tokens per scale; None where not measured.
        keep_ratio: fraction of token-layers run per scale, over both guidance branches.
        layer_representation_score: per layer; empty where not measured.
        token_layer_fraction: token-layers run over the dense number of them.
        flops: floating-point operations of the transformer and the VAE decoder for this image.
        pruning_map: one byte a token, scale after scale: how many layers it ran; None unless asked for.
    """

    sample_id: str
    status: Literal["ok", "error"]
    error: str | None = None
    image: bytes | None = None
    width: int = 0
    height: int = 0
    format: str = ""
    prompt_truncated: bool = False
    text_ms: float = 0.0
    sample_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    total_ms: float = 0.0
    batch_size: int = 0
    pruning_start_scale: int | None = None
    low_entropy_ratio: list[float | None] = field(default_factory=list)
    keep_ratio: list[float] = field(default_factory=list)
    layer_representation_score: list[float] = field(default_factory=list)
    token_layer_fraction: float | None = None
    flops: float | None = None
    pruning_map: bytes | None = None
