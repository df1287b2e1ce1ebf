"""Floor textures, filtered to the pixel's footprint so that far tiles turn to their mean instead of flickering.

Every texture maps floor coordinates (x, y), their footprints (wx, wy) and the scene's floor columns to linear RGB.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from .noise import cell_random, fractal, noise, stones

Texture = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def blend(first: Tensor, second: Tensor, amount: Tensor) -> Tensor:
    """Rows of `first` [P, 3] towards `second` by `amount` [P]."""
    return torch.lerp(first, second, amount[:, None])


def filtered_lines(x: Tensor, width: float | Tensor, footprint: Tensor) -> Tensor:
    """Part of the footprint around x that lies on lines of `width` at every integer, in [0, 1]."""
    size = footprint.clamp_min(1e-4)
    low, high = x - 0.5 * size + 0.5 * width, x + 0.5 * size + 0.5 * width

    def covered(edge: Tensor) -> Tensor:
        whole = edge.floor()
        return whole * width + (edge - whole).clamp_max(width)

    return (covered(high) - covered(low)) / size


def filtered_checker(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor) -> Tensor:
    """Part of the footprint on the second colour of a checkerboard of unit squares, in [0, 1]."""
    half_x = filtered_lines(0.5 * x, 0.5, 0.5 * wx)
    half_y = filtered_lines(0.5 * y, 0.5, 0.5 * wy)
    return half_x + half_y - 2.0 * half_x * half_y


def _fade(footprint: Tensor, limit: float) -> Tensor:
    """1 where the footprint is small, 0 where features of size `limit` would alias."""
    return (1.5 - footprint / limit).clamp(0.0, 1.0)


def _plain(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    del x, y, wx, wy
    return floor[:, :3]


def _checker(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    return blend(floor[:, :3], floor[:, 3:6], filtered_checker(x, y, wx, wy))


def _tiles(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    lines_x, lines_y = filtered_lines(x, 0.07, wx), filtered_lines(y, 0.07, wy)
    shade = (cell_random(x.floor(), y.floor(), 0) - 0.5) * 0.24 * _fade(torch.maximum(wx, wy), 1.0)
    tile = floor[:, :3] * (1.0 + shade)[:, None]
    return blend(tile, floor[:, 3:6], lines_x + lines_y - lines_x * lines_y)


def _wood(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    footprint = torch.maximum(wx, wy)
    plank = x.floor()
    along = y * 0.28 + cell_random(plank, plank * 0.0, 0) * 7.0
    board = along.floor()
    shade = (cell_random(plank, board, 1) - 0.5) * 0.45
    warp = fractal(x * 1.3 + 5.0 * shade, y * 0.35, footprint, 2)
    grain = (torch.sin((x * 5.0 + 2.6 * warp + board) * 6.283) * 0.5 + 0.5) * _fade(footprint, 0.11)
    colour = (
        blend(floor[:, :3], floor[:, 3:6], (grain * 0.42 + 0.22).clamp(0.0, 1.0)) * (1.0 + shade)[:, None]
    )
    gap = filtered_lines(x, 0.045, wx)
    ends = filtered_lines(along, 0.012, wy * 0.28)
    return colour * (1.0 - 0.75 * (gap + ends - gap * ends))[:, None]


def _grass(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    footprint = torch.sqrt(wx * wy)
    broad = fractal(x * 0.5, y * 0.5, footprint * 0.5, 2)
    blades = fractal(x * 7.0, y * 3.2, footprint * 5.0, 3)
    colour = blend(floor[:, :3], floor[:, 3:6], (0.40 + 0.5 * broad + 0.9 * blades).clamp(0.0, 1.0))
    return colour * (1.0 + 0.9 * blades).clamp(0.35, 1.6)[:, None]


def _sand(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    footprint = torch.sqrt(wx * wy)
    warp = fractal(x * 0.6, y * 0.6, footprint * 0.6, 2)
    ripple = torch.sin((y * 2.0 + x * 0.5 + 2.4 * warp) * 6.283) * 0.5 * _fade(wy, 0.28)
    grains = (noise(x * 29.0, y * 29.0) - 0.5) * _fade(footprint, 0.045)
    colour = blend(floor[:, :3], floor[:, 3:6], (0.35 + 0.35 * ripple + 0.35 * warp).clamp(0.0, 1.0))
    return colour * (1.0 + 0.42 * grains)[:, None]


def _grid(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    lines_x, lines_y = filtered_lines(x, 0.055, wx), filtered_lines(y, 0.055, wy)
    return blend(floor[:, :3], floor[:, 3:6], 0.8 * (lines_x + lines_y - lines_x * lines_y))


def _marble(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    footprint = torch.sqrt(wx * wy)
    warp = fractal(x * 0.45, y * 0.45, footprint * 0.45, 4)
    vein = (1.0 - (torch.sin((x * 0.35 + y * 0.22 + 1.5 * warp) * 6.283)).abs()) ** 5
    cloud = fractal(x * 0.8 + 9.0, y * 0.8, footprint * 0.8, 3)
    return blend(floor[:, :3], floor[:, 3:6], (0.75 * vein + 0.30 * cloud + 0.1).clamp(0.0, 1.0))


def _cobblestone(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor, floor: Tensor) -> Tensor:
    footprint = torch.sqrt(wx * wy)
    joint, shade = stones(x, y)
    stone = ((joint - 0.05) / (0.16 + footprint)).clamp(0.0, 1.0)
    grain = fractal(x * 4.0, y * 4.0, footprint * 4.0, 3)
    colour = floor[:, :3] * (0.62 + 0.7 * shade + 0.5 * grain).clamp(0.2, 1.6)[:, None]
    mean = torch.full_like(stone, 0.72)
    return blend(floor[:, 3:6], colour, torch.lerp(mean, stone, _fade(footprint, 0.7)))


FLOOR_TEXTURES: Final[tuple[Texture, ...]] = (
    _plain, _checker, _tiles, _wood, _grass, _sand, _grid, _marble, _cobblestone,
)  # fmt: skip
"""In the order of `vocab.FLOORS`."""
