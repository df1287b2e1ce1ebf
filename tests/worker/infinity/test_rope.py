"""Positions and turns of the rotary embedding."""

import pytest
import torch

from toprovar_batch.worker.infinity.rope import RotationTables, rope_2d
from toprovar_batch.worker.infinity.schedule import SCHEDULES_1M

CPU = torch.device("cpu")


def test_first_pair_turns_by_the_row_and_the_middle_one_by_the_column():
    turns = rope_2d((2, 4), (64, 64), 32, CPU).angle().view(2, 4, 16)
    wrapped = lambda position: torch.polar(torch.tensor(1.0), torch.tensor(float(position))).angle()  # noqa: E731
    assert torch.allclose(turns[1, 2, 0], wrapped(32), atol=1e-5)
    assert torch.allclose(turns[1, 2, 8], wrapped(32), atol=1e-5)
    assert torch.allclose(turns[1, 3, 8], wrapped(48), atol=1e-5)
    assert torch.allclose(turns[1, 3, 9], wrapped(48 * 10000 ** (-2 / 16)), atol=1e-5)


def test_positions_on_a_half_round_to_even():
    # A scale of 4 rows spread over 6: rows 1 and 3 fall on 1.5 and 4.5.
    angles = rope_2d((4, 1), (6, 1), 8, CPU).angle()[:, 0]
    assert torch.allclose(angles, torch.tensor([0.0, 2.0, 3.0, 4.0 - 2 * torch.pi]), atol=1e-6)


def test_some_official_scale_has_positions_on_a_half():
    halves = [
        (scale, full[-1])
        for full in SCHEDULES_1M.values()
        for scale in full
        for side, most in zip(scale, full[-1], strict=True)
        if any((row * most / side) % 1 == 0.5 for row in range(side))
    ]
    assert halves  # so the rounding above matters for real models


@pytest.mark.parametrize("ratio", SCHEDULES_1M)
def test_the_last_scale_has_every_position_once(ratio):
    height, width = SCHEDULES_1M[ratio][-1]
    turns = rope_2d((height, width), (height, width), 16, CPU)
    rows = turns[::width, 0]
    assert torch.allclose(rows, torch.polar(torch.ones(height), torch.arange(height).float()), atol=1e-5)


def test_tables_are_made_once_and_a_bounded_number_is_kept():
    tables = RotationTables(8)
    with torch.inference_mode():
        first = tables.of((2, 4), (4, 4), CPU)
    assert torch.equal(first, rope_2d((2, 4), (4, 4), 8, CPU))
    assert not first.is_inference()  # a later batch may not be in inference mode
    others = [(height, width) for height in range(1, 10) for width in range(1, 10)]
    for size in others:
        tables.of(size, (9, 9), CPU)
        assert tables.of((2, 4), (4, 4), CPU) is first
    assert len(tables._tables) == 64
    assert tables.of(others[-1], (9, 9), CPU) is tables.of(others[-1], (9, 9), CPU)
    assert tables.of((2, 4), (2, 4), CPU) is not first
