"""Images per hour and per dollar."""

import pytest

from toprovar_batch.orchestrator.benchmark.cost import cost_of, describe_cost


def test_a_speed_and_a_price_give_the_cost():
    cost = cost_of(2.5, 3.0)
    assert cost.images_per_hour == 9000
    assert cost.images_per_dollar == 3000
    assert cost.dollars_per_1000_images == pytest.approx(1 / 3)
    assert describe_cost(cost, "cuda") == "9,000 images per GPU hour, 3,000 per dollar, $0.33 per 1,000"


def test_without_a_price_nothing_is_said_of_dollars():
    assert describe_cost(cost_of(0.5, None), "cpu") == "1,800 images per CPU hour"
