"""Device functions of the fused renderer: floors and backdrops. Twins of `floors` and `backdrops`.

Kinds are scalars, so a program runs one texture; colours are scalars too, read from the scene's columns.
"""

import triton
import triton.language as tl

from .numbers import (
    cell_random,
    dot_pattern,
    filtered_checker,
    filtered_lines,
    fractal,
    length2,
    mix,
    noise,
    saturate,
    sine,
    smooth,
    stones,
)


@triton.jit
def _fade(footprint, limit):
    return saturate(1.5 - footprint / limit)


@triton.jit
def _load3(row):
    return tl.load(row), tl.load(row + 1), tl.load(row + 2)


@triton.jit
def floor_texture(kind, row, planes, cells, x, y, wx, wy):
    """Linear RGB of the floor of that (scalar) kind; `row` points at the scene's floor columns."""
    r1, g1, b1 = _load3(row)
    r2, g2, b2 = _load3(row + 3)
    wide = tl.maximum(wx, wy)
    even = tl.sqrt(wx * wy)
    # colour = gain * (first towards second by amount)
    amount = x * 0.0
    gain = amount + 1.0
    if kind < 4:
        if kind == 1:
            amount = filtered_checker(x, y, wx, wy)
        elif kind == 2:
            lines_x, lines_y = filtered_lines(x, 0.07, wx), filtered_lines(y, 0.07, wy)
            gain = 1.0 + (cell_random(cells, tl.floor(x), tl.floor(y), 0) - 0.5) * 0.24 * _fade(wide, 1.0)
            amount = lines_x + lines_y - lines_x * lines_y
        elif kind == 3:
            plank = tl.floor(x)
            along = y * 0.28 + cell_random(cells, plank, plank * 0.0, 0) * 7.0
            board = tl.floor(along)
            shade = (cell_random(cells, plank, board, 1) - 0.5) * 0.45
            warp = fractal(planes, x * 1.3 + 5.0 * shade, y * 0.35, wide, 2)
            grain = (sine((x * 5.0 + 2.6 * warp + board) * 6.283) * 0.5 + 0.5) * _fade(wide, 0.11)
            amount = saturate(grain * 0.42 + 0.22)
            gap, ends = filtered_lines(x, 0.045, wx), filtered_lines(along, 0.012, wy * 0.28)
            gain = (1.0 + shade) * (1.0 - 0.75 * (gap + ends - gap * ends))
    else:
        if kind == 4:
            broad = fractal(planes, x * 0.5, y * 0.5, even * 0.5, 2)
            blades = fractal(planes, x * 7.0, y * 3.2, even * 5.0, 3)
            amount = saturate(0.40 + 0.5 * broad + 0.9 * blades)
            gain = tl.minimum(tl.maximum(1.0 + 0.9 * blades, 0.35), 1.6)
        elif kind == 5:
            warp = fractal(planes, x * 0.6, y * 0.6, even * 0.6, 2)
            ripple = sine((y * 2.0 + x * 0.5 + 2.4 * warp) * 6.283) * 0.5 * _fade(wy, 0.28)
            grains = (noise(planes, x * 29.0, y * 29.0) - 0.5) * _fade(even, 0.045)
            amount = saturate(0.35 + 0.35 * ripple + 0.35 * warp)
            gain = 1.0 + 0.42 * grains
        elif kind == 6:
            lines_x, lines_y = filtered_lines(x, 0.055, wx), filtered_lines(y, 0.055, wy)
            amount = 0.8 * (lines_x + lines_y - lines_x * lines_y)
        elif kind == 7:
            warp = fractal(planes, x * 0.45, y * 0.45, even * 0.45, 4)
            line = 1.0 - tl.abs(sine((x * 0.35 + y * 0.22 + 1.5 * warp) * 6.283))
            vein = line * line * line * line * line
            cloud = fractal(planes, x * 0.8 + 9.0, y * 0.8, even * 0.8, 3)
            amount = saturate(0.75 * vein + 0.30 * cloud + 0.1)
        else:
            joint, shade = stones(planes, x, y)
            stone = saturate((joint - 0.05) / (0.16 + even))
            grain = fractal(planes, x * 4.0, y * 4.0, even * 4.0, 3)
            gain = tl.minimum(tl.maximum(0.62 + 0.7 * shade + 0.5 * grain, 0.2), 1.6)
            amount = 1.0 - mix(0.72, stone, _fade(even, 0.7))
    r, g, b = mix(r1 * gain, r2, amount), mix(g1 * gain, g2, amount), mix(b1 * gain, b2, amount)
    if (kind == 3) | (kind == 4) | (kind == 5):  # here the gain goes over both colours
        r, g, b = mix(r1, r2, amount) * gain, mix(g1, g2, amount) * gain, mix(b1, b2, amount) * gain
    return r, g, b


@triton.jit
def _ridge(planes, x, w, seed):
    return fractal(planes, x * 3.4 + seed, seed + x * 0.0, w * 3.4, 5)


@triton.jit
def backdrop_texture(kind, row, planes, cells, x, y, w):
    """Linear RGB of the backdrop of that (scalar) kind; `row` points at the scene's backdrop columns."""
    zr, zg, zb = _load3(row)
    hr, hg, hb = _load3(row + 3)
    mr, mg, mb = _load3(row + 6)
    sr, sg, sb = _load3(row + 9)
    scale, off1, off2 = _load3(row + 12)
    zero = x * 0.0 + y * 0.0
    r, g, b = zero, zero, zero
    edge = tl.maximum(w, 1e-3)
    if kind < 5:
        if kind == 0:
            glow = 0.75 * tl.exp(-2.0 * x * x - 3.0 * y * y)
            r, g, b = mix(mr * 0.78, sr, glow), mix(mg * 0.78, sg, glow), mix(mb * 0.78, sb, glow)
        elif kind < 3:
            up = smooth(y, -0.02, 0.24) + zero
            r, g, b = mix(hr, zr, up), mix(hg, zg, up), mix(hb, zb, up)
            if kind == 2:
                across = x * 0.9 / tl.sqrt(tl.maximum(y, 0.0) + 0.10) + off1
                puff = fractal(planes, across * 2.6, y * 17.0 + off2, w * 12.0, 4)
                puff = smooth(puff, -0.02, 0.30) * 0.92
                r, g, b = mix(r, sr, puff), mix(g, sg, puff), mix(b, sb, puff)
        elif kind == 3:
            up = smooth(y, 0.0, 0.20)
            bands = fractal(planes, x * 2.2 + off1, y * 34.0, w * 20.0, 3)
            gain = 1.0 + 0.45 * smooth(bands, 0.05, 0.4)
            distance = length2(x - (off1 - 4.0) * 0.10, y - 0.045)
            sun = saturate((0.032 - distance) / edge + 0.5)
            halo = 0.35 * tl.exp(-12.0 * distance)
            r = mix(mix(sr, mr, up) * gain + halo, 1.05, sun)
            g = mix(mix(sg, mg, up) * gain + halo * 0.83, 0.83 * 1.05, sun)
            b = mix(mix(sb, mb, up) * gain + halo * 0.42, 0.42 * 1.05, sun)
        else:
            up = smooth(y, 0.0, 0.16)
            u, v = x * 34.0 + off1 * 9.0, y * 34.0
            i, j = tl.floor(u), tl.floor(v)
            du = u - i - (0.2 + 0.6 * cell_random(cells, i, j, 0))
            dv = v - j - (0.2 + 0.6 * cell_random(cells, i, j, 1))
            bright = cell_random(cells, i, j, 2)
            radius = tl.maximum(0.045 + 0.05 * bright, 0.55 * w * 34.0)
            star = tl.exp(-(du * du + dv * dv) / (radius * radius)) * (0.25 + 0.75 * bright * bright)
            star = tl.where(bright > 0.35, star, 0.0)
            distance = length2(x - (off2 - 4.0) * 0.10, y - 0.075)
            moon = saturate((0.022 - distance) / edge + 0.5)
            glow = 0.12 * tl.exp(-25.0 * distance)
            r = mix(mix(sr, mr, up) + star * 0.95 + glow, 0.95, moon)
            g = mix(mix(sg, mg, up) + star * 0.94 + glow, 0.94, moon)
            b = mix(mix(sb, mb, up) + star * 0.85 + glow, 0.85, moon)
    else:
        if kind == 5:
            v = y * 3.4 * scale
            level = tl.floor(v)
            u = x * 1.35 * scale + 0.5 * (level - 2.0 * tl.floor(level * 0.5))
            mortar = filtered_lines(u, 0.06, w * 1.35 * scale)
            mortar = tl.maximum(mortar, filtered_lines(v, 0.14, w * 3.4 * scale))
            shade = 0.70 + 0.55 * cell_random(cells, tl.floor(u), level, 0)
            gain = shade + 0.5 * fractal(planes, x * 4.0, y * 4.0, w * 4.0, 3)
            gain = tl.minimum(tl.maximum(gain, 0.2), 1.6)
            r, g, b = mix(mr * gain, sr, mortar), mix(mg * gain, sg, mortar), mix(mb * gain, sb, mortar)
        elif kind < 8:
            scale = 1.5 * scale
            inside = zero
            if kind == 6:
                inside = filtered_lines(x * scale, 0.42, w * scale) + zero
            else:
                inside = dot_pattern(x * scale, y * scale, 0.27, w * scale)
            r, g, b = mix(mr, sr, inside), mix(mg, sg, inside), mix(mb, sb, inside)
        elif kind == 8:
            up = smooth(y, -0.02, 0.24)
            height = 0.070 + 0.13 * _ridge(planes, x, w, off1 * 3.0)
            cover = saturate((height - y) / edge + 0.5)
            snow = smooth(y - height + 0.035, 0.0, 0.025) * 0.85
            r = mix(mix(hr, zr, up), mix(mix(sr, mr, 0.25), 1.0, snow), cover)
            g = mix(mix(hg, zg, up), mix(mix(sg, mg, 0.25), 1.0, snow), cover)
            b = mix(mix(hb, zb, up), mix(mix(sb, mb, 0.25), 1.0, snow), cover)
            height = 0.026 + 0.075 * _ridge(planes, x, w, off1 * 3.0 + 5.5)
            cover = saturate((height - y) / edge + 0.5)
            r, g, b = (
                mix(r, mix(sr, mr, 0.85), cover),
                mix(g, mix(sg, mg, 0.85), cover),
                mix(b, mix(sb, mb, 0.85), cover),
            )
        else:
            up = smooth(y, 0.0, 0.22)
            u = x * 15.0 + off1 * 5.0
            block = tl.floor(u)
            inside = u - block
            height = 0.025 + 0.11 * cell_random(cells, block, block * 0.0, 0)
            cover = tl.where(inside > 0.04, saturate((height - y) / edge + 0.5), 0.0)
            tone = 0.75 + 0.9 * cell_random(cells, block, block * 0.0, 1)
            wu, wv = inside * 5.0, y * 80.0
            hole = filtered_lines(wu + 0.5, 0.5, w * 75.0) * filtered_lines(wv + 0.5, 0.55, w * 80.0)
            lamp = cell_random(cells, block * 7.0 + tl.floor(wu), tl.floor(wv), 2)
            on = tl.where(w * 80.0 < 0.9, tl.where(lamp > 0.45, 1.0, 0.0), 0.55)
            r = mix(mix(hr, zr, up), mix(mr * tone, sr, hole * on), cover)
            g = mix(mix(hg, zg, up), mix(mg * tone, sg, hole * on), cover)
            b = mix(mix(hb, zb, up), mix(mb * tone, sb, hole * on), cover)
    return r, g, b
