"""Who is to blame where a GPU has no memory left; no GPU is needed."""

import pytest
import torch

from toprovar_batch.worker.device_memory import told_from_others
from toprovar_batch.worker.worker_errors import DeviceFullError

GB = 10**9


@pytest.fixture
def hold(monkeypatch):
    """Says how much of a GPU of 80 GB is free, and how much of it this process holds."""

    def hold(free, own):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GB, 80 * GB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: own * GB)

    return hold


def run_out(error):
    with told_from_others():
        raise error


def test_memory_that_others_hold_is_told(hold):
    hold(free=1, own=9)
    with pytest.raises(DeviceFullError, match=r"beside 70\.0 GB that other processes hold"):
        run_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_a_model_that_is_too_large_for_an_empty_gpu_is_its_own_fault(hold):
    hold(free=0.2, own=79)
    with pytest.raises(torch.OutOfMemoryError):
        run_out(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_gpu_without_room_for_a_first_call_is_full(monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with pytest.raises(DeviceFullError, match="no memory left even to begin with"):
        run_out(RuntimeError("CUDA error: out of memory"))


def test_another_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match="illegal") as caught:
        run_out(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not isinstance(caught.value, DeviceFullError)
