"""Combinations take turns; ratios compare the same repeat; what the memory does not hold is left out."""

import numpy as np
import pytest
import torch

from toprovar_batch.orchestrator.benchmark import generation_timing
from toprovar_batch.orchestrator.benchmark.combinations import Combination
from toprovar_batch.orchestrator.benchmark.generation_timing import CombinationTiming, time_combinations
from toprovar_batch.orchestrator.benchmark.launches import PhaseLaunches
from toprovar_batch.worker.generated import GeneratedBatch, PhaseTimes
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec


class Recorder:
    """Notes which generator made a batch, in the place of a `Generator`."""

    device = torch.device("cpu")
    spec = resolve(EngineSpec(model=ModelSpec(random_weights=True)))

    def __init__(self, name, made, room=99, batch=1):
        self.name, self.made, self.room, self.batch = name, made, room, batch

    def release(self):
        self.made.append(f"{self.name} gave back")

    def generate(self, batch, on_scale):
        if len(self.made) >= self.room:
            raise torch.OutOfMemoryError
        self.made.append(self.name)
        statistics = [ImageStatistics(token_layer_fraction=0.5)] * len(batch)
        pixels = np.arange(len(batch) * 48, dtype=np.uint8).reshape(-1, 4, 4, 3)
        return GeneratedBatch(pixels, [True] * len(batch), statistics, PhaseTimes(wall=1.0))


def _time(*generators, **options):
    combinations = [Combination(each.name, each.batch) for each in generators]
    ceilings = [None] * len(generators)
    return time_combinations(generators, combinations, ceilings=ceilings, **options)


def test_each_is_warmed_and_then_all_take_turns():
    made = []
    timings = _time(*(Recorder(name, made) for name in "abc"), warmup=1, repeats=3)
    assert "".join(made) == "aabbcc" + "abc" + "bca" + "cab"
    assert [len(timing.seconds) for timing in timings] == [3, 3, 3]
    assert all(timing.token_layer_fraction == 0.5 for timing in timings)


def test_large_batches_are_warmed_first():
    made = []
    _time(
        *(Recorder(name, made, batch=size) for name, size in zip("abc", (1, 4, 1), strict=True)),
        warmup=0,
        repeats=1,
    )
    assert "".join(made) == "bac" + "abc"


@pytest.mark.parametrize("room", [1, 5])
def test_what_runs_out_of_memory_is_named_and_the_others_go_on(room):
    made = []
    timings = _time(Recorder("a", made), Recorder("b", made, room), warmup=0, repeats=3)
    assert [timing.error for timing in timings] == [None, "out of GPU memory"]
    assert (len(timings[0].seconds), timings[1].seconds, timings[1].phase_ms) == (3, [], {})
    assert timings[1].speed_over(timings[0]) == []


def test_ratios_are_of_images_in_the_same_repeat():
    first = CombinationTiming(Combination("dense", 1), seconds=[1.0, 2.0, 1.0])
    other = CombinationTiming(Combination("dense", 4), seconds=[2.0, 4.0, 1.0])
    assert other.speed_over(first) == [2, 2, 4]
    assert first.speed_over(first) == [1, 1, 1]
    assert other.images_per_second == 2


def test_the_busy_share_is_of_the_time_without_the_profiler():
    timing = CombinationTiming(Combination("dense", 1), phase_ms={"text": [3.0, 8.0, 4.0], "encode": [1.0]})
    assert timing.busy_share("text") is None
    timing.launches = {"text": PhaseLaunches(10, 2, busy_ms=1.0)}
    assert timing.busy_share("text") == 0.25
    assert timing.busy_share("encode") is None


def test_nothing_is_profiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(generation_timing, "profile_launches", None)
    (timing,) = _time(Recorder("a", []), warmup=0, repeats=1, profiled=True)
    assert timing.launches is None
