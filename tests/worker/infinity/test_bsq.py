"""Codes, their layout, and the residual sum."""

import pytest
import torch

from toprovar_batch.worker.infinity.bsq import (
    ResidualSum,
    bits_to_codes,
    code_maps_to_tokens,
    quantize,
    tokens_to_bit_maps,
)
from toprovar_batch.worker.infinity.schedule import scale_schedule


def test_patchified_channels_are_pixel_shuffled():
    tokens = torch.arange(1 * 2 * 8).reshape(1, 2, 8)  # one row of two tokens, z = 2
    maps = tokens_to_bit_maps(tokens, (1, 2), spatial_patchify=True)
    assert maps.shape == (1, 2, 2, 4)
    for channel in range(2):
        for i in range(2):
            for j in range(2):
                assert maps[0, channel, i, j] == tokens[0, 0, 4 * channel + 2 * i + j]
                assert maps[0, channel, i, 2 + j] == tokens[0, 1, 4 * channel + 2 * i + j]


@pytest.mark.parametrize("spatial_patchify", [False, True])
def test_maps_and_tokens_are_each_others_inverse(spatial_patchify):
    tokens = torch.rand(3, 20, 8)
    maps = tokens_to_bit_maps(tokens, (4, 5), spatial_patchify)
    assert torch.equal(code_maps_to_tokens(maps, spatial_patchify), tokens)


def test_codes_lie_on_the_unit_sphere():
    codes = bits_to_codes(torch.rand(2, 14, 3, 3) > 0.5)
    assert torch.allclose(codes.norm(dim=1), torch.ones(2, 3, 3))


@pytest.mark.parametrize("spatial_patchify", [False, True])
def test_quantising_more_scales_comes_closer(spatial_patchify):
    schedule = scale_schedule(1.25, "0.06M")
    size = [side * (2 if spatial_patchify else 1) for side in schedule[-1]]
    features = torch.nn.functional.interpolate(torch.randn(2, 16, 5, 4), size, mode="bicubic") * 0.5
    bits = quantize(features, schedule, spatial_patchify)
    total = ResidualSum(schedule, 2, 16, spatial_patchify, features.device)
    errors = []
    for scale_index, maps in enumerate(bits):
        total.add(scale_index, maps)
        errors.append((features - total.summed_codes).square().mean().item())
    assert errors[-1] < 0.25 * errors[0]
    assert errors[:4] == sorted(errors[:4], reverse=True)
