"""Small tileable tables behind every texture: smooth noise, stone cells, random cells and the digits.

Tables are made once by numpy from fixed seeds and sampled bilinearly by `grid_sample`, one fast call on CPU and GPU.
"""

from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LATTICE: Final = 32
"""Noise cells along one side of the noise table, which repeats after that many units."""
_SIDE: Final = 256
_STONES: Final = 14
GLYPH_HALF: Final = (0.62, 1.0)
"""Half width and height of a digit in the units of `digit_distance`."""


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> list[tuple[float, float]]:
    angles = np.linspace(np.radians(start), np.radians(stop), 20)
    return [(float(x + rx * np.cos(a)), float(y + ry * np.sin(a))) for a in angles]


def _strokes() -> list[list[list[tuple[float, float]]]]:
    """Polylines of the digits 0 to 9 in the box [-0.45, 0.45] x [-0.8, 0.8], y up."""
    return [
        [_arc(0, 0, 0.45, 0.8, 0, 360)],
        [[(-0.28, 0.5), (0.08, 0.8), (0.08, -0.8)], [(-0.3, -0.8), (0.42, -0.8)]],
        [[*_arc(0, 0.36, 0.44, 0.44, 160, -35), (-0.45, -0.8), (0.47, -0.8)]],
        [[*_arc(-0.02, 0.40, 0.42, 0.40, 150, -90), *_arc(-0.02, -0.40, 0.46, 0.42, 90, -150)]],
        [[(0.22, -0.8), (0.22, 0.8), (-0.47, -0.3), (0.5, -0.3)]],
        [[(0.42, 0.8), (-0.36, 0.8), (-0.40, 0.12), *_arc(-0.02, -0.26, 0.47, 0.54, 125, -145)]],
        [[*_arc(0.02, 0.34, 0.47, 0.46, 50, 180), (-0.45, -0.3)], _arc(0, -0.32, 0.45, 0.48, 0, 360)],
        [[(-0.45, 0.8), (0.45, 0.8), (-0.12, -0.8)]],
        [_arc(0, 0.42, 0.37, 0.38, 0, 360), _arc(0, -0.38, 0.45, 0.42, 0, 360)],
        [
            _arc(0, 0.32, 0.45, 0.48, 0, 360),
            [(0.45, 0.32), (0.45, 0.1), *_arc(-0.02, -0.34, 0.47, 0.46, 0, -130)],
        ],
    ]


def _noise_table() -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(11))
    lattice = rng.random((LATTICE, LATTICE))
    grid = np.arange(_SIDE) * (LATTICE / _SIDE)
    low = grid.astype(int)
    step = grid - low
    step = step * step * (3.0 - 2.0 * step)
    high = (low + 1) % LATTICE
    rows = lattice[low] * (1 - step)[:, None] + lattice[high] * step[:, None]
    return np.asarray(rows[:, low] * (1 - step) + rows[:, high] * step)


def _stone_tables() -> tuple[np.ndarray, np.ndarray]:
    """Distance to the joint between stones, and a random shade per stone, both over one repeat of the pattern."""
    rng = np.random.Generator(np.random.PCG64(12))
    cells = np.stack(np.meshgrid(np.arange(_STONES), np.arange(_STONES), indexing="ij"), -1).reshape(-1, 2)
    centres = (cells + 0.5 + (rng.random(cells.shape) - 0.5) * 0.62) / _STONES
    shades = rng.random(len(centres))
    axis = (np.arange(_SIDE)) / _SIDE
    distance = np.empty((_SIDE, _SIDE, 2))
    shade = np.empty((_SIDE, _SIDE))
    for row, y in enumerate(axis):
        dy = np.abs(centres[:, 0] - y)
        dx = np.abs(centres[:, 1][None] - axis[:, None])
        squared = np.minimum(dy, 1 - dy)[None] ** 2 + np.minimum(dx, 1 - dx) ** 2  # [side, stones]
        nearest = np.argpartition(squared, 1, axis=1)[:, :2]
        two = np.sqrt(np.take_along_axis(squared, nearest, 1)) * _STONES
        first = nearest[np.arange(_SIDE), two.argmin(1)]
        distance[row] = np.sort(two, 1)
        shade[row] = shades[first]
    return distance[..., 1] - distance[..., 0], shade


def _glyph_table() -> np.ndarray:
    """Distance from each texel to the strokes of each digit: [10, 64, 40]."""
    height, width = 64, 40
    ys = np.linspace(GLYPH_HALF[1], -GLYPH_HALF[1], height)
    xs = np.linspace(-GLYPH_HALF[0], GLYPH_HALF[0], width)
    point = np.stack(np.meshgrid(xs, ys), -1)[..., None, :]  # [height, width, 1, 2]
    table = []
    for strokes in _strokes():
        starts = np.concatenate([np.asarray(line[:-1]) for line in strokes])
        ends = np.concatenate([np.asarray(line[1:]) for line in strokes])
        along = ends - starts
        offset = point - starts
        where = np.clip((offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
        table.append(np.sqrt(((offset - along * where[..., None]) ** 2).sum(-1)).min(-1))
    return np.stack(table)


@cache
def tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tileable textures [1, 3, side + 1, side + 1], digits [1, 1, 640, 40], random cells [4, 4096]."""
    planes = np.stack([_noise_table(), *_stone_tables()])
    planes = np.pad(planes, ((0, 0), (0, 1), (0, 1)), mode="wrap")
    cells = np.random.Generator(np.random.PCG64(13)).random((4, 4096))
    return (
        torch.from_numpy(planes).float()[None].to(device),
        torch.from_numpy(_glyph_table()).float().reshape(1, 1, -1, 40).to(device),
        torch.from_numpy(cells).float().to(device),
    )


def _lookup(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples [C, P] of table [1, C, h, w] at x, y in [-1, 1], flat [P]."""
    grid = torch.stack((x, y), dim=-1)[None, :, None]  # [1, P, 1, 2]
    return functional.grid_sample(table, grid, align_corners=True, padding_mode="border")[0, :, :, 0]


def noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in [0, 1] with one feature a unit, repeating after `LATTICE` units; x, y flat [P]."""
    table = tables(x.device)[0][:, :1]
    return _lookup(table, _wrap(x / LATTICE), _wrap(y / LATTICE))[0]


def fractal(x: Tensor, y: Tensor, footprint: Tensor, octaves: int) -> Tensor:
    """Sum of `octaves` noises of doubling frequency, in [-1, 1] about 0; octaves finer than a pixel fade out."""
    total = torch.zeros_like(x)
    weight = 0.5
    for octave in range(octaves):
        step = 2.0**octave
        sharp = (1.6 - 1.6 * footprint * step).clamp(0.0, 1.0)
        total += weight * sharp * (2.0 * noise(x * step + 7.3 * octave, y * step + 3.1 * octave) - 1.0)
        weight *= 0.5
    return total


def stones(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the joint, in stone widths, and a shade in [0, 1] of the stone under x, y; one stone a unit."""
    table = tables(x.device)[0][:, 1:]
    found = _lookup(table, _wrap(x / _STONES), _wrap(y / _STONES))
    return found[0], found[1]


def _wrap(x: Tensor) -> Tensor:
    return (x - x.floor()) * 2.0 - 1.0


def cell_random(i: Tensor, j: Tensor, channel: int) -> Tensor:
    """A fixed random number in [0, 1] for the integer cell (i, j), given as float tensors; `channel` in 0..3."""
    index = (i.long() * 57 + j.long() * 113 + (i.long() * j.long()) % 31 * 7) % 4096
    return tables(i.device)[2][channel][index]


def digit_distance(digit: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance from x, y to the stroke of `digit` (integers 0..9); the digit fills `GLYPH_HALF`. All flat [P]."""
    table = tables(x.device)[1]
    inside_y = (1.0 - y / GLYPH_HALF[1]).clamp(0.0, 2.0) * 31.5  # texel row within the digit
    row = digit.float() * 64.0 + inside_y
    outside = (x.abs() - GLYPH_HALF[0]).clamp_min(0.0) + (y.abs() - GLYPH_HALF[1]).clamp_min(0.0)
    return _lookup(table, (x / GLYPH_HALF[0]).clamp(-1, 1), row / 639.0 * 2.0 - 1.0)[0] + outside
