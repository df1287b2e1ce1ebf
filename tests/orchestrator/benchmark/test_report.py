"""What is said of timings on a GPU, from numbers that none measured."""

import json

import pytest

from toprovar_batch.orchestrator.benchmark.accuracy_limits import Check
from toprovar_batch.orchestrator.benchmark.combinations import Combination
from toprovar_batch.orchestrator.benchmark.comparison import Compared
from toprovar_batch.orchestrator.benchmark.floors import Ceilings, Floors
from toprovar_batch.orchestrator.benchmark.generation_timing import CombinationTiming
from toprovar_batch.orchestrator.benchmark.launches import PhaseLaunches
from toprovar_batch.orchestrator.benchmark.report import describe_timings, timing_record

ENGINE = {
    "preset": "infinity-2b",
    "parameters": 2_200_000_000,
    "resolution": "1M",
    "device": "a GPU",
    "device_type": "cuda",
    "torch": "2.13",
    "dtype": "bfloat16",
    "backend": "triton",
}


def _timing(policy, seconds, **settings):
    phases = {"transformer": [1e3 * each for each in seconds], "encode": [5.0, 5.0, 5.0]}
    return CombinationTiming(Combination(policy, 8), seconds, phases, [1.0, 2.5], 40.25, **settings)


@pytest.fixture
def found():
    timings = [
        _timing("dense", [2.0, 4.0, 2.5], memory_retries=2),
        _timing(
            "detail",
            [1.0, 1.0, 1.0],
            floors=Floors(transformer=800.0, decode=50.0, scales=[300.0, 500.0]),
            launches={"transformer": PhaseLaunches(5000, 40, busy_ms=900.0)},
        ),
        CombinationTiming(Combination("dense", 64), error="out of GPU memory"),
    ]
    model = Combination("dense", 8).model
    ceilings = {"bfloat16": Ceilings(7e14, 6e14, 4e12)}
    return Compared({model: ENGINE}, {model: Check(1.6e-3)}, ceilings, timings)


def test_speed_is_told_with_its_spread_and_its_ratio_to_the_first(found):
    lines = list(describe_timings(found, "abc", None))
    assert lines[0] == "infinity-2b (2.20 billion parameters) at 1M on a GPU, torch 2.13, commit abc"
    assert lines[1] == "measured ceilings: 700 TFLOP/s in bfloat16 (600 for seconds on end), 4000 GB/s"
    first, second = (line.split() for line in lines[3:5])
    assert first[6:] == ["2.500", "2.000..4.000", "3.200", "1.00", "1.00..1.00", "1.00", "40.2", "1.6e-03"]
    assert second[6:] == ["1.000", "1.000..1.000", "8.000", "2.50", "2.00..4.00", "2.50", "40.2", "1.6e-03"]


def test_a_phase_has_its_floor_its_busy_share_and_its_launches(found):
    rows = [line.split() for line in describe_timings(found, "abc", None)]
    assert ["2", "transformer", "1000.0", "1000.0..1000.0", "800.0", "1.25", "90%", "5000", "40"] in rows
    assert ["2", "encode", "5.0", "5.0..5.0", "-", "-", "-", "-", "-"] in rows


def test_each_combination_has_its_cost_and_what_went_wrong(found):
    lines = list(describe_timings(found, "abc", 2.0))
    assert (
        "1  11,520 images per GPU hour, 5,760 per dollar, $0.17 per 1,000; ms of each scale: 1.0 2.5" in lines
    )
    assert "1  memory was short 2 times while this was timed; time it alone" in lines
    assert lines[-1] == "3  batch 64, dense, dtype auto, backend auto: out of GPU memory"
    found.timings[1].launches = {}
    said = "2  the profiler saw no kernels here, so busy shares and launches are missing"
    assert said in list(describe_timings(found, "abc", None))


def test_a_record_has_every_repeat_and_is_json(found):
    first, second, failed = (timing_record(timing, found.timings[0], 2.0) for timing in found.timings)
    assert json.loads(json.dumps(second))["launches"]["transformer"]["kernels"] == 5000
    assert second["speed_over_first"] == [2.0, 4.0, 2.5]
    assert second["busy_share"] == {"transformer": 0.9, "encode": None}
    assert first["cost"]["images_per_dollar"] == 5760
    assert (failed["batch"], failed["error"], failed["seconds"]) == (64, "out of GPU memory", [])
    assert "images_per_second" not in failed
