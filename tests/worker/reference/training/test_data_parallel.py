"""Training in several processes: one time for all, and the mean of everyone's gradients."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from toprovar_batch.worker.reference.training import data_parallel


def _run(rank, port, results):
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the meeting place is there already, as torchrun's is
        "GLOO_SOCKET_IFNAME": "lo",
    }
    data_parallel.join()
    used, unused = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))
    loss = used.sum() * (rank + 1)
    if rank:  # what only one of them used counts for both
        loss = loss + 8 * unused.sum()
    loss.backward()
    data_parallel.average_gradients([used, unused])
    results[rank] = (
        used.grad.tolist(),
        unused.grad.tolist(),
        data_parallel.of_first(float(rank + 5)),
        data_parallel.processes(),
    )
    data_parallel.leave()


def test_two_processes_agree():
    # On whatever port is free when it is taken: one that is only looked up may be gone when it is needed.
    meeting_place = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_run, (meeting_place.port, results), nprocs=2)
        expected = ([[1.5, 1.5]] * 3, [4.0] * 4, 5.0, 2)
        assert dict(results) == {0: expected, 1: expected}


def test_alone_nothing_happens():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.sum().backward()
    data_parallel.average_gradients([weight])
    assert weight.grad.tolist() == [1.0, 1.0]
    assert (data_parallel.of_first(3.5), data_parallel.rank(), data_parallel.processes()) == (3.5, 0, 1)
    data_parallel.leave()
