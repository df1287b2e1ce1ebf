"""Scale schedules: the sizes of the token maps a model generates, coarse to fine."""

from typing import Final

from toprovar_batch.worker.errors import ModelSpecError

ScaleSchedule = tuple[tuple[int, int], ...]

PIXELS_PER_TOKEN: Final = 16

# Scales of a schedule kept at each resolution; the finest of "1M" is about 1024 x 1024 pixels.
RESOLUTIONS: Final[dict[str, int]] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

# (height, width) of every scale of the 1M schedule by height / width; ratios below 1 are transposed.
_SCALES_1M: Final[dict[float, str]] = {
    1.000: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.250: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.500: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.750: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.000: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.500: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.000: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


def _parse(row: str) -> ScaleSchedule:
    return tuple((int(h), int(w)) for h, w in (size.split("x") for size in row.split()))


def _all_schedules() -> dict[float, ScaleSchedule]:
    tall = {ratio: _parse(row) for ratio, row in _SCALES_1M.items()}
    wide = {
        round(1 / ratio, 3): tuple((w, h) for h, w in scales) for ratio, scales in tall.items() if ratio > 1
    }
    return dict(sorted((wide | tall).items()))


SCHEDULES_1M: Final[dict[float, ScaleSchedule]] = _all_schedules()


def num_scales(resolution: str) -> int:
    """Scales of a schedule at `resolution`.

    Raises:
        ModelSpecError: no such resolution.
    """
    if resolution not in RESOLUTIONS:
        raise ModelSpecError(
            f"resolution {resolution!r} does not exist; choose one of {', '.join(RESOLUTIONS)}"
        )
    return RESOLUTIONS[resolution]


def nearest_h_div_w(h_div_w: float) -> float:
    """The ratio of the schedule table nearest to the requested height / width.

    Raises:
        ModelSpecError: outside the table's range, 1/3 to 3.
    """
    # The table's own ends are rounded to three digits, so the bounds give way by that much.
    if not 1 / 3 - 1e-3 <= h_div_w <= 3 + 1e-3:
        raise ModelSpecError(f"height / width of {h_div_w:g} is outside the model's range, 1/3 to 3")
    return min(SCHEDULES_1M, key=lambda ratio: abs(ratio - h_div_w))


def scale_schedule(h_div_w: float, resolution: str) -> ScaleSchedule:
    """Token map sizes (height, width), coarse to fine, for the nearest ratio of the table.

    Raises:
        ModelSpecError: unknown resolution, or a ratio outside 1/3 to 3.
    """
    return SCHEDULES_1M[nearest_h_div_w(h_div_w)][: num_scales(resolution)]


def largest_map(h_div_w: float) -> tuple[int, int]:
    """The last map of the 1M schedule of a ratio.

    The model spreads positions over it at every resolution.

    Raises:
        ModelSpecError: a ratio outside 1/3 to 3.
    """
    return SCHEDULES_1M[nearest_h_div_w(h_div_w)][-1]


def image_size(schedule: ScaleSchedule) -> tuple[int, int]:
    """(height, width) in pixels of the image a schedule ends in."""
    h, w = schedule[-1]
    return h * PIXELS_PER_TOKEN, w * PIXELS_PER_TOKEN
