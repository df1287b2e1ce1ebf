"""What `make chaos` calls lost, doubled, wrong and different."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scene():
    """The module of `make chaos`, which no package holds."""
    spec = importlib.util.spec_from_file_location("chaos_scene", Path(__file__).with_name("scene.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def row(number, **changes):
    made = {"sample_id": f"s{number}", "prompt": f"p{number}", "image": bytes([number]), "status": "ok"}
    return {**made, "attempt": 1, "total_ms": 2.0} | changes


FAILED = {"status": "error", "image": None}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([row(0), row(1), row(2)], (0, 0, 0, 0)),
        ([row(2, attempt=3, total_ms=9.0), row(1), row(0)], (0, 0, 0, 0)),
        ([row(0), row(2)], (1, 0, 0, 0)),
        ([row(0), row(0), row(1), row(2), row(2), row(2)], (0, 3, 0, 0)),
        ([row(0), row(1), row(2, image=b"x")], (0, 0, 0, 1)),
        ([row(0), row(1), row(2), row(3)], (0, 0, 0, 1)),
        ([row(0), row(1), row(2, **FAILED)], (0, 0, 1, 0)),
    ],
)
def test_rows_are_compared_with_the_undisturbed_ones(scene, rows, found):
    wanted = {f"s{number}": scene.stable(row(number)) for number in range(3)}
    verdict = scene.compare(rows, wanted)
    assert (verdict.lost, verdict.doubled, verdict.wrong_errors, verdict.differing) == found
    assert verdict.is_good == (not any(found))


def test_a_guilty_sample_must_be_an_error_row(scene):
    wanted = {f"s{number}": scene.stable(row(number)) for number in range(2)}
    assert scene.compare([row(0), row(1, **FAILED)], wanted, {"p1"}).is_good
    assert scene.compare([row(0), row(1)], wanted, {"p1"}).wrong_errors == 1


def test_a_problem_fails_a_try_whose_rows_are_equal(scene):
    verdict = scene.Verdict(problems=["exit code 1"])
    assert verdict.is_equal
    assert not verdict.is_good
