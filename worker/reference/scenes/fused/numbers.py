"""Device functions of the fused renderer: arithmetic, noise, lines and dots. Twins of `noise`, one call per block.

Every function takes blocks of any one shape; kinds are scalars, so that a program runs only the code of its kind.
"""

import math

import triton
import triton.language as tl

_PI = tl.constexpr(math.pi)
_PI_HIGH = tl.constexpr(3.140625)
_PI_LOW = tl.constexpr(math.pi - 3.140625)
_HALF_PI = tl.constexpr(math.pi / 2)
_QUARTER_PI = tl.constexpr(math.pi / 4)


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def saturate(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def mix(first, second, amount):
    return first + amount * (second - first)


@triton.jit
def smooth(x, low, high):
    part = saturate((x - low) / (high - low))
    return part * part * (3.0 - 2.0 * part)


@triton.jit
def length2(x, y):
    return tl.sqrt(x * x + y * y)


@triton.jit
def length3(x, y, z):
    return tl.sqrt(x * x + y * y + z * z)


@triton.jit
def sine(x):
    """Sine to a few units in the last place for the arguments of textures, without the slow path for huge ones."""
    turns = tl.floor(x * (1.0 / _PI) + 0.5)  # half turns
    r = (x - turns * _PI_HIGH) - turns * _PI_LOW
    q = r * r
    poly = ((2.7557319e-6 - 2.5052108e-8 * q) * q - 1.98412698e-4) * q + 8.33333333e-3
    value = ((poly * q - 1.66666667e-1) * q) * r + r
    return value * (1.0 - 2.0 * (turns - 2.0 * tl.floor(turns * 0.5)))


@triton.jit
def arctan2(y, x):
    ax, ay = tl.abs(x), tl.abs(y)
    ratio = tl.minimum(ax, ay) / tl.maximum(tl.maximum(ax, ay), 1e-30)
    large = ratio > 0.41421356
    r = tl.where(large, (ratio - 1.0) / (ratio + 1.0), ratio)
    q = r * r
    poly = (
        ((8.05374449538e-2 * q - 1.38776856032e-1) * q + 1.99777106478e-1) * q - 3.33329491539e-1
    ) * q * r + r
    angle = tl.where(large, poly + _QUARTER_PI, poly)
    angle = tl.where(ay > ax, _HALF_PI - angle, angle)
    angle = tl.where(x < 0.0, _PI - angle, angle)
    return tl.where(y < 0.0, -angle, angle)


@triton.jit
def arcsin(x):
    return arctan2(x, tl.sqrt(tl.maximum((1.0 - x) * (1.0 + x), 0.0)))


@triton.jit
def display(linear):
    over = tl.maximum(linear - 0.75, 0.0) * 4.0
    soft = tl.where(linear > 0.75, 1.0 - 0.25 * tl.exp(-over), tl.maximum(linear, 0.0))
    power = tl.exp2(tl.log2(tl.maximum(soft, 1e-6)) * (1.0 / 2.4))
    return tl.where(soft <= 0.0031308, 12.92 * soft, 1.055 * power - 0.055)


# ---------------------------------------------------------------- tables


@triton.jit
def _bilinear(plane, ix, iy, STRIDE: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    x0 = clamp(tl.floor(ix), 0.0, WIDTH - 2.0)
    y0 = clamp(tl.floor(iy), 0.0, HEIGHT - 2.0)
    fx, fy = ix - x0, iy - y0
    at = plane + y0.to(tl.int32) * STRIDE + x0.to(tl.int32)
    top = mix(tl.load(at), tl.load(at + 1), fx)
    low = mix(tl.load(at + STRIDE), tl.load(at + STRIDE + 1), fx)
    return mix(top, low, fy)


@triton.jit
def noise(planes, x, y):
    x, y = x * (1.0 / 32.0), y * (1.0 / 32.0)
    return _bilinear(planes, (x - tl.floor(x)) * 256.0, (y - tl.floor(y)) * 256.0, 257, 257, 257)


@triton.jit
def fractal(planes, x, y, footprint, OCTAVES: tl.constexpr):
    total = x * 0.0
    step, weight, right, up = 1.0, 0.5, 0.0, 0.0
    for _ in range(OCTAVES):
        sharp = saturate(1.6 - 1.6 * footprint * step)
        total += weight * sharp * (2.0 * noise(planes, x * step + right, y * step + up) - 1.0)
        step, weight, right, up = step * 2.0, weight * 0.5, right + 7.3, up + 3.1
    return total


@triton.jit
def stones(planes, x, y):
    x, y = x / 14.0, y / 14.0
    ix, iy = (x - tl.floor(x)) * 256.0, (y - tl.floor(y)) * 256.0
    joint = _bilinear(planes + 257 * 257, ix, iy, 257, 257, 257)
    return joint, _bilinear(planes + 2 * 257 * 257, ix, iy, 257, 257, 257)


@triton.jit
def cell_random(cells, i, j, CHANNEL: tl.constexpr):
    a, b = i.to(tl.int32), j.to(tl.int32)
    odd = (a * b) % 31
    odd = tl.where(odd < 0, odd + 31, odd)  # torch rounds down, C towards 0
    return tl.load(cells + CHANNEL * 4096 + ((a * 57 + b * 113 + odd * 7) & 4095))


@triton.jit
def digit_distance(glyphs, digit, x, y):
    row = digit * 64.0 + clamp(1.0 - y, 0.0, 2.0) * 31.5
    column = (clamp(x / 0.62, -1.0, 1.0) + 1.0) * 19.5
    outside = tl.maximum(tl.abs(x) - 0.62, 0.0) + tl.maximum(tl.abs(y) - 1.0, 0.0)
    return _bilinear(glyphs, column, row, 40, 40, 640) + outside


# ---------------------------------------------------------------- filters


@triton.jit
def _covered(edge, width):
    whole = tl.floor(edge)
    return whole * width + tl.minimum(edge - whole, width)


@triton.jit
def filtered_lines(x, width, footprint):
    size = tl.maximum(footprint, 1e-4)
    middle = x + 0.5 * width
    return (_covered(middle + 0.5 * size, width) - _covered(middle - 0.5 * size, width)) / size


@triton.jit
def filtered_checker(x, y, wx, wy):
    half_x = filtered_lines(0.5 * x, 0.5, 0.5 * wx)
    half_y = filtered_lines(0.5 * y, 0.5, 0.5 * wy)
    return half_x + half_y - 2.0 * half_x * half_y


@triton.jit
def dot_pattern(u, v, radius, footprint):
    """Dots of `radius` on a brick lattice of unit cells: part of the footprint inside one."""
    row = tl.floor(v)
    u = u + 0.5 * (row - 2.0 * tl.floor(row * 0.5))
    distance = length2(u - tl.floor(u) - 0.5, v - row - 0.5)
    return saturate((radius - distance) / tl.maximum(footprint, 1e-3) + 0.5)


# ---------------------------------------------------------------- shapes
