"""Muon over stacked matrices against PyTorch's, which takes them one by one."""

import pytest
import torch

from toprovar_batch.worker.reference.training.muon import Muon, orthogonalize

SHAPES = ((8, 24), (24, 8), (8, 24), (16, 16))


def _parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_its_steps_are_those_of_pytorch():
    ours, theirs, start = _parameters(), _parameters(), _parameters()
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    torch.manual_seed(1)
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, two, first in zip(ours, theirs, start, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
        assert not torch.allclose(one, first, atol=1e-2)


def test_a_matrix_without_gradient_stays():
    ours, start = _parameters(), _parameters()
    ours[0].grad = torch.ones_like(ours[0])
    Muon(ours, lr=0.1).step()
    assert not torch.equal(ours[0], start[0])
    assert all(torch.equal(one, first) for one, first in zip(ours[1:], start[1:], strict=True))


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_singular_values_come_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.manual_seed(0))).float())
    assert values.min() > 0.5
    assert values.max() < 1.5
