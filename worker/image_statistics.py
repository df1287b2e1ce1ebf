"""What is measured of one image, each statistic with its column of the dataset."""

from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa


def _column(kind: pa.DataType, unit: str, meaning: str, default: Any) -> Any:
    """A field that is a column: its Arrow type, its unit, and one sentence of what it is."""
    return field(default=default, metadata={"type": kind, "unit": unit, "meaning": meaning})


_FLOATS = pa.list_(pa.float32())


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """What is measured of one image; every field is a column of the dataset.

    A new statistic needs its field here, and a value where it is measured: by the generator, by the policy
    (`PruningPolicy.measured`) or by the engine. `docs/dataset.md` describes the columns to users.
    """

    prompt_truncated: bool = _column(pa.bool_(), "", "the prompt or negative prompt was cut", False)
    text_ms: float = _column(pa.float64(), "ms", "the image's share of the batch's text encoding", 0.0)
    sample_ms: float = _column(pa.float64(), "ms", "its share of the transformer over all scales", 0.0)
    decode_ms: float = _column(pa.float64(), "ms", "its share of the VAE decoder", 0.0)
    encode_ms: float = _column(pa.float64(), "ms", "its share of PNG, JPEG or WebP", 0.0)
    total_ms: float = _column(
        pa.float64(), "ms", "wall time of the whole batch, not divided, with its wait for the one before", 0.0
    )
    batch_size: int = _column(pa.int32(), "images", "size of the batch", 0)
    pruning_start_scale: int | None = _column(
        pa.int32(), "scale", "first pruned scale, from 0; the number of scales where nothing was", None
    )
    low_entropy_ratio: tuple[float | None, ...] = _column(
        _FLOATS, "0 to 1", "fraction of low-entropy tokens of each scale; null where not measured", ()
    )
    keep_ratio: tuple[float, ...] = _column(
        _FLOATS, "0 to 1", "fraction of the token-layers of each scale that ran, over both branches", ()
    )
    layer_representation_score: tuple[float, ...] = _column(
        _FLOATS, "0 to 1", "of each layer: near 1 Detail, near 0 Global; empty where not measured", ()
    )
    token_layer_fraction: float | None = _column(
        pa.float64(), "0 to 1", "token-layers that ran over those of the dense model", None
    )
    flops: float | None = _column(
        pa.float64(), "operations", "floating-point operations of the transformer and the decoder", None
    )
    pruning_map: bytes | None = _column(
        pa.binary(), "layers", "one byte per token: how many layers it ran; null unless requested", None
    )

    def columns(self) -> dict[str, Any]:
        """Column name -> value."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


STATISTIC_COLUMNS: tuple[pa.Field, ...] = tuple(
    pa.field(each.name, each.metadata["type"]) for each in fields(ImageStatistics)
)
"""The columns of the statistics, in the order of the fields."""
