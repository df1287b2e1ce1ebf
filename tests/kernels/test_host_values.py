"""Small numbers between the host and the device."""

import torch

from toprovar_batch.kernels.host_values import to_host


def test_tensors_of_any_shape_and_kind_come_back_under_their_names():
    counts = torch.tensor([[1, 2**40 + 1], [0, -3]])
    ratios = torch.tensor([0.1, float("nan")])
    found = to_host({"ratios": ratios, "counts": counts.mT, "none": torch.zeros(0, 3)})
    assert found["counts"].long().tolist() == counts.mT.tolist()
    assert found["ratios"][0].item() == ratios[0].item()
    assert found["ratios"].isnan().tolist() == [False, True]
    assert found["none"].shape == (0, 3)


def test_nothing_asked_for_is_nothing():
    assert to_host({}) == {}
