"""Maps are resized by one kernel, whether there is one image or many."""

import pytest
import torch
from torch.nn.functional import interpolate

from toprovar_batch.worker.infinity import resize as module
from toprovar_batch.worker.infinity.bsq import ResidualSum, tokens_to_bit_maps
from toprovar_batch.worker.infinity.resize import resize, with_own_strides

SCHEDULE = ((1, 1), (2, 2), (4, 4), (8, 8))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["area", "bilinear"])
def test_the_values_are_those_of_pytorch(memory_format, mode):
    maps = torch.randn(2, 8, 6, 6).contiguous(memory_format=memory_format)
    options = {"align_corners": False} if mode == "bilinear" else {}
    assert torch.equal(resize(maps, (4, 4), mode), interpolate(maps, (4, 4), mode=mode, **options))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_image_has_the_strides_of_many(memory_format):
    many = torch.randn(3, 8, 6, 6).contiguous(memory_format=memory_format)
    one = many[:1].as_strided((1, 8, 6, 6), (1, *many.stride()[1:]))
    assert with_own_strides(one).stride() == many.stride()
    assert torch.equal(with_own_strides(one), many[:1])


def test_maps_that_lie_otherwise_are_left_alone():
    maps = torch.randn(2, 6, 6, 8).permute(0, 3, 2, 1)
    assert with_own_strides(maps) is maps


def test_codes_of_one_image_are_resized_as_those_of_many(monkeypatch):
    """On a GPU the kernels for the two memory formats round differently, and the strides decide between them."""

    def strides(batch):
        seen = []
        monkeypatch.setattr(
            module,
            "interpolate",
            lambda maps, *size, **options: seen.append(maps.stride()) or interpolate(maps, *size, **options),
        )
        codes = ResidualSum(SCHEDULE, batch, 8, False, torch.device("cpu"))
        for scale_index, scale in enumerate(SCHEDULE):
            codes.tokens(scale_index)
            bits = torch.rand(batch, scale[0] * scale[1], 8) > 0.5
            codes.add(scale_index, tokens_to_bit_maps(bits, scale, False))
        return seen

    assert strides(1) == strides(2)
