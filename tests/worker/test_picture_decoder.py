"""Codes of a batch to pixels, image by image."""

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.infinity.config import VaeArchitecture
from toprovar_batch.worker.infinity.vae import Vae, to_uint8
from toprovar_batch.worker.picture_decoder import PictureDecoder

SIZES = VaeArchitecture(8, 32, (1, 1), spatial_patchify=False)


class Replays:
    """Does what a graph does: the first body of a key, over the same tensors, into the same tensors."""

    def __init__(self):
        self._bodies, self._results = {}, {}

    def run(self, key, body):
        made = self._bodies.setdefault(key, body)()
        if key not in self._results:
            self._results[key] = made
            return made
        for own, new in zip(self._results[key], made, strict=True):
            own.copy_(new)
        return self._results[key]


@pytest.fixture
def vae():
    return Vae(SIZES).requires_grad_(False)


@pytest.mark.parametrize("graphs", [None, Replays()], ids=["as it runs", "replayed"])
def test_images_of_a_batch_are_those_of_each_alone(vae, graphs):
    decoder = PictureDecoder(vae, PYTORCH, graphs)
    for height in (4, 6, 4):
        codes = torch.randn(3, 8, height, 4)
        images, finite = decoder.decode(codes)
        alone = [to_uint8(vae.decode(one[None])) for one in codes]
        assert torch.equal(images, torch.cat(alone))
        assert images.dtype == torch.uint8
        assert images.shape == (3, 2 * height, 8, 3)
        assert finite.tolist() == [True] * 3


@pytest.mark.parametrize("graphs", [None, Replays()], ids=["as it runs", "replayed"])
def test_an_image_whose_numbers_are_not_finite_is_told_apart(vae, graphs):
    codes = torch.randn(3, 8, 4, 4)
    codes[1, 0, 0, 0] = float("nan")
    assert PictureDecoder(vae, PYTORCH, graphs).decode(codes)[1].tolist() == [True, False, True]
