"""Resizing of maps, of one image as of many."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize(maps: Tensor, size: tuple[int, int], mode: Literal["area", "bilinear"]) -> Tensor:
    """Resize [B, C, H, W] maps to [B, C, *size]; corners are not aligned.

    PyTorch has two kernels, which round differently on a GPU, and tells from the strides which one it takes. The stride
    from image to image may be anything where there is one image alone. So it is set to what it is among many.
    """
    align_corners = False if mode == "bilinear" else None
    return interpolate(with_own_strides(maps), size, mode=mode, align_corners=align_corners)


def with_own_strides(maps: Tensor) -> Tensor:
    """The same [B, C, H, W] maps with the strides of their memory format, also along dimensions of one element."""
    _, channels, height, width = maps.shape
    whole = channels * height * width
    if maps.is_contiguous():
        return maps.as_strided(maps.shape, (whole, height * width, width, 1))
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.as_strided(maps.shape, (whole, 1, width * channels, channels))
    return maps
