"""The schedule table and what is read from it."""

import pytest

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.infinity.schedule import (
    RESOLUTIONS,
    SCHEDULES_1M,
    image_size,
    nearest_h_div_w,
    num_scales,
    scale_schedule,
)


def test_square_megapixel_is_ten_thousand_tokens():
    schedule = scale_schedule(1.0, "1M")
    assert len(schedule) == 13
    assert sum(h * w for h, w in schedule) == 10521
    assert image_size(schedule) == (1024, 1024)


def test_quarter_megapixel_is_its_first_ten_scales():
    schedule = scale_schedule(1.0, "0.25M")
    assert schedule == scale_schedule(1.0, "1M")[:10]
    assert sum(h * w for h, w in schedule) == 2521
    assert image_size(schedule) == (512, 512)


def test_wide_maps_are_the_transposed_tall_ones():
    assert scale_schedule(0.571, "1M") == tuple((w, h) for h, w in scale_schedule(1.75, "1M"))
    assert image_size(scale_schedule(1 / 3, "1M")) == (37 * 16, 111 * 16)


@pytest.mark.parametrize(
    ("wished", "nearest"), [(1.1, 1.0), (1.13, 1.25), (9 / 16, 0.571), (1.4, 1.333), (2.8, 3.0)]
)
def test_a_wish_takes_the_nearest_row(wished, nearest):
    assert nearest_h_div_w(wished) == nearest


@pytest.mark.parametrize("wished", [0.0, -1.0, 0.2, 4.0, float("nan"), float("inf")])
def test_ratios_out_of_range_are_refused(wished):
    with pytest.raises(ModelSpecError, match="1/3 to 3"):
        nearest_h_div_w(wished)


def test_an_unknown_resolution_is_refused_with_the_known_ones():
    with pytest.raises(ModelSpecError, match=r"2M.*0\.25M"):
        num_scales("2M")


def test_every_schedule_is_known_by_its_first_scales():
    prefixes = [schedule[: min(RESOLUTIONS.values())] for schedule in SCHEDULES_1M.values()]
    assert len(set(prefixes)) == len(SCHEDULES_1M) == 15
    assert all(schedule[0] == (1, 1) and len(schedule) == 13 for schedule in SCHEDULES_1M.values())
