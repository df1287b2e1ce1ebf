"""What an engine runs on: the device, and a word where it is not what a user expects."""

import pytest
import torch

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker.actor import build_engine
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.runtime import (
    backend_fallback,
    resolve_device,
    resolve_dtype,
    resolve_kernels,
    set_threads,
)
from toprovar_batch.worker.specs import EngineSpec, RuntimeSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FAILED = Backend("torch", "Triton fails on a small kernel: OSError: no compiler")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error():
    with pytest.raises(ModelSpecError, match="no GPU"):
        resolve_device("cuda")


def test_the_dtype_is_that_of_the_device_unless_it_is_requested():
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", GPU) == torch.bfloat16
    assert resolve_dtype("float16", CPU) == torch.float16


def test_a_gpu_that_falls_back_to_pytorch_is_told_with_its_reason():
    sentence = backend_fallback("auto", GPU, FAILED)
    assert sentence.startswith("PyTorch attends in place of the Triton kernels")
    assert sentence.endswith("no compiler")


@pytest.mark.parametrize(
    ("setting", "device", "backend"),
    [
        ("auto", CPU, FAILED),
        ("torch", GPU, Backend("torch", "asked for")),
        ("auto", GPU, Backend("triton", "a small kernel ran")),
    ],
)
def test_what_was_to_be_expected_is_not_told(setting, device, backend):
    assert backend_fallback(setting, device, backend) is None


def test_kernels_that_cannot_run_name_the_setting():
    with pytest.raises(ModelSpecError, match=r"^runtime\.backend: the triton backend cannot run here"):
        resolve_kernels("triton", CPU, 64)


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_cores_that_are_reserved_do_not_divide_the_products_of_a_cpu():
    for reserved in (1, 2, 5):
        build_engine(resolve(EngineSpec()), RuntimeSpec(device="cpu"), reserved)
        assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_threads")
def test_cores_that_are_reserved_are_used_beside_a_gpu():
    set_threads(GPU, 2)
    assert torch.get_num_threads() == 2
