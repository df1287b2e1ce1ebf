"""When a body of work runs, is captured and is replayed, with doubles in the place of a GPU's graphs."""

from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch

from toprovar_batch.kernels import cuda_graphs
from toprovar_batch.kernels.cuda_graphs import CudaGraphs


class Graph:
    """Notes what becomes of it; `refused` makes the end of its capture fail."""

    made: ClassVar[list["Graph"]] = []
    refused = None

    def __init__(self):
        self.events = []
        Graph.made.append(self)

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.events.append("begin")

    def capture_end(self):
        self.events.append("end")
        if Graph.refused is not None:
            raise Graph.refused

    def replay(self):
        self.events.append("replay")


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(Graph, "refused", None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    return CudaGraphs(torch.device("cuda"))


def test_work_runs_first_is_captured_then_and_replayed_from_there_on(graphs):
    runs = []

    def body():
        runs.append(1)
        return len(runs)

    assert [graphs.run("key", body) for _ in range(4)] == [1, 2, 2, 2]
    assert len(runs) == 2  # as it is, and under capture
    (graph,) = Graph.made
    assert graph.events == ["begin", "end", "replay", "replay", "replay"]
    usage = graphs.usage()
    assert (usage["graphs"], usage["replays"], usage["runs_without"]) == (1, 3, 1)


def test_every_key_has_a_graph_of_its_own(graphs):
    for key in ("a", "b", "a", "b"):
        graphs.run(key, lambda: None)
    assert len(Graph.made) == 2


def test_no_more_graphs_are_made_than_allowed(graphs, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 1)
    for key in ("a", "a", "b", "b", "b"):
        graphs.run(key, lambda: None)
    assert len(Graph.made) == 1
    assert graphs.usage()["runs_without"] == 4


def test_work_that_cannot_be_captured_runs_as_it_is_and_the_reason_is_told(graphs):
    Graph.refused = RuntimeError("operation not permitted\nwhen stream is capturing")
    runs = []
    graphs.run("key", lambda: runs.append(1))
    with pytest.warns(
        UserWarning, match="without CUDA graphs from here on: RuntimeError: operation not permitted when"
    ):
        graphs.run("key", lambda: runs.append(2))
    graphs.run("other", lambda: runs.append(3))
    graphs.run("other", lambda: runs.append(4))
    assert runs == [1, 2, 2, 3, 4]
    assert len(Graph.made) == 1
    assert "operation not permitted" in graphs.usage()["problem"]


def test_lack_of_memory_under_capture_ends_the_capture_and_goes_on_to_the_caller(graphs):
    def body():
        if Graph.made:
            raise torch.OutOfMemoryError("no memory")

    graphs.run("key", body)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("key", body)
    assert Graph.made[0].events == ["begin", "end"]
    assert graphs.usage()["problem"] is None


def test_what_is_cleared_runs_anew(graphs):
    for _ in range(3):
        graphs.run("key", lambda: None)
    graphs.clear()
    runs = []
    graphs.run("key", lambda: runs.append(1))
    assert runs == [1]
    assert graphs.usage()["graphs"] == 0
