"""What stands behind the floor. Skies are functions of direction, walls of a point on the wall; both are filtered.

Every backdrop maps (x, y), the footprint w and the scene's backdrop columns to linear RGB. For skies x is the tangent
of the azimuth and y the elevation above the horizon. For walls they are world units across and above the floor.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from .floors import blend, filtered_lines
from .noise import cell_random, fractal

Backdrop = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ZENITH, HORIZON, MAIN, SECOND = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)


def _smooth(x: Tensor, low: float, high: float) -> Tensor:
    part = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return part * part * (3.0 - 2.0 * part)


def _studio(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    del w
    glow = torch.exp(-2.0 * x * x - 3.0 * y * y)
    return blend(backdrop[:, MAIN] * 0.78, backdrop[:, SECOND], 0.75 * glow)


def _sky(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    del x, w
    return blend(backdrop[:, HORIZON], backdrop[:, ZENITH], _smooth(y, -0.02, 0.24))


def _clouds(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    height = y.clamp_min(0.0) + 0.10
    across = x * 0.9 / height.sqrt() + backdrop[:, 13]
    puff = fractal(across * 2.6, y * 17.0 + backdrop[:, 14], w * 12.0, 4)
    return blend(_sky(x, y, w, backdrop), backdrop[:, SECOND], _smooth(puff, -0.02, 0.30) * 0.92)


def _sunset(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    colour = blend(backdrop[:, SECOND], backdrop[:, MAIN], _smooth(y, 0.0, 0.20))
    bands = fractal(x * 2.2 + backdrop[:, 13], y * 34.0, w * 20.0, 3)
    colour = colour * (1.0 + 0.45 * _smooth(bands, 0.05, 0.4))[:, None]
    distance = torch.hypot(x - (backdrop[:, 13] - 4.0) * 0.10, y - 0.045)
    sun = ((0.032 - distance) / w.clamp_min(1e-3) + 0.5).clamp(0.0, 1.0)
    halo = torch.exp(-12.0 * distance)
    warm = torch.tensor((1.0, 0.83, 0.42), device=x.device).expand_as(colour)
    return blend(colour + 0.35 * halo[:, None] * warm, warm * 1.05, sun)


def _night(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    colour = blend(backdrop[:, SECOND], backdrop[:, MAIN], _smooth(y, 0.0, 0.16))
    density = 34.0
    u, v = x * density, y * density
    i, j = (u + backdrop[:, 13] * 9.0).floor(), v.floor()
    du = u + backdrop[:, 13] * 9.0 - i - (0.2 + 0.6 * cell_random(i, j, 0))
    dv = v - j - (0.2 + 0.6 * cell_random(i, j, 1))
    bright = cell_random(i, j, 2)
    radius = torch.maximum(0.045 + 0.05 * bright, 0.55 * w * density)
    star = torch.exp(-(du * du + dv * dv) / (radius * radius)) * (bright > 0.35) * (0.25 + 0.75 * bright**2)
    distance = torch.hypot(x - (backdrop[:, 14] - 4.0) * 0.10, y - 0.075)
    moon = ((0.022 - distance) / w.clamp_min(1e-3) + 0.5).clamp(0.0, 1.0)
    pale = torch.tensor((0.95, 0.94, 0.85), device=x.device).expand_as(colour)
    colour = colour + star[:, None] * pale + 0.12 * torch.exp(-25.0 * distance)[:, None]
    return blend(colour, pale, moon)


def _bricks(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    scale = backdrop[:, 12]
    v = y * 3.4 * scale
    row = v.floor()
    u = x * 1.35 * scale + 0.5 * (row % 2.0)
    mortar = filtered_lines(u, 0.06, w * 1.35 * scale)
    mortar = torch.maximum(mortar, filtered_lines(v, 0.14, w * 3.4 * scale))
    shade = 0.70 + 0.55 * cell_random(u.floor(), row, 0)
    grain = fractal(x * 4.0, y * 4.0, w * 4.0, 3)
    return blend(
        backdrop[:, MAIN] * (shade + 0.5 * grain).clamp(0.2, 1.6)[:, None], backdrop[:, SECOND], mortar
    )


def _wallpaper(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    del y
    scale = 1.5 * backdrop[:, 12]
    return blend(backdrop[:, MAIN], backdrop[:, SECOND], filtered_lines(x * scale, 0.42, w * scale))


def _dots(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    scale = 1.5 * backdrop[:, 12]
    v = y * scale
    row = v.floor()
    u = x * scale + 0.5 * (row % 2.0)
    distance = torch.hypot(u - u.floor() - 0.5, v - row - 0.5)
    inside = ((0.27 - distance) / (w * scale).clamp_min(1e-3) + 0.5).clamp(0.0, 1.0)
    return blend(backdrop[:, MAIN], backdrop[:, SECOND], inside)


def _ridge(x: Tensor, w: Tensor, seed: Tensor) -> Tensor:
    return fractal(x * 3.4 + seed, seed, w * 3.4, 5)


def _mountains(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    colour = _sky(x, y, w, backdrop)
    for layer, (base, rise) in enumerate(((0.070, 0.13), (0.026, 0.075))):
        height = base + rise * _ridge(x, w, backdrop[:, 13] * 3.0 + 5.5 * layer)
        cover = ((height - y) / w.clamp_min(1e-3) + 0.5).clamp(0.0, 1.0)
        rock = blend(backdrop[:, SECOND], backdrop[:, MAIN], torch.full_like(x, 0.25 + 0.6 * layer))
        if layer == 0:  # snow on the far range
            rock = blend(rock, torch.ones_like(rock), _smooth(y - height + 0.035, 0.0, 0.025) * 0.85)
        colour = blend(colour, rock, cover)
    return colour


def _city(x: Tensor, y: Tensor, w: Tensor, backdrop: Tensor) -> Tensor:
    dusk = blend(backdrop[:, HORIZON], backdrop[:, ZENITH], _smooth(y, 0.0, 0.22))
    u = x * 15.0 + backdrop[:, 13] * 5.0
    block = u.floor()
    inside = u - block
    height = 0.025 + 0.11 * cell_random(block, block * 0.0, 0)
    cover = ((height - y) / w.clamp_min(1e-3) + 0.5).clamp(0.0, 1.0) * (inside > 0.04)
    tone = 0.75 + 0.9 * cell_random(block, block * 0.0, 1)
    wu, wv = inside * 5.0, y * 80.0
    hole = filtered_lines(wu + 0.5, 0.5, w * 75.0) * filtered_lines(wv + 0.5, 0.55, w * 80.0)
    on = (cell_random(block * 7.0 + wu.floor(), wv.floor(), 2) > 0.45).float()
    on = torch.where(w * 80.0 < 0.9, on, 0.55)
    walls = backdrop[:, MAIN] * tone[:, None]
    return blend(dusk, blend(walls, backdrop[:, SECOND], hole * on), cover)


BACKDROP_TEXTURES: Final[tuple[Backdrop, ...]] = (
    _studio, _sky, _clouds, _sunset, _night, _bricks, _wallpaper, _dots, _mountains, _city,
)  # fmt: skip
"""In the order of `vocab.BACKDROPS`."""
