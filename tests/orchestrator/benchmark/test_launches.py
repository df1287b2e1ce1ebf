"""Kernels of a trace, sorted into phases."""

import pytest

from toprovar_batch.orchestrator.benchmark.launches import PhaseLaunches, covered, launches_of

MARK = "at::cuda::(anonymous namespace)::spin_kernel(long)"


def _launch(correlation, ts, name="cudaLaunchKernel", cat="cuda_runtime"):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": 1, "args": {"correlation": correlation}}


def _kernel(correlation, ts, dur, name="gemm", stream=7):
    args = {"correlation": correlation, "stream": stream}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "args": args}


TRACE = [
    {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    _launch(1, 0.0),
    _kernel(1, 5.0, 10.0),
    _launch(2, 20.0),
    _kernel(2, 21.0, 1.0, MARK),
    _launch(3, 30.0, "cuLaunchKernelEx", "cuda_driver"),
    _launch(4, 31.0, "cudaGraphLaunch"),
    _launch(5, 32.0, "cudaMemcpyAsync"),
    _launch(6, 33.0),
    _kernel(3, 40.0, 1000.0),
    *(_kernel(4, 1040.0 + 100 * number, 200.0, stream=8) for number in range(3)),  # of one graph, overlapping
    {
        "ph": "X",
        "cat": "gpu_memcpy",
        "name": "Memcpy HtoD",
        "ts": 1500.0,
        "dur": 9,
        "args": {"correlation": 5},
    },
    _kernel(6, 45.0, 1.0, MARK),  # on a stream of its own it may run before what was launched earlier
    _launch(7, 50.0),
    _kernel(7, 2000.0, 500.0),
]


def test_kernels_belong_to_the_phase_of_their_launch():
    found = launches_of(TRACE)
    assert list(found) == ["text", "transformer", "decode"]
    assert found["text"] == PhaseLaunches(1, 1, pytest.approx(0.010))
    assert found["transformer"] == PhaseLaunches(4, 2, pytest.approx(1.4))
    assert found["decode"] == PhaseLaunches(1, 1, pytest.approx(0.5))


def test_a_trace_without_its_marks_says_nothing():
    assert launches_of([]) == {}
    assert launches_of([event for event in TRACE if event["name"] != MARK]) == {}


def test_what_overlaps_counts_once():
    assert covered([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 5.0
    assert covered([]) == 0.0
