"""Reading the column `pruning_map` of a dataset: how many layers each token ran, as one picture a scale."""

from typing import Any

import numpy as np

from toprovar_batch.worker.infinity.schedule import RESOLUTIONS, scale_schedule


def read_pruning_map(
    pruning_map: bytes, h_div_w: float, num_scales: int
) -> "list[np.ndarray[Any, np.dtype[np.uint8]]]":
    """Split a pruning map into its scales.

    Args:
        pruning_map: one byte a token, scale after scale.
        h_div_w: the sample's column of that name.
        num_scales: length of the sample's `keep_ratio`.

    Returns:
        For each scale [height, width] uint8, the layers that each token of the conditional branch ran.

    Raises:
        ValueError: the map is not of such a sample.
    """
    resolution = next((name for name, scales in RESOLUTIONS.items() if scales == num_scales), None)
    if resolution is None:
        raise ValueError(f"no schedule has {num_scales} scales")
    schedule = scale_schedule(h_div_w, resolution)
    ends = np.cumsum([height * width for height, width in schedule])
    flat = np.frombuffer(pruning_map, np.uint8)
    if len(flat) != ends[-1]:
        raise ValueError(f"a map of {num_scales} scales has {ends[-1]} tokens, this one has {len(flat)}")
    parts = np.split(flat, ends[:-1])
    return [part.reshape(size) for part, size in zip(parts, schedule, strict=True)]
