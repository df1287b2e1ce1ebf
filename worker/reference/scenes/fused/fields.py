"""Signed distances of the shapes in their own space, and where a ray enters a box."""

import math

import triton
import triton.language as tl

from .numbers import clamp, length2, length3, saturate

_CONE_SLOPE = tl.constexpr(math.hypot(1.82, 0.84))
_PYRAMID_SLOPE = tl.constexpr(math.hypot(1.6, 0.92))
_DIAMOND_SLOPE = tl.constexpr(1.0 / math.sqrt(2.0 + 0.8 * 0.8))
_FIFTH = 2.0 * math.pi / 5.0
_COS36 = tl.constexpr(math.cos(_FIFTH / 2))
_SIN36 = tl.constexpr(math.sin(_FIFTH / 2))
_STAR_X = tl.constexpr(0.42 * math.sin(_FIFTH / 2))
_STAR_Y = tl.constexpr(0.42 * math.cos(_FIFTH / 2) - 1.0)
_STAR_EDGE = tl.constexpr(1.0 / math.hypot(0.42 * math.sin(_FIFTH / 2), 0.42 * math.cos(_FIFTH / 2) - 1.0))


@triton.jit
def _box(x, y, z, hx, hy, hz, rounding):
    dx, dy, dz = tl.abs(x) - (hx - rounding), tl.abs(y) - (hy - rounding), tl.abs(z) - (hz - rounding)
    inside = tl.minimum(tl.maximum(dx, tl.maximum(dy, dz)), 0.0)
    return length3(tl.maximum(dx, 0.0), tl.maximum(dy, 0.0), tl.maximum(dz, 0.0)) + inside - rounding


@triton.jit
def _extrude(flat, z, half, rounding):
    dx, dz = flat + rounding, tl.abs(z) - (half - rounding)
    return length2(tl.maximum(dx, 0.0), tl.maximum(dz, 0.0)) + tl.minimum(tl.maximum(dx, dz), 0.0) - rounding


@triton.jit
def _cone(x, y, z):
    across, height = length2(x, z), y + 0.91
    side = (across * 1.82 + height * 0.84 - 1.5288) / _CONE_SLOPE
    where = saturate(((across - 0.84) * -0.84 + height * 1.82) / (_CONE_SLOPE * _CONE_SLOPE))
    to_side = length2(across - 0.84 * (1.0 - where), height - 1.82 * where)
    to_base = length2(tl.maximum(across - 0.84, 0.0), height)
    deepest = tl.maximum(side, -height)
    return tl.where(deepest < 0.0, deepest, tl.minimum(to_side, to_base)) - 0.04


@triton.jit
def _soft_abs(x):
    return tl.sqrt(x * x + 0.0012)


@triton.jit
def _pyramid(x, y, z):
    x, z = _soft_abs(x), _soft_abs(z)
    high, low = tl.maximum(x, z), tl.minimum(x, z)
    ridge = tl.maximum(0.06 - (high - low), 0.0)
    high = high + ridge * ridge * 4.0
    return tl.maximum((high * 1.6 + (y - 0.80) * 0.92) / _PYRAMID_SLOPE, -0.80 - y)


@triton.jit
def _star(x, y, z):
    x, y = tl.abs(x), y - 0.045
    reach = length2(x, y)
    # mirrored at 36 and 108 degrees from the top: the same fold as by angles
    over = 2.0 * tl.maximum(x * _COS36 - y * _SIN36, 0.0)
    x, y = x - over * _COS36, y + over * _SIN36
    over = 2.0 * tl.maximum(-x * _COS36 - y * _SIN36, 0.0)
    x, y = tl.abs(x + over * _COS36), y + over * _SIN36
    side = (x * -_STAR_Y + (y - 1.0) * _STAR_X) * _STAR_EDGE
    thickness = 0.24 * tl.maximum(1.0 - 0.62 * reach, 0.2)
    return tl.maximum(side * 0.85, (tl.abs(z) - thickness) * 0.85) - 0.01


@triton.jit
def _cage_edge(a, b, c):
    outside = length3(tl.maximum(a, 0.0), tl.maximum(b, 0.0), tl.maximum(c, 0.0))
    return outside + tl.minimum(tl.maximum(a, tl.maximum(b, c)), 0.0)


@triton.jit
def _cage(x, y, z):
    x, y, z = tl.abs(x) - 0.86, tl.abs(y) - 0.86, tl.abs(z) - 0.86
    qx, qy, qz = tl.abs(x + 0.055) - 0.055, tl.abs(y + 0.055) - 0.055, tl.abs(z + 0.055) - 0.055
    return tl.minimum(_cage_edge(x, qy, qz), tl.minimum(_cage_edge(qx, y, qz), _cage_edge(qx, qy, z)))


@triton.jit
def _nearest_bar(x, spacing, count):
    shift = 0.5 * (count - 1.0)
    return x - (clamp(tl.floor(x / spacing + shift + 0.5), 0.0, count - 1.0) - shift) * spacing


@triton.jit
def _fence(x, y, z):
    picket = tl.abs(_nearest_bar(x, 0.36, 9.0))
    top = 0.72 - picket * 0.9
    pickets = _box(picket, (y + 0.04) - (top - 0.68) * 0.5, z - 0.03, 0.10, 0.70, 0.04, 0.01) * 0.85
    return tl.minimum(pickets, _box(x, tl.abs(y) - 0.32, z + 0.045, 1.50, 0.07, 0.035, 0.01))


@triton.jit
def _lattice(x, y, z):
    upright = length3(_nearest_bar(x, 0.27, 9.0), tl.maximum(tl.abs(y) - 0.91, 0.0), z)
    level = length3(_nearest_bar(y, 0.26, 8.0), tl.maximum(tl.abs(x) - 1.06, 0.0), z)
    return tl.minimum(upright, level) - 0.034


@triton.jit
def _pole(x, y, z):
    across = length2(x, z)
    stick = _extrude(across - 0.06, y, 1.30, 0.01)
    foot = _extrude(across - 0.28, y + 1.30, 0.05, 0.02)
    return tl.minimum(tl.minimum(stick, foot), length3(x, y - 1.15, z) - 0.20)


@triton.jit
def _sign(x, y, z):
    board = _box(x, y - 0.38, z + 0.07, 0.86, 0.67, 0.06, 0.03)
    post = _extrude(length2(x, z - 0.04) - 0.07, y + 0.15, 0.88, 0.01)
    foot = _extrude(length2(x, z) - 0.28, y + 1.0, 0.05, 0.02)
    return tl.minimum(tl.minimum(board, post), foot)


@triton.jit
def _card(x, y, z):
    dx, dy = tl.abs(x) - 0.60, tl.abs(y) - 0.82
    flat = length2(tl.maximum(dx, 0.0), tl.maximum(dy, 0.0)) + tl.minimum(tl.maximum(dx, dy), 0.0) - 0.10
    return _extrude(flat, z, 0.06, 0.02)


@triton.jit
def field(shape, x, y, z):
    """Signed distance to the shape of that (scalar) index in `vocab.SHAPES`."""
    gap = x
    if shape < 8:
        if shape < 4:
            if shape < 2:
                if shape == 0:
                    gap = length3(x, y, z) - 1.0
                else:
                    gap = _box(x, y, z, 0.80, 0.80, 0.80, 0.07)
            else:
                if shape == 2:
                    gap = _extrude(length2(x, z) - 0.72, y, 0.86, 0.06)
                else:
                    gap = _cone(x, y, z)
        else:
            if shape < 6:
                if shape == 4:
                    gap = length2(length2(x, z) - 0.73, y) - 0.27
                else:
                    gap = length3(x, tl.maximum(tl.abs(y) - 0.53, 0.0), z) - 0.47
            else:
                if shape == 6:
                    gap = _pyramid(x, y, z)
                else:
                    gap = (_soft_abs(x) + _soft_abs(y) * 0.80 + _soft_abs(z) - 0.90) * _DIAMOND_SLOPE
    else:
        if shape < 12:
            if shape < 10:
                if shape == 8:
                    gap = _star(x, y, z)
                else:
                    gap = _cage(x, y, z)
            else:
                if shape == 10:
                    gap = _fence(x, y, z)
                else:
                    gap = _lattice(x, y, z)
        else:
            if shape == 12:
                gap = _pole(x, y, z)
            else:
                if shape == 13:
                    gap = _sign(x, y, z)
                else:
                    gap = _card(x, y, z)
    return gap


@triton.jit
def _slab(o, d, half):
    inverse = 1.0 / tl.where(tl.abs(d) < 1e-6, 1e-6, d)
    middle, reach = -o * inverse, tl.abs(inverse) * half
    return middle - reach, middle + reach


@triton.jit
def enter_box(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """Distances at which rays enter and leave a box around 0."""
    x0, x1 = _slab(ox, dx, hx)
    y0, y1 = _slab(oy, dy, hy)
    z0, z1 = _slab(oz, dz, hz)
    near = tl.maximum(tl.maximum(x0, 0.0), tl.maximum(y0, z0))
    return near, tl.minimum(x1, tl.minimum(y1, z1))
