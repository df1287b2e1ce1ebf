"""Binary spherical codes: bits, the residual sum over scales, and the inputs they give to the next scale."""

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .resize import resize
from .schedule import ScaleSchedule


def code_size(scale: tuple[int, int], spatial_patchify: bool) -> tuple[int, int]:
    """(height, width) of a scale's code map: twice its token map with spatial patchify."""
    factor = 2 if spatial_patchify else 1
    return scale[0] * factor, scale[1] * factor


def tokens_to_bit_maps(bits: Tensor, scale: tuple[int, int], spatial_patchify: bool) -> Tensor:
    """[B, L, D] bits of tokens to [B, z, H, W] bit maps (PyTorch's pixel shuffle with spatial patchify)."""
    maps = bits.mT.unflatten(-1, scale)
    return pixel_shuffle(maps, 2) if spatial_patchify else maps


def code_maps_to_tokens(maps: Tensor, spatial_patchify: bool) -> Tensor:
    """[B, z, H, W] maps to [B, L, D] tokens; the inverse of `tokens_to_bit_maps`."""
    return (pixel_unshuffle(maps, 2) if spatial_patchify else maps).flatten(2).mT


def bits_to_codes(bit_maps: Tensor) -> Tensor:
    """[B, z, H, W] bits to points on the unit sphere: (2b - 1) / sqrt(z), float32."""
    return (bit_maps.float() * 2 - 1) / bit_maps.shape[1] ** 0.5


class ResidualSum:
    """The sum of all scales' codes at the size of the last one.

    Attributes:
        summed_codes: [B, z, H, W] float32, zero before the first scale.
    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        batch: int,
        codebook_dim: int,
        spatial_patchify: bool,
        device: torch.device,
        storage: Tensor | None = None,
    ) -> None:
        """Start with zeros, in `storage` ([B, z, H, W] float32, channels last, zero) where it is given."""
        self._sizes = [code_size(scale, spatial_patchify) for scale in schedule]
        self._spatial_patchify = spatial_patchify
        # PyTorch's resizing gives a GPU one thread per pixel, unless the channels come last.
        if storage is None:
            storage = torch.zeros(batch, codebook_dim, *self._sizes[-1], device=device).contiguous(
                memory_format=torch.channels_last
            )
        self.summed_codes = storage

    def add(
        self,
        scale_index: int,
        bit_maps: Tensor,
        prompts: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Add a scale's codes, upsampled bilinearly to the last scale's size.

        Args:
            scale_index: counted from 0.
            bit_maps: [P, z, h, w] bits.
            prompts: [P] int64, whose they are; None: all B prompts'.
            counted: [P, z, h, w] bool, which codes count; the others are 0. None: all.
        """
        codes = bits_to_codes(bit_maps).contiguous(memory_format=torch.channels_last)
        if counted is not None:
            codes = codes * counted
        if scale_index < len(self._sizes) - 1:
            codes = resize(codes, self._sizes[-1], "bilinear")
        if prompts is None:
            self.summed_codes += codes
        else:
            self.summed_codes.index_add_(0, prompts, codes)

    def tokens(self, scale_index: int) -> Tensor:
        """The sum resized to a scale: the [B, L, D] input of the transformer there."""
        size = self._sizes[scale_index]
        return code_maps_to_tokens(resize(self.summed_codes, size, "bilinear"), self._spatial_patchify)


def quantize(features: Tensor, schedule: ScaleSchedule, spatial_patchify: bool) -> list[Tensor]:
    """Bits of every scale by residual quantisation: what is left is area-resized to each scale, its signs kept.

    Args:
        features: [B, z, H, W] encoder output at the last scale's code size.
        schedule: token map sizes, coarse to fine.
        spatial_patchify: whether code maps are twice the token maps.

    Returns:
        For each scale a bool [B, z, h, w].
    """
    total = ResidualSum(schedule, features.shape[0], features.shape[1], spatial_patchify, features.device)
    bit_maps = []
    for scale_index, scale in enumerate(schedule):
        residual = features.float() - total.summed_codes
        bits = resize(residual, code_size(scale, spatial_patchify), "area") > 0
        total.add(scale_index, bits)
        bit_maps.append(bits)
    return bit_maps
