"""Kernels that a body of work would launch are noted, compiled together, and found compiled by who launches them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from toprovar_batch.kernels import compile_ahead as module
from toprovar_batch.kernels.compile_ahead import compile_ahead, is_noting, noting_kernels
from toprovar_batch.kernels.cuda_graphs import CudaGraphs


class Kernel:
    """As far as Triton goes: asks its hook before it compiles, is compiled once, and launched then."""

    def __init__(self, runtime, log, name, fault=None):
        self._runtime, self._log, self._name, self._fault = runtime, log, name, fault
        self._compiled = set()

    def launch(self, key):
        if key not in self._compiled and not self._is_taken_over(key):
            self.preload(key)
        if key in self._compiled:
            self._log.append(("launch", self._name, key))

    def _is_taken_over(self, key):
        info = SimpleNamespace(module="kernels", name=self._name, jit_function=self)
        hook = self._runtime.jit_cache_hook
        return hook and hook(key=key, repr="", fn=info, compile={"specialization_data": key})

    def preload(self, key):
        if self._fault:
            raise self._fault
        self._log.append(("compile", self._name, key))
        self._compiled.add(key)
        return SimpleNamespace(run=None)


@pytest.fixture
def triton(monkeypatch, tmp_path):
    """What stands for Triton: `.kernel(name)` makes kernels, `.happened()` tells what became of them."""
    runtime, log = SimpleNamespace(jit_cache_hook=None), []
    monkeypatch.setitem(sys.modules, "triton.knobs", SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="1"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: log.append(("thread", "device", index)))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def kernel(name, fault=None):
        return Kernel(runtime, log, name, fault)

    def happened():
        """What became of kernels since last asked; each thread has taken the GPU of who asked for it."""
        events = sorted(event for event in log if event[0] != "thread")
        assert {index for event, _, index in log if event == "thread"} <= {3}
        log.clear()
        return events

    return SimpleNamespace(kernel=kernel, happened=happened, runtime=runtime, cache=tmp_path / "cache")


def test_kernels_are_compiled_ahead_once_a_machine_and_nothing_is_launched(triton):
    one, other = triton.kernel("one"), triton.kernel("other")

    def work():
        for kernel, key in ((one, "a"), (one, "b"), (one, "a"), (other, "a")):
            kernel.launch(key)

    compile_ahead("work", torch.device("cuda"), [work])
    assert triton.happened() == [("compile", "one", "a"), ("compile", "one", "b"), ("compile", "other", "a")]
    work()
    assert {event for event, _, _ in triton.happened()} == {"launch"}
    compile_ahead("work", torch.device("cuda"), [lambda: pytest.fail("it was done before")])
    assert not triton.happened()


@pytest.mark.parametrize("change", ["work", "device", "version", "cache", "source"])
def test_other_work_kernels_versions_devices_and_caches_are_compiled_anew(
    triton, monkeypatch, tmp_path, change
):
    begun = []
    compile_ahead("work", torch.device("cuda"), [lambda: begun.append(1)])
    match change:
        case "device":
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "another GPU")
        case "version":
            monkeypatch.setattr(torch, "__version__", "0")
        case "cache":
            monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "another"))
        case "source":
            monkeypatch.setattr(module, "__file__", str(tmp_path / "compile_ahead.py"))
    compile_ahead("other" if change == "work" else "work", torch.device("cuda"), [lambda: begun.append(2)])
    assert begun == [1, 2]


def test_work_that_refuses_what_it_sees_and_kernels_that_do_not_compile_keep_nobody_else_back(triton):
    good, bad, last = (
        triton.kernel("good"),
        triton.kernel("bad", RuntimeError("no registers")),
        triton.kernel("last"),
    )

    def refuses():
        bad.launch("a")
        good.launch("a")
        raise ValueError("NaN is no count")

    compile_ahead("work", torch.device("cuda"), [refuses, lambda: last.launch("a")])
    assert triton.happened() == [("compile", "good", "a"), ("compile", "last", "a")]
    with pytest.raises(RuntimeError, match="no registers"):
        bad.launch("a")
    assert triton.runtime.jit_cache_hook is None


def test_a_cache_that_cannot_be_written_is_no_fault(triton):
    triton.cache.write_text("a file")
    kernel = triton.kernel("one")
    compile_ahead("work", torch.device("cuda"), [lambda: kernel.launch("a")])
    assert triton.happened() == [("compile", "one", "a")]


def test_a_user_without_a_home_is_no_fault(triton, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    kernel = triton.kernel("one")
    compile_ahead("work", torch.device("cuda"), [lambda: kernel.launch("a")])
    assert triton.happened() == [("compile", "one", "a")]


def test_a_cache_that_nobody_may_look_into_is_no_fault(triton, monkeypatch):
    def refuse(_path):
        raise PermissionError("cache")

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    kernel = triton.kernel("one")
    compile_ahead("work", torch.device("cuda"), [lambda: kernel.launch("a")])
    assert triton.happened() == [("compile", "one", "a")]


def test_who_had_asked_to_hear_of_compilations_still_does(triton):
    heard = []
    triton.runtime.jit_cache_hook = former = lambda *, key, **_: heard.append(key)
    kernel = triton.kernel("one")
    compile_ahead("work", torch.device("cuda"), [lambda: kernel.launch("a")])
    assert triton.runtime.jit_cache_hook is former
    kernel.launch("b")
    assert heard == ["b"]


def test_a_triton_that_asks_nobody_compiles_as_ever(triton, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.knobs", None)
    with noting_kernels() as noted:
        assert not is_noting()
    assert noted == {}


def test_no_graph_is_made_of_work_whose_kernels_are_only_noted(triton, monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(CudaGraphs, "_capture", lambda *_: pytest.fail("captured"))
    graphs = CudaGraphs(torch.device("cuda"))
    with noting_kernels():
        assert [graphs.run("key", lambda: 1) for _ in range(3)] == [1, 1, 1]
    assert graphs.run("key", lambda: 2) == 2


REAL = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:  # a GPU that is not there: nothing can be launched on it
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Driver())
torch.cuda.get_device_name = lambda _device: "a GPU"
torch.cuda.current_device, torch.cuda.set_device = lambda: 0, lambda index: None
from toprovar_batch.kernels.compile_ahead import compile_ahead, noting_kernels
from toprovar_batch.kernels.flash_attention.launch import mean_over_heads

steps = [lambda heads=heads: mean_over_heads(torch.zeros(heads, 100)) for heads in (4, 8, 4)]
compile_ahead("work", torch.device("cuda"), steps)
for step in steps:
    with noting_kernels() as left:
        try:
            step()
        except AttributeError:  # what is compiled goes to the driver
            continue
    sys.exit(f"{list(left)} was not compiled")
"""


def test_triton_itself_notes_and_compiles_so(tmp_path):
    """Its compiler needs no GPU."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", REAL], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "cache").rglob("*.cubin")] == 2 * [
        "mean_over_heads_kernel.cubin"
    ]
    assert len(list((tmp_path / "cache").glob("toprovar-batch-*"))) == 1
