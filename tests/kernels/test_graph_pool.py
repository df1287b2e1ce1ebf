"""The memory that graphs begin with."""

import pytest
import torch

from toprovar_batch.kernels.cuda_graphs import CudaGraphs


@pytest.fixture
def steps(monkeypatch):
    """What happens, on a device that captures nothing: bytes that a body asks for, and caches that are emptied."""
    found, real = [], torch.empty

    def empty(size, **options):
        found.append(size)
        return real(size, **options)

    def capture(_graphs, _key, body):
        monkeypatch.setattr(torch, "empty", empty)
        assert body() is None  # a result would keep its memory
        monkeypatch.setattr(torch, "empty", real)

    monkeypatch.setattr(CudaGraphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("emptied"))
    return found


def test_a_pool_gets_one_piece_for_the_largest_body_and_a_larger_one_only_for_a_larger_body(steps):
    graphs = CudaGraphs(torch.device("cpu"))
    for size in (100, 50, 100, 300, 200):
        graphs.reserve(size)
    assert steps == ["emptied", 100, "emptied", 300]


def test_a_new_pool_gets_its_own_piece(steps):
    graphs = CudaGraphs(torch.device("cpu"))
    graphs.reserve(300)
    graphs.clear()
    graphs.reserve(50)
    assert steps == ["emptied", 300, "emptied", 50]
