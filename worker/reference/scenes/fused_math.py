"""Device functions of the fused renderer: arithmetic, tables, shapes. Twins of `noise` and `sdf`, one call a block.

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
