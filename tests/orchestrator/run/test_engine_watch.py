import pytest

from toprovar_batch.orchestrator.run.engine_watch import EngineWatch
from toprovar_batch.worker.shard_stats import Computation

GPU = {
    "dtype": "bfloat16",
    "device_type": "cuda",
    "device": "NVIDIA H100",
    "backend": "triton",
    "backend_fallback": None,
}
CPU = {
    "dtype": "float32",
    "device_type": "cpu",
    "device": "x86_64",
    "backend": "torch",
    "threads": 2,
}
FALLEN_BACK = GPU | {"backend": "torch", "backend_fallback": "PyTorch attends: X"}


def notices(watch, *descriptions):
    return [list(watch.notice("host:1", description)) for description in descriptions]


def published(*descriptions):
    return [Computation.of_engine(description) for description in descriptions]


@pytest.mark.parametrize("description", [GPU, CPU])
def test_engines_as_expected_are_no_news(description):
    assert notices(EngineWatch(published(description)), description, description) == [[], []]
    assert notices(EngineWatch(), description) == [[]]


def test_a_run_that_differs_from_the_published_parts_is_told_once_by_name_and_value():
    first, second = notices(EngineWatch(published(GPU)), CPU, CPU)
    assert first == [
        (
            "Warning: worker host:1 differs from other parts of this dataset: dtype float32 instead of bfloat16, "
            "device_type cpu instead of cuda, device x86_64 instead of NVIDIA H100, backend torch instead of triton; "
            "the same prompt and seed may give slightly different pixels"
        )
    ]
    assert second == []


def test_only_what_differs_from_the_nearest_parts_is_named():
    other = GPU | {"device": "NVIDIA L40S"}
    [[sentence]] = notices(EngineWatch(published(CPU, GPU)), other)
    assert "parts of this dataset: device NVIDIA L40S instead of NVIDIA H100; the same" in sentence


def test_workers_that_differ_from_each_other_are_told():
    assert [len(found) for found in notices(EngineWatch(), GPU, GPU | {"device": "NVIDIA L40S"}, GPU)] == [
        0,
        1,
        0,
    ]


@pytest.mark.parametrize("missing", ["dtype", "device_type", "device", "backend"])
def test_an_engine_that_does_not_tell_is_not_compared(missing):
    description = {name: value for name, value in CPU.items() if name != missing}
    assert notices(EngineWatch(published(GPU)), description) == [[]]


def test_a_gpu_that_falls_back_to_pytorch_is_told_once_for_each_reason():
    older = FALLEN_BACK | {"backend_fallback": "PyTorch attends: the GPU is older"}
    assert notices(EngineWatch(), FALLEN_BACK, FALLEN_BACK, older) == [
        ["Warning: worker host:1: PyTorch attends: X"],
        [],
        ["Warning: worker host:1: PyTorch attends: the GPU is older"],
    ]


def test_another_number_of_threads_is_told():
    [[sentence]] = notices(EngineWatch(published(CPU)), CPU | {"threads": 4})
    assert "parts of this dataset: threads 4 instead of 2; the same" in sentence
