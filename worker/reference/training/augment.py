"""Defects that generated pictures have and renders have not, so that the detector reads both alike.

Every defect strikes part of a batch; a quarter of it stays as rendered.
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_SPARED: Final = 0.25
_LUMA: Final = (0.299, 0.587, 0.114)
_BLOCK: Final = 8


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures with wobbly outlines, lost detail, compression, noise and drifted colours.

    Args:
        images: float32 [B, 3, H, W] in [0, 1], in random order; H and W multiples of 8.
        generator: of the device that holds the images.

    Returns:
        New pictures, float32 [B, 3, H, W] in [0, 1]; the last quarter is unchanged.
    """
    struck = len(images) - int(_SPARED * len(images))
    worse = images[:struck]
    for defect, share in ((_wobble, 0.4), (_lose_detail, 0.5), (_compress, 0.4), (_add_noise, 0.5)):
        count = round(share * struck)
        if count:
            start = int(_uniform(1, 0.0, struck - count + 1, generator).item())
            part = defect(worse[start : start + count], generator)
            worse = torch.cat((worse[:start], part, worse[start + count :]))
    return torch.cat((_drift(worse, generator).clamp(0.0, 1.0), images[struck:]))


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, device=generator.device, generator=generator) * (high - low) + low


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, device=generator.device, generator=generator)


def _wobble(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bend the pictures by up to about 2% of their side."""
    batch, _, height, width = images.shape
    amount = _uniform(batch, 0.002, 0.014, generator)[:, None, None, None]  # grid units: 2 is the whole side
    knots = int(_uniform(1, 6, 25, generator).item())
    bend = _normal((batch, 2, knots, knots), generator) * amount
    bend = functional.interpolate(bend, (height, width), mode="bicubic", align_corners=False)
    still = torch.eye(2, 3, device=images.device).expand(batch, -1, -1)
    grid = functional.affine_grid(still, [batch, 3, height, width], align_corners=False)
    return functional.grid_sample(
        images, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )


def _lose_detail(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink and enlarge again: the blur of a coarse decoder, or of a picture of half the size."""
    height, width = images.shape[-2:]
    zoom = _uniform(1, 0.3, 0.8, generator).item()
    small = functional.interpolate(
        images, (round(height * zoom), round(width * zoom)), mode="bilinear", antialias=True
    )
    return functional.interpolate(small, (height, width), mode="bilinear", align_corners=False)


@cache
def _cosines(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 8-point DCT-II matrix and the steps that JPEG would divide by, rising with frequency; both [8, 8]."""
    k = torch.arange(_BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / _BLOCK * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device), (1.0 + k[:, None] + k[None]).float().to(device)


def _compress(images: Tensor, generator: torch.Generator) -> Tensor:
    """Round the cosine coefficients of 8 x 8 blocks, as JPEG does at qualities of about 30 to 90."""
    batch, channels, height, width = images.shape
    matrix, rise = _cosines(images.device)
    steps = rise * _uniform(batch, 0.008, 0.04, generator)[:, None, None, None, None, None]
    blocks = images.view(batch, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(3, 4)
    # products with the matrix on the right alone: they fold into one large one, batched ones of 8 x 8 do not
    across = functional.linear(blocks, matrix).transpose(4, 5)
    coefficients = functional.linear(across, matrix)  # transposed, which the steps do not notice
    rounded = torch.round(coefficients / steps) * steps
    down = functional.linear(rounded, matrix.T).transpose(4, 5)
    return functional.linear(down, matrix.T).transpose(3, 4).reshape(images.shape)


def _add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grain, and blotches eight pixels wide."""
    batch, channels, height, width = images.shape
    strength = _uniform(2 * batch, 0.0, 0.04, generator).view(2, batch, 1, 1, 1)
    grain = _normal((batch, channels, height, width), generator) * strength[0]
    blotches = _normal((batch, channels, height // _BLOCK, width // _BLOCK), generator) * strength[1]
    return images + grain + functional.interpolate(blotches, scale_factor=float(_BLOCK), mode="bilinear")


def _drift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change exposure, contrast, saturation and white balance, too little to turn one colour's name into another."""
    batch = len(images)

    def factor(low: float, high: float) -> Tensor:
        return _uniform(batch, low, high, generator)[:, None, None, None]

    luma = torch.tensor(_LUMA, device=images.device)[:, None, None]
    gray = (images * luma).sum(1, keepdim=True)
    images = gray + (images - gray) * factor(0.8, 1.2)
    images = 0.5 + (images - 0.5) * factor(0.85, 1.15)
    balance = _uniform(3 * batch, 0.95, 1.05, generator).view(batch, 3, 1, 1)
    return images * balance * factor(0.88, 1.12)
