"""What stands on a surface: patterns and digits."""

import triton
import triton.language as tl

from .numbers import (
    arcsin,
    arctan2,
    clamp,
    digit_distance,
    dot_pattern,
    filtered_checker,
    filtered_lines,
    fractal,
    length2,
    noise,
    saturate,
    sine,
)


@triton.jit
def pattern_amount(kind, shape, planes, frequency, x, y, z, nx, ny, nz, w):
    """How much of the accent colour the pattern of that (scalar) kind shows."""
    amount = x * 0.0
    if (kind == 2) | (kind == 3):
        ax, ay, az = tl.abs(nx), tl.abs(ny), tl.abs(nz)
        sideways = (ax > az) & (ax >= ay)
        u = tl.where(sideways, z, x)
        v = tl.where((ay > ax) & (ay > az), z, y)
        if (shape == 0) | ((shape >= 2) & (shape <= 5)) | (shape == 12):
            angle = arctan2(x, -z) * (6.0 / 3.14159265358979 * 0.5)
            if shape == 0:
                u, v = angle, arcsin(clamp(y, -1.0, 1.0))
            elif shape == 4:
                u, v = angle, arctan2(y, length2(x, z) - 0.73) * (2.0 / 3.14159265358979)
            else:
                u, v = tl.where(ay > 0.85, u, angle), tl.where(ay > 0.85, v, y)
        u, v, edge = u * frequency, v * frequency, w * frequency
        if kind == 2:
            amount = filtered_checker(u, v, edge, edge)
        else:
            amount = dot_pattern(u, v + 0.5, 0.30, edge)
    elif kind == 1:
        amount = filtered_lines((y * 0.88 + x * 0.36 + z * 0.30) * frequency, 0.40, w * frequency)
    elif kind == 4:
        a, b = x + 0.73 * z, y + 0.41 * z - 0.2 * x
        warp = fractal(planes, a * 1.4 + frequency, b * 1.4 + 7.0, w * 1.4, 4)
        vein = 1.0 - tl.abs(sine((a * 0.35 + b * 0.5 + 1.3 * warp) * 6.283))
        amount = vein * vein * vein * vein * 0.85
    elif kind == 5:
        a, b = x + 0.73 * z, y + 0.61 * z - 0.4 * x
        spots = noise(planes, a * 3.0 * frequency, b * 3.0 * frequency)
        amount = saturate((spots - 0.68) * 8.0) * saturate(1.5 - w * 4.0 * frequency)
    elif kind == 6:
        warp = fractal(planes, x * 1.1 + frequency, y * 0.5 + z * 0.6, w, 2)
        rings = length2(x + 0.9, z - 0.55 + 0.15 * y) + 0.35 * warp
        wave = sine(rings * 5.0 * 6.283) * 0.5 + 0.5
        amount = wave * wave * saturate(1.5 - w * 5.0 * 2.5) * 0.42 + 0.05
    return amount


@triton.jit
def _sign_of(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def ink_amount(digit, shape, glyphs, x, y, z, nx, ny, nz, w):
    """How much of the digit's ink is there."""
    ax, ay, az = tl.abs(nx), tl.abs(ny), tl.abs(nz)
    u, v, size = -x * _sign_of(nz), y, 0.66
    front = az > 0.7
    if shape == 1:
        top = ay > 0.7
        u = tl.where(top, x, tl.where(ax > az, z * _sign_of(nx), u))
        v = tl.where(top, z * _sign_of(ny), y)
        front = tl.maximum(ax, tl.maximum(ay, az)) > 0.7
        size = 0.52
    elif shape == 13:
        v = y - 0.38
        size = 0.50
    distance = digit_distance(glyphs, digit, u / size, v / size)
    return tl.where(front, saturate((0.135 - distance) / tl.maximum(w / size, 1e-3) + 0.5), 0.0)
