"""What is begun beside the imports: the driver's start, and Triton's hash of itself."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from toprovar_batch.worker import actor, gpu_start
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, RuntimeSpec


@pytest.fixture
def calls(monkeypatch):
    """What was called, of a driver with one GPU and of Triton."""
    found = []

    def gives_0(name):
        return lambda *_: found.append(name) or 0

    names = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain")
    driver = SimpleNamespace(**{name: gives_0(name) for name in names})
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    monkeypatch.setitem(sys.modules, gpu_start._HASHES[0], SimpleNamespace(triton_key=gives_0("triton_key")))
    return found


def test_driver_and_triton_are_started(calls):
    gpu_start.begin_gpu_start().join()
    assert calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "triton_key"]


def test_another_version_of_triton_is_asked_where_it_hashes(calls, monkeypatch):
    here, there = gpu_start._HASHES
    monkeypatch.setitem(sys.modules, there, sys.modules[here])
    monkeypatch.setitem(sys.modules, here, SimpleNamespace())
    gpu_start.begin_gpu_start().join()
    assert calls[-1] == "triton_key"


def test_a_machine_without_driver_and_triton_is_no_fault(calls, monkeypatch):
    def none(_name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", none)
    for name in gpu_start._HASHES:
        monkeypatch.setitem(sys.modules, name, None)
    gpu_start._start()  # in a thread nobody would hear of its exception
    assert calls == []


def test_a_driver_that_sees_no_gpu_is_asked_for_no_context(calls, monkeypatch):
    monkeypatch.setattr(ctypes.CDLL("libcuda.so.1"), "cuDeviceGet", lambda *_: 101)
    gpu_start._start()
    assert calls == ["cuInit", "triton_key"]


@pytest.mark.parametrize(("device", "begun"), [("cuda", [1]), ("cpu", [])])
def test_an_engine_on_a_gpu_begins_it(monkeypatch, device, begun):
    found = []
    monkeypatch.setattr(actor, "begin_gpu_start", lambda: found.append(1))
    monkeypatch.setattr(
        "toprovar_batch.worker.runtime.resolve_device", lambda _setting: SimpleNamespace(type="cpu")
    )
    actor.build_engine(
        resolve(EngineSpec.model_validate({"model": {"preset": "tiny"}})), RuntimeSpec(device=device), 1
    )
    assert found == begun
