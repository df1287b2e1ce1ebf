"""Signed distances to the shapes, each in its own frame (see `vocab.SHAPES`). Flat float tensors in, same shape out.

Where a true distance is costly, a lower bound is returned: sphere tracing stays correct and takes a few steps more.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from .vocab import SHAPE_NAMES

Field = Callable[[Tensor, Tensor, Tensor], Tensor]


def _length(*parts: Tensor) -> Tensor:
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = torch.addcmul(total, part, part)
    return total.sqrt_()


def _box(x: Tensor, y: Tensor, z: Tensor, half: tuple[float, float, float], rounding: float) -> Tensor:
    dx, dy, dz = (p.abs() - (h - rounding) for p, h in zip((x, y, z), half, strict=True))
    inside = torch.maximum(dx, torch.maximum(dy, dz)).clamp_max(0.0)
    return _length(dx.clamp_min(0.0), dy.clamp_min(0.0), dz.clamp_min(0.0)) + inside - rounding


def _rectangle(x: Tensor, y: Tensor, half_x: float, half_y: float, rounding: float) -> Tensor:
    dx, dy = x.abs() - (half_x - rounding), y.abs() - (half_y - rounding)
    return _length(dx.clamp_min(0.0), dy.clamp_min(0.0)) + torch.maximum(dx, dy).clamp_max(0.0) - rounding


def _extrude(flat: Tensor, z: Tensor, half_z: float, rounding: float) -> Tensor:
    dx, dz = flat + rounding, z.abs() - (half_z - rounding)
    return _length(dx.clamp_min(0.0), dz.clamp_min(0.0)) + torch.maximum(dx, dz).clamp_max(0.0) - rounding


def _sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _length(x, y, z) - 1.0


def _cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _box(x, y, z, (0.80, 0.80, 0.80), 0.07)


def _cylinder(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _extrude(_length(x, z) - 0.72, y, 0.86, 0.06)


def _cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    rounding, radius, half = 0.04, 0.84, 0.91
    across, height = _length(x, z), y + half
    slope = math.hypot(2.0 * half, radius)
    side = (across * (2.0 * half) + height * radius - 2.0 * half * radius) / slope  # along the side's normal
    # the nearest point of the side's segment, so that the tip and the rim are round
    where = ((across - radius) * -radius + height * 2.0 * half) / slope**2
    where = where.clamp(0.0, 1.0)
    to_side = _length(across - radius * (1.0 - where), height - 2.0 * half * where)
    to_base = _length((across - radius).clamp_min(0.0), height)
    outside = torch.minimum(to_side, to_base)
    deepest = torch.maximum(side, -height)
    return torch.where(deepest < 0.0, deepest, outside) - rounding


def _ring(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _length(_length(x, z) - 0.73, y) - 0.27


def _capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _length(x, (y.abs() - 0.53).clamp_min(0.0), z) - 0.47


def _soft_abs(x: Tensor) -> Tensor:
    return torch.addcmul(torch.full_like(x, 0.0012), x, x).sqrt_()


def _pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    height, half = 1.6, 0.92
    slope = math.hypot(height, half)
    x, z = _soft_abs(x), _soft_abs(z)
    high, low = torch.maximum(x, z), torch.minimum(x, z)
    ridge = (0.06 - (high - low)).clamp_min(0.0)
    high = high + ridge * ridge * 4.0  # rounds the four edges
    side = (high * height + (y - 0.80) * half) / slope
    return torch.maximum(side, -0.80 - y)


def _diamond(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    tall = 0.80
    flat = _soft_abs(x) + _soft_abs(y) * tall + _soft_abs(z) - 0.90
    return flat / math.sqrt(2.0 + tall * tall)


def _star(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    outer, inner = 1.0, 0.42
    x, y = x.abs(), y - 0.045
    # fold the plane five times, then measure against the one edge that is left
    sector = torch.atan2(x, y)
    fifth = 2.0 * math.pi / 5.0
    sector = (sector - fifth * torch.round(sector / fifth)).abs()
    reach = _length(x, y)
    px, py = reach * sector.sin(), reach * sector.cos()
    ex, ey = inner * math.sin(fifth / 2), inner * math.cos(fifth / 2) - outer
    side = (px * -ey + (py - outer) * ex) / math.hypot(ex, ey)  # positive outside
    thickness = 0.24 * (1.0 - 0.62 * reach).clamp_min(0.2)
    return torch.maximum(side * 0.85, (z.abs() - thickness) * 0.85) - 0.01


def _cage(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    half, bar = 0.86, 0.055
    x, y, z = x.abs() - half, y.abs() - half, z.abs() - half
    qx, qy, qz = (x + bar).abs() - bar, (y + bar).abs() - bar, (z + bar).abs() - bar

    def edge(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        outside = _length(a.clamp_min(0.0), b.clamp_min(0.0), c.clamp_min(0.0))
        return outside + torch.maximum(a, torch.maximum(b, c)).clamp_max(0.0)

    return torch.minimum(edge(x, qy, qz), torch.minimum(edge(qx, y, qz), edge(qx, qy, z)))


def _nearest_bar(x: Tensor, spacing: float, count: int) -> Tensor:
    """Offset from the nearest of `count` bars at multiples of `spacing`, centred on 0."""
    shift = 0.5 * (count - 1)
    return x - ((x / spacing + shift).round().clamp(0, count - 1) - shift) * spacing


def _fence(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    picket = _nearest_bar(x, 0.36, 9).abs()
    top = 0.72 - picket * 0.9
    pickets = _box(picket, (y + 0.04) - (top - 0.68) * 0.5, z - 0.03, (0.10, 0.70, 0.04), 0.01) * 0.85
    rails = _box(x, y.abs() - 0.32, z + 0.045, (1.50, 0.07, 0.035), 0.01)
    return torch.minimum(pickets, rails)


def _lattice(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    upright = _length(_nearest_bar(x, 0.27, 9), (y.abs() - 0.91).clamp_min(0.0), z)
    level = _length(_nearest_bar(y, 0.26, 8), (x.abs() - 1.06).clamp_min(0.0), z)
    return torch.minimum(upright, level) - 0.034


def _pole(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    stick = _extrude(_length(x, z) - 0.06, y, 1.30, 0.01)
    foot = _extrude(_length(x, z) - 0.28, y + 1.30, 0.05, 0.02)
    return torch.minimum(torch.minimum(stick, foot), _length(x, y - 1.15, z) - 0.20)


def _sign(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    board = _box(x, y - 0.38, z + 0.07, (0.86, 0.67, 0.06), 0.03)
    post = _extrude(_length(x, z - 0.04) - 0.07, y + 0.15, 0.88, 0.01)
    foot = _extrude(_length(x, z) - 0.28, y + 1.0, 0.05, 0.02)
    return torch.minimum(torch.minimum(board, post), foot)


def _card(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return _extrude(_rectangle(x, y, 0.70, 0.92, 0.10), z, 0.06, 0.02)


_BY_NAME: Final[dict[str, Field]] = {
    "sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone, "ring": _ring, "capsule": _capsule,
    "pyramid": _pyramid, "diamond": _diamond, "star": _star, "cage": _cage, "fence": _fence, "lattice": _lattice,
    "pole": _pole, "sign": _sign, "card": _card,
}  # fmt: skip
FIELDS: Final[tuple[Field, ...]] = tuple(_BY_NAME[name] for name in SHAPE_NAMES)
"""Distance functions in the order of `vocab.SHAPES`."""
_TETRAHEDRON: Final = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


def normal(
    field: Field, x: Tensor, y: Tensor, z: Tensor, step: float = 0.004
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit normal of the field at x, y, z, from four samples around the point."""
    total = [torch.zeros_like(x) for _ in range(3)]
    for corner in _TETRAHEDRON:
        value = field(x + corner[0] * step, y + corner[1] * step, z + corner[2] * step)
        for axis in range(3):
            total[axis] += corner[axis] * value
    scale = _length(*total).clamp_min_(1e-12).reciprocal_()
    return total[0] * scale, total[1] * scale, total[2] * scale
