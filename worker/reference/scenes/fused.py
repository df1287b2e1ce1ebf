"""Fused renderer: the whole picture in five Triton kernels, with no word between GPU and host. Twin of `render`.

`_setup` prepares each object, `_see` finds what every sample sees, `_shade_objects` lights and paints those samples,
`_ground` puts floor and backdrop behind them, `_finish` ends boxes and visible parts. A program works on one tile of
one picture, so kinds of shapes, patterns and textures are scalars there and branches cost nothing.
"""

from functools import cache
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backdrops import BACKDROP_TEXTURES
from .fused_ground import backdrop_texture, floor_texture
from .fused_math import (
    arcsin,
    arctan2,
    clamp,
    digit_distance,
    display,
    dot_pattern,
    enter_box,
    field,
    filtered_checker,
    filtered_lines,
    fractal,
    length2,
    length3,
    mix,
    noise,
    saturate,
    sine,
)
from .light import BULK, IS_THIN, REACH
from .noise import tables
from .pack import FAR, WALL_DEPTH, SceneTensors
from .vocab import BACKDROPS, DIGIT_SHAPES, MATERIALS, MAX_OBJECTS, PATTERNS, SHAPE_NAMES, SHAPES, WALLS

_WALLS_AT: Final = tuple(BACKDROPS.index(name) for name in WALLS)
assert sorted(_WALLS_AT) == [5, 6, 7]
assert BACKDROPS[8:] == ("mountains", "city")
assert MATERIALS == ("matte", "shiny", "metal", "glass")
assert PATTERNS == ("plain", "striped", "checkered", "dotted", "marbled", "speckled", "wooden")
assert [SHAPE_NAMES.index(name) for name in DIGIT_SHAPES] == [1, 13, 14]
assert (SHAPE_NAMES[0], SHAPE_NAMES[4], len(SHAPES), len(BACKDROP_TEXTURES)) == ("sphere", "ring", 15, 10)

_N = tl.constexpr(MAX_OBJECTS)
_COLUMNS = tl.constexpr(20)  # of SceneTensors.objects
_EXTRA = tl.constexpr(20)  # of the prepared columns, see _setup
_TABLE = tl.constexpr(8)  # of the shape table: half 3, reach, bulk, steps, thin, round
_FAR = tl.constexpr(FAR)
_WALL_DEPTH = tl.constexpr(WALL_DEPTH)
# new sizes and slices of a batch shall not compile anew
_NUMBERS: Final = ["H", "W", "fine_h", "fine_w", "tiles_x", "tiles", "PAIRS"]
_COLUMN_TABLES: Final = ["objects", "kinds", "camera", "light", "floor", "backdrop", "ground_kinds"]


@cache
def _shape_table(device: torch.device) -> Tensor:
    rows = [
        (*shape.half, reach, bulk, shape.steps, thin, shape.round)
        for shape, reach, bulk, thin in zip(SHAPES.values(), REACH, BULK, IS_THIN, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32).to(device)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_COLUMN_TABLES)
def _setup(
    objects, kinds, camera, backdrop, ground_kinds, shapes, planes, cells,
    extra, windows, horizon, areas, visible, bounds, H, W, fine_h, fine_w,
):  # fmt: skip
    """Per object: ray basis 9, local eye 3, half box 3, reach, bulk, curved, window; per scene: horizon colour."""
    image = tl.program_id(0)
    n = tl.arange(0, 16)
    real = n < _N
    row = objects + (image * _N + n) * _COLUMNS
    shape = tl.load(kinds + (image * _N + n) * 4, mask=real, other=-1).to(tl.int32)
    used = shape >= 0
    table = shapes + tl.maximum(shape, 0) * _TABLE
    hx, hy, hz = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    cx = tl.load(row, mask=real, other=0.0)
    cy = tl.load(row + 1, mask=real, other=-9.0)
    cz = tl.load(row + 2, mask=real, other=0.0)
    scale = tl.load(row + 3, mask=real, other=0.01)
    eye_y, eye_z = tl.load(camera + image * 5), tl.load(camera + image * 5 + 1)
    cos, sin, tan = (
        tl.load(camera + image * 5 + 2),
        tl.load(camera + image * 5 + 3),
        tl.load(camera + image * 5 + 4),
    )
    out = extra + (image * _N + n) * _EXTRA
    ey, ez = eye_y - cy, eye_z - cz
    for i in tl.static_range(3):
        ax = tl.load(row + 4 + 3 * i, mask=real, other=0.0)
        ay = tl.load(row + 5 + 3 * i, mask=real, other=0.0)
        az = tl.load(row + 6 + 3 * i, mask=real, other=0.0)
        tl.store(out + i, cos * az - sin * ay, mask=real)
        tl.store(out + 3 + i, tan * ax, mask=real)
        tl.store(out + 6 + i, cos * tan * ay + sin * tan * az, mask=real)
        tl.store(out + 9 + i, (ay * ey + az * ez - ax * cx) / scale, mask=real)
    tl.store(out + 12, hx, mask=real)
    tl.store(out + 13, hy, mask=real)
    tl.store(out + 14, hz, mask=real)
    tl.store(out + 15, tl.where(used, tl.load(table + 3) * scale, 0.0), mask=real)
    tl.store(out + 16, tl.where(used, tl.load(table + 4) * scale, 0.0), mask=real)
    tl.store(out + 17, tl.where(tl.load(table + 7) > 0.0, 1.0, 0.3), mask=real)
    # window: bounds of the projected box
    r0, r1, r2 = (
        tl.load(row + 4, mask=real, other=0.0),
        tl.load(row + 5, mask=real, other=0.0),
        tl.load(row + 6, mask=real, other=0.0),
    )
    r3, r4, r5 = (
        tl.load(row + 7, mask=real, other=0.0),
        tl.load(row + 8, mask=real, other=0.0),
        tl.load(row + 9, mask=real, other=0.0),
    )
    r6, r7, r8 = (
        tl.load(row + 10, mask=real, other=0.0),
        tl.load(row + 11, mask=real, other=0.0),
        tl.load(row + 12, mask=real, other=0.0),
    )
    left, top = cx * 0.0 + 1e9, cx * 0.0 + 1e9
    right, bottom = cx * 0.0 - 1e9, cx * 0.0 - 1e9
    half = 0.5 * tl.minimum(fine_h, fine_w).to(tl.float32)
    width, height = fine_w.to(tl.float32), fine_h.to(tl.float32)
    for corner in tl.static_range(8):
        a = hx * (2.0 * (corner % 2) - 1.0)
        b = hy * (2.0 * ((corner // 2) % 2) - 1.0)
        c = hz * (2.0 * (corner // 4) - 1.0)
        x = (a * r0 + b * r3 + c * r6) * scale + cx
        y = (a * r1 + b * r4 + c * r7) * scale + cy - eye_y
        z = (a * r2 + b * r5 + c * r8) * scale + cz - eye_z
        zoom = half / (tan * tl.maximum(z * cos - y * sin, 0.1))
        px, py = x * zoom + 0.5 * width, 0.5 * height - (y * cos + z * sin) * zoom
        left, right = tl.minimum(left, px), tl.maximum(right, px)
        top, bottom = tl.minimum(top, py), tl.maximum(bottom, py)
    x0 = clamp(tl.floor(left) - 1.0, 0.0, width)
    y0 = clamp(tl.floor(top) - 1.0, 0.0, height)
    x1 = tl.where(used, tl.maximum(clamp(tl.ceil(right) + 1.0, 0.0, width), x0), x0)
    y1 = tl.where(used, tl.maximum(clamp(tl.ceil(bottom) + 1.0, 0.0, height), y0), y0)
    at = windows + (image * _N + n) * 4
    tl.store(at, x0.to(tl.int32), mask=real)
    tl.store(at + 1, y0.to(tl.int32), mask=real)
    tl.store(at + 2, x1.to(tl.int32), mask=real)
    tl.store(at + 3, y1.to(tl.int32), mask=real)
    # what the other kernels add up
    at = bounds + (image * _N + n) * 4
    none = n * 0
    tl.store(areas + image * _N + n, none, mask=real)
    tl.store(visible + image * _N + n, none, mask=real)
    tl.store(at, none + W, mask=real)
    tl.store(at + 1, none + H, mask=real)
    tl.store(at + 2, none, mask=real)
    tl.store(at + 3, none, mask=real)
    # colour at the horizon
    behind = backdrop + image * 15
    kind = tl.load(ground_kinds + image * 2 + 1).to(tl.int32)
    zero = cx * 0.0
    r, g, b = zero, zero, zero
    if kind >= 8:
        r, g, b = zero + tl.load(behind + 6), zero + tl.load(behind + 7), zero + tl.load(behind + 8)
    else:
        r, g, b = backdrop_texture(kind, behind, planes, cells, zero, zero + 0.002, zero + 0.01)
    tl.store(horizon + image * 3 + n * 0, r, mask=n < 1)
    tl.store(horizon + image * 3 + 1 + n * 0, g, mask=n < 1)
    tl.store(horizon + image * 3 + 2 + n * 0, b, mask=n < 1)


@triton.jit
def _sample_places(tiles_x, SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr):
    """Sample coordinates of the tile's lanes (pixel by pixel), and which lanes are samples."""
    tile = tl.program_id(0)
    tx, ty = (tile % tiles_x) * TW, (tile // tiles_x) * TH
    lane = tl.arange(0, TW * TH * SP)
    pixel, sample = lane // SP, lane % SP
    x = (tx + pixel % TW) * SS + sample % SS
    y = (ty + pixel // TW) * SS + sample // SS
    return tx, ty, x, y, sample < SS * SS


@triton.jit
def _ray(row, x, y, fine_h, fine_w):
    """Local origin and unit direction of the rays through samples (x, y), and depth per local distance / scale."""
    half = 0.5 * tl.minimum(fine_h, fine_w).to(tl.float32)
    u = (x.to(tl.float32) + (0.5 - 0.5 * fine_w)) / half
    v = ((0.5 * fine_h - 0.5) - y.to(tl.float32)) / half
    dx = tl.load(row) + tl.load(row + 3) * u + tl.load(row + 6) * v
    dy = tl.load(row + 1) + tl.load(row + 4) * u + tl.load(row + 7) * v
    dz = tl.load(row + 2) + tl.load(row + 5) * u + tl.load(row + 8) * v
    shrink = 1.0 / tl.sqrt(dx * dx + dy * dy + dz * dz)
    return (
        tl.load(row + 9),
        tl.load(row + 10),
        tl.load(row + 11),
        dx * shrink,
        dy * shrink,
        dz * shrink,
        shrink,
    )


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_COLUMN_TABLES)
def _see(
    objects, kinds, camera, shapes, extra, windows,
    slots, distances, seen_in_tile, covered, instances, areas, visible, bounds,
    H, W, tiles_x, tiles, SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Nearest object of every sample, the instance map, and what adds up to boxes and visible parts."""
    image = tl.program_id(1)
    BLOCK: tl.constexpr = TW * TH * SP
    tx, ty, x, y, real = _sample_places(tiles_x, SS, SP, TW, TH)
    fine_h, fine_w = H * SS, W * SS
    real = real & (x < fine_w) & (y < fine_h)
    tan = tl.load(camera + image * 5 + 4)
    width_of_sample = tan / tl.minimum(fine_h, fine_w).to(tl.float32) * 0.7

    n16 = tl.arange(0, 16)
    at = windows + (image * _N + n16) * 4
    x0, y0 = tl.load(at, mask=n16 < _N, other=0), tl.load(at + 1, mask=n16 < _N, other=0)
    x1, y1 = tl.load(at + 2, mask=n16 < _N, other=0), tl.load(at + 3, mask=n16 < _N, other=0)
    touches = (x0 < (tx + TW) * SS) & (x1 > tx * SS) & (y0 < (ty + TH) * SS) & (y1 > ty * SS)
    candidates = tl.sum(tl.where(touches & (x1 > x0) & (y1 > y0), 1 << n16, 0), axis=0)

    slot = tl.full((BLOCK,), -1, tl.int32)
    nearest = tl.full((BLOCK,), float("inf"), tl.float32)
    found_at = tl.full((BLOCK,), 1.0, tl.float32)
    if candidates != 0:
        for n in range(_N):
            if (candidates >> n) & 1:
                pair = image * _N + n
                row = extra + pair * _EXTRA
                at_n = windows + pair * 4
                inside = real & (x >= tl.load(at_n)) & (y >= tl.load(at_n + 1))
                inside = inside & (x < tl.load(at_n + 2)) & (y < tl.load(at_n + 3))
                ox, oy, oz, dx, dy, dz, shrink = _ray(row, x, y, fine_h, fine_w)
                near, far = enter_box(
                    ox, oy, oz, dx, dy, dz, tl.load(row + 12), tl.load(row + 13), tl.load(row + 14)
                )
                alive = inside & (near < far)
                far = far + 0.01
                eps = near * width_of_sample
                shape = tl.load(kinds + pair * 4).to(tl.int32)
                steps = tl.load(shapes + shape * _TABLE + 5).to(tl.int32)
                t = near
                hit = real & (x < 0)
                step = 1
                busy = tl.max(alive.to(tl.int32), axis=0)
                while (step <= steps) & (busy > 0):
                    gap = field(shape, ox + dx * t, oy + dy * t, oz + dz * t)
                    if (step % 6 == 0) | (
                        step == steps
                    ):  # as often as the twin looks, so that both stop alike
                        arrived = alive & (gap < eps)
                        hit = hit | arrived
                        alive = alive & (gap >= eps) & (t < far)
                        busy = tl.max(alive.to(tl.int32), axis=0)
                    t = tl.where(alive, t + gap, t)
                    step += 1
                count = tl.sum(hit.to(tl.int32), axis=0)
                if count > 0:
                    tl.atomic_add(areas + pair, count, sem="relaxed")
                depth = t * tl.load(objects + pair * _COLUMNS + 3) * shrink
                wins = hit & (depth <= nearest)
                nearest = tl.where(wins, depth, nearest)
                found_at = tl.where(wins, t, found_at)
                slot = tl.where(wins, n, slot)

    base = (image.to(tl.int64) * tiles + tl.program_id(0)) * BLOCK
    lane = tl.arange(0, BLOCK)
    pixel = tl.arange(0, TW * TH)
    px, py = tx + pixel % TW, ty + pixel // TW
    in_picture = (px < W) & (py < H)
    empty = tl.sum(tl.reshape((real & (slot < 0)).to(tl.int32), (TW * TH, SP)), axis=1)
    best = empty * 64
    present = 0
    if candidates != 0:
        for n in range(_N):
            if (candidates >> n) & 1:
                own = real & (slot == n)
                count = tl.sum(own.to(tl.int32), axis=0)
                if count > 0:
                    present |= 1 << n
                    tl.atomic_add(visible + image * _N + n, count, sem="relaxed")
                    votes = tl.sum(tl.reshape(own.to(tl.int32), (TW * TH, SP)), axis=1)
                    best = tl.maximum(best, votes * 64 + (n + 1))
        if present != 0:
            tl.store(slots + base + lane, slot.to(tl.int8))
            tl.store(distances + base + lane, found_at)
    tl.store(seen_in_tile + image.to(tl.int64) * tiles + tl.program_id(0), present)
    instance = best % 64 - 1
    place = (image.to(tl.int64) * H + py) * W + px
    tl.store(instances + place, instance.to(tl.int64), mask=in_picture)
    tl.store(covered + place, (SS * SS - empty).to(tl.uint8), mask=in_picture)
    if present != 0:
        for n in range(_N):
            if (present >> n) & 1:
                own = in_picture & (instance == n)
                low_x = tl.min(tl.where(own, px, W), axis=0)
                if low_x < W:
                    at_b = bounds + (image * _N + n) * 4
                    low_y = tl.min(tl.where(own, py, H), axis=0)
                    high_x = tl.max(tl.where(own, px + 1, 0), axis=0)
                    high_y = tl.max(tl.where(own, py + 1, 0), axis=0)
                    if low_x < tl.load(at_b):  # an old value only costs an atomic too many
                        tl.atomic_min(at_b, low_x, sem="relaxed")
                    if low_y < tl.load(at_b + 1):
                        tl.atomic_min(at_b + 1, low_y, sem="relaxed")
                    if high_x > tl.load(at_b + 2):
                        tl.atomic_max(at_b + 2, high_x, sem="relaxed")
                    if high_y > tl.load(at_b + 3):
                        tl.atomic_max(at_b + 3, high_y, sem="relaxed")


@triton.jit
def _light_on(objects, kinds, light, shapes, extra, image, mask, px, py, pz, nx, ny, nz, skip):
    """Part of the key light and of the sky that reach points (see `light.light_on`); `skip` casts nothing."""
    lx, ly, lz = tl.load(light + image * 7), tl.load(light + image * 7 + 1), tl.load(light + image * 7 + 2)
    softness = tl.load(light + image * 7 + 6)
    open_sky = px * 0.0 + 1.0
    lit = px * 0.0 + 1.0
    for m in range(_N):
        pair = image * _N + m
        row = extra + pair * _EXTRA
        reach, bulk = tl.load(row + 15), tl.load(row + 16)
        if (reach > 0.0) & (m != skip):
            column = objects + pair * _COLUMNS
            dx, dy, dz = tl.load(column) - px, tl.load(column + 1) - py, tl.load(column + 2) - pz
            squared = tl.maximum(dx * dx + dy * dy + dz * dz, 1e-6)
            along = dx * lx + dy * ly + dz * lz
            width = reach + softness * tl.maximum(along, 0.0)
            shades = mask & (along > -reach) & (squared - along * along < width * width)
            facing = tl.maximum(dx * nx + dy * ny + dz * nz, 0.0) / tl.sqrt(squared)
            dimmed = tl.minimum(facing * bulk * bulk / squared, 1.0)
            open_sky = open_sky * (1.0 - 0.75 * dimmed)
            if tl.max(shades.to(tl.int32), axis=0) > 0:
                shape = tl.load(kinds + pair * 4).to(tl.int32)
                scale = tl.load(column + 3)
                r0, r1, r2 = tl.load(column + 4), tl.load(column + 5), tl.load(column + 6)
                r3, r4, r5 = tl.load(column + 7), tl.load(column + 8), tl.load(column + 9)
                r6, r7, r8 = tl.load(column + 10), tl.load(column + 11), tl.load(column + 12)
                shrink = -1.0 / scale
                ox = (r0 * dx + r1 * dy + r2 * dz) * shrink
                oy = (r3 * dx + r4 * dy + r5 * dz) * shrink
                oz = (r6 * dx + r7 * dy + r8 * dz) * shrink
                tx, ty, tz = (
                    r0 * lx + r1 * ly + r2 * lz,
                    r3 * lx + r4 * ly + r5 * lz,
                    r6 * lx + r7 * ly + r8 * lz,
                )
                near, far = enter_box(
                    ox, oy, oz, tx, ty, tz,
                    tl.load(row + 12) + 0.18, tl.load(row + 13) + 0.18, tl.load(row + 14) + 0.18,
                )  # fmt: skip
                shades = shades & (near < far)
                steps = tl.where(tl.load(shapes + shape * _TABLE + 6) > 0.0, 30, 14)
                stride = tl.maximum(far - near, 0.0) / steps.to(tl.float32) * 0.35
                dark = px * 0.0 + 1.0
                t = near
                i = 0
                busy = tl.max(shades.to(tl.int32), axis=0)
                while (i < steps) & (busy > 0):
                    gap = field(shape, ox + tx * t, oy + ty * t, oz + tz * t)
                    dark = tl.minimum(dark, gap / (softness * (t + 0.15)))
                    before = t
                    t = t + tl.minimum(tl.maximum(tl.abs(gap) * 0.8, stride), 0.35)
                    t = tl.minimum(t, tl.maximum(far, near))
                    i += 1
                    if i % 3 == 0:  # done where all is dark, or where the ray has left the box
                        busy = tl.max((shades & (dark > -1.0) & (t > before)).to(tl.int32), axis=0)
                dark = saturate(0.5 + 0.5 * dark)
                dark = dark * dark * (3.0 - 2.0 * dark)
                lit = tl.where(shades, tl.minimum(lit, dark), lit)
    return lit, open_sky


@triton.jit
def _pattern(kind, shape, planes, frequency, x, y, z, nx, ny, nz, w):
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
def _ink(digit, shape, glyphs, x, y, z, nx, ny, nz, w):
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


@triton.jit
def _around(zenith, horizon, floor_mean, up, ground, level):
    return mix(floor_mean * ground, mix(horizon, zenith, up), level)


@triton.jit
def _surroundings(zr, zg, zb, hr, hg, hb, fr, fg, fb, height):
    """Blurred surroundings seen towards a direction of that height (see `surface.sky_towards`)."""
    up = tl.minimum(tl.maximum(height, 0.0) * 1.3, 1.0)
    ground = 0.55 + 0.35 * (1.0 + clamp(height, -1.0, 0.0))
    level = saturate(height * 9.0 + 0.5)
    return (
        _around(zr, hr, fr, up, ground, level),
        _around(zg, hg, fg, up, ground, level),
        _around(zb, hb, fb, up, ground, level),
    )


@triton.jit
def _fill(zenith, horizon, grey, floor_mean, up):
    sky = 0.30 * (0.55 * zenith + 0.45 * horizon) + 0.45 * grey + 0.22
    return 0.50 * mix(floor_mean * 0.6 + 0.12, sky, up)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_COLUMN_TABLES)
def _shade_objects(
    objects, kinds, light, floor, backdrop, camera, shapes, extra, planes, glyphs,
    slots, distances, seen_in_tile, images, H, W, tiles_x, tiles,
    SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Displayed colour of all samples that see objects, summed over each pixel and divided by all its samples."""
    image = tl.program_id(1)
    BLOCK: tl.constexpr = TW * TH * SP
    present = tl.load(seen_in_tile + image.to(tl.int64) * tiles + tl.program_id(0))
    if present != 0:
        tx, ty, x, y, _real = _sample_places(tiles_x, SS, SP, TW, TH)
        fine_h, fine_w = H * SS, W * SS
        base = (image.to(tl.int64) * tiles + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
        slot = tl.load(slots + base).to(tl.int32)
        distance = tl.load(distances + base)
        tan = tl.load(camera + image * 5 + 4)
        pixel_width = 2.0 * tan / tl.minimum(H, W).to(tl.float32)
        # the scene's scalars
        sky = backdrop + image * 15
        zr, zg, zb = tl.load(sky), tl.load(sky + 1), tl.load(sky + 2)
        hr, hg, hb = tl.load(sky + 3), tl.load(sky + 4), tl.load(sky + 5)
        under = floor + image * 11
        fr = 0.6 * tl.load(under) + 0.4 * tl.load(under + 3)
        fg = 0.6 * tl.load(under + 1) + 0.4 * tl.load(under + 4)
        fb = 0.6 * tl.load(under + 2) + 0.4 * tl.load(under + 5)
        grey = (0.55 * (zr + zg + zb) + 0.45 * (hr + hg + hb)) * (1.0 / 3.0)
        lamp = light + image * 7
        lx, ly, lz = tl.load(lamp), tl.load(lamp + 1), tl.load(lamp + 2)
        tr, tg, tb = tl.load(lamp + 3), tl.load(lamp + 4), tl.load(lamp + 5)
        red = tl.zeros((BLOCK,), tl.float32)
        green = tl.zeros((BLOCK,), tl.float32)
        blue = tl.zeros((BLOCK,), tl.float32)
        for n in range(_N):
            if (present >> n) & 1:
                own = slot == n
                pair = image * _N + n
                column = objects + pair * _COLUMNS
                row = extra + pair * _EXTRA
                what = kinds + pair * 4
                shape, material = tl.load(what).to(tl.int32), tl.load(what + 1).to(tl.int32)
                pattern, digit = tl.load(what + 2).to(tl.int32), tl.load(what + 3).to(tl.int32)
                ox, oy, oz, dx, dy, dz, _shrink = _ray(row, x, y, fine_h, fine_w)
                qx, qy, qz = ox + dx * distance, oy + dy * distance, oz + dz * distance
                ax, ay, az = qx * 0.0, qx * 0.0, qx * 0.0
                for i in range(4):  # corners of a tetrahedron
                    cy, cz = 2.0 * (i // 2) - 1.0, 2.0 * (i % 2) - 1.0
                    cx = cy * cz
                    value = field(shape, qx + cx * 0.004, qy + cy * 0.004, qz + cz * 0.004)
                    ax, ay, az = ax + cx * value, ay + cy * value, az + cz * value
                shrink = 1.0 / tl.maximum(length3(ax, ay, az), 1e-12)
                ax, ay, az = ax * shrink, ay * shrink, az * shrink
                scale = tl.load(column + 3)
                r0, r1, r2 = tl.load(column + 4), tl.load(column + 5), tl.load(column + 6)
                r3, r4, r5 = tl.load(column + 7), tl.load(column + 8), tl.load(column + 9)
                r6, r7, r8 = tl.load(column + 10), tl.load(column + 11), tl.load(column + 12)
                px = (qx * r0 + qy * r3 + qz * r6) * scale + tl.load(column)
                py = (qx * r1 + qy * r4 + qz * r7) * scale + tl.load(column + 1)
                pz = (qx * r2 + qy * r5 + qz * r8) * scale + tl.load(column + 2)
                nx, ny, nz = (
                    ax * r0 + ay * r3 + az * r6,
                    ax * r1 + ay * r4 + az * r7,
                    ax * r2 + ay * r5 + az * r8,
                )
                vx, vy, vz = (
                    dx * r0 + dy * r3 + dz * r6,
                    dx * r1 + dy * r4 + dz * r7,
                    dx * r2 + dy * r5 + dz * r8,
                )
                # paint
                w = distance * pixel_width
                br, bg, bb = (
                    px * 0.0 + tl.load(column + 13),
                    px * 0.0 + tl.load(column + 14),
                    px * 0.0 + tl.load(column + 15),
                )
                er, eg, eb = tl.load(column + 16), tl.load(column + 17), tl.load(column + 18)
                if pattern > 0:
                    amount = _pattern(pattern, shape, planes, tl.load(column + 19), qx, qy, qz, ax, ay, az, w)
                    br, bg, bb = mix(br, er, amount), mix(bg, eg, amount), mix(bb, eb, amount)
                if (digit >= 0) & ((shape == 1) | (shape == 13) | (shape == 14)):
                    ink = _ink(digit, shape, glyphs, qx, qy, qz, ax, ay, az, w)
                    br, bg, bb = mix(br, er, ink), mix(bg, eg, ink), mix(bb, eb, ink)
                # light
                lit, open_sky = _light_on(
                    objects, kinds, light, shapes, extra, image, own,
                    px + 0.02 * nx, py + 0.02 * ny, pz + 0.02 * nz, nx, ny, nz, n,
                )  # fmt: skip
                facing = nx * lx + ny * ly + nz * lz
                against = -(nx * vx + ny * vy + nz * vz)
                mx, my, mz = vx + 2.0 * against * nx, vy + 2.0 * against * ny, vz + 2.0 * against * nz
                sr, sg, sb = _surroundings(zr, zg, zb, hr, hg, hb, fr, fg, fb, my)
                aim = mx * lx + my * ly + mz * lz
                direct = tl.maximum((facing + 0.12) / 1.12, 0.0) * lit
                contact = open_sky * (1.0 - 0.45 * (1.0 - saturate(py / 0.5)) * (0.5 - 0.5 * ny))
                curved = tl.load(row + 17)
                rim = 1.0 - saturate(against)
                fresnel = rim * rim * rim * rim * rim * curved
                up = ny * 0.5 + 0.5
                key = 1.02 * direct
                cr = br * (key * tr + _fill(zr, hr, grey, fr, up) * contact)
                cg = bg * (key * tg + _fill(zg, hg, grey, fg, up) * contact)
                cb = bb * (key * tb + _fill(zb, hb, grey, fb, up) * contact)
                if material == 0:
                    faint = 0.05 * fresnel
                    cr, cg, cb = cr + faint * sr, cg + faint * sg, cb + faint * sb
                else:
                    glint = tl.maximum(aim, 0.0)
                    g2 = glint * glint
                    g4 = g2 * g2
                    g8 = g4 * g4
                    g16 = g8 * g8
                    g64 = g16 * g16 * g16 * g16
                    gleam = g64 * g4 * g2 * 0.9 * lit * curved
                    window = saturate((clamp(aim, -1.0, 1.0) - 0.86) * 14.0)
                    window += 0.35 * saturate((0.20 - tl.abs(my - 0.42)) * 8.0)
                    window = window * (0.35 + 0.65 * lit) * curved
                    if material == 1:
                        bright, mirror = gleam + 0.06 * window, (0.02 + 0.55 * fresnel) * open_sky
                        cr, cg, cb = (
                            cr + bright * tr + mirror * sr,
                            cg + bright * tg + mirror * sg,
                            cb + bright * tb + mirror * sb,
                        )
                    elif material == 2:
                        mean = (sr + sg + sb) * (1.0 / 3.0)
                        share, lamp_share = 0.35 + 0.65 * open_sky, 0.35 * direct
                        white = 0.08 + 0.4 * fresnel
                        bright = 0.45 * window + g16 * g8 * 0.5 * lit * curved
                        cr = (
                            br * (mix(sr, mean, 0.75) * share + lamp_share * tr + 0.06)
                            + mix(br, 1.0, white) * bright * tr
                        )
                        cg = (
                            bg * (mix(sg, mean, 0.75) * share + lamp_share * tg + 0.06)
                            + mix(bg, 1.0, white) * bright * tg
                        )
                        cb = (
                            bb * (mix(sb, mean, 0.75) * share + lamp_share * tb + 0.06)
                            + mix(bb, 1.0, white) * bright * tb
                        )
                    else:
                        eta: tl.constexpr = 1.0 / 1.35
                        bend = eta * against - tl.sqrt(
                            tl.maximum(1.0 - eta * eta * (1.0 - against * against), 0.0)
                        )
                        through = 2.0 * (eta * vy + bend * ny) - vy
                        ur, ug, ub = _surroundings(zr, zg, zb, hr, hg, hb, fr, fg, fb, through)
                        depth = saturate(against)
                        white, dim = 0.01 + 0.08 * (1.0 - depth), 0.60 + 0.40 * depth
                        bright, mirror = gleam * 1.3 + 0.22 * window, 0.05 + 0.75 * fresnel
                        cr = mix(br, 1.0, white) * (0.45 + ur) * dim + bright * tr + mirror * sr
                        cg = mix(bg, 1.0, white) * (0.45 + ug) * dim + bright * tg + mirror * sg
                        cb = mix(bb, 1.0, white) * (0.45 + ub) * dim + bright * tb + mirror * sb
                red, green, blue = tl.where(own, cr, red), tl.where(own, cg, green), tl.where(own, cb, blue)
        pixel = tl.arange(0, TW * TH)
        x_out, y_out = tx + pixel % TW, ty + pixel // TW
        in_picture = (x_out < W) & (y_out < H)
        place = images + image.to(tl.int64) * 3 * H * W + y_out * W + x_out
        part: tl.constexpr = 1.0 / (SS * SS)
        # black stays black on display: lanes without an object add nothing
        tl.store(place, tl.sum(tl.reshape(display(red), (TW * TH, SP)), axis=1) * part, mask=in_picture)
        tl.store(
            place + H * W, tl.sum(tl.reshape(display(green), (TW * TH, SP)), axis=1) * part, mask=in_picture
        )
        tl.store(
            place + 2 * H * W,
            tl.sum(tl.reshape(display(blue), (TW * TH, SP)), axis=1) * part,
            mask=in_picture,
        )


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_COLUMN_TABLES)
def _ground(
    objects, kinds, light, floor, backdrop, camera, ground_kinds, shapes, extra, horizon, planes, cells,
    covered, images, H, W, tiles_x, SAMPLES: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Floor and backdrop, put behind the objects."""
    tile, image = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, TW * TH)
    x, y = (tile % tiles_x) * TW + lane % TW, (tile // tiles_x) * TH + lane // TW
    in_picture = (x < W) & (y < H)
    cover = tl.load(covered + (image.to(tl.int64) * H + y) * W + x, mask=in_picture, other=SAMPLES)
    cover = cover.to(tl.float32) * (1.0 / SAMPLES)
    needed = cover < 1.0
    if tl.max(needed.to(tl.int32), axis=0) > 0:
        view = camera + image * 5
        eye_y, eye_z, cos, sin, tan = (
            tl.load(view),
            tl.load(view + 1),
            tl.load(view + 2),
            tl.load(view + 3),
            tl.load(view + 4),
        )
        short = tl.minimum(H, W).to(tl.float32)
        u = (x.to(tl.float32) + (0.5 - 0.5 * W)) / (0.5 * short)
        v = ((0.5 * H - 0.5) - y.to(tl.float32)) / (0.5 * short)
        dx, dy, dz = tan * u, cos * tan * v - sin, sin * tan * v + cos
        pixel = 2.0 * tan / short
        kind = tl.load(ground_kinds + image * 2 + 1).to(tl.int32)
        is_wall = (kind >= 5) & (kind < 8)
        edge = (tl.where(is_wall, _WALL_DEPTH, _FAR) - eye_z) / dz
        below = -(eye_y + dy * edge)
        share = saturate(below / tl.maximum(pixel * edge * cos, 1e-6) + 0.5)
        red, green, blue = u * 0.0, u * 0.0, u * 0.0
        on_floor = needed & (share > 0.0)
        if tl.max(on_floor.to(tl.int32), axis=0) > 0:
            reach = tl.where(dy < -1e-4, -eye_y / tl.minimum(dy, -1e-4), float("inf"))
            reach = tl.minimum(reach, edge)
            wx, wz = dx * reach, eye_z + dz * reach
            near = pixel * reach
            wide = near / tl.maximum(-dy / length3(dx, dy, dz), 0.04)
            under = floor + image * 11
            scale, turn_cos, turn_sin = tl.load(under + 6), tl.load(under + 7), tl.load(under + 8)
            a = (wx * turn_cos + wz * turn_sin) * scale + tl.load(under + 9)
            b = (wz * turn_cos - wx * turn_sin) * scale + tl.load(under + 10)
            abs_cos, abs_sin = tl.abs(turn_cos), tl.abs(turn_sin)
            wa, wb = (near * abs_cos + wide * abs_sin) * scale, (wide * abs_cos + near * abs_sin) * scale
            floor_kind = tl.load(ground_kinds + image * 2).to(tl.int32)
            r, g, b = floor_texture(floor_kind, under, planes, cells, a, b, wa, wb)
            zero = wx * 0.0
            lit, open_sky = _light_on(
                objects,
                kinds,
                light,
                shapes,
                extra,
                image,
                on_floor,
                wx,
                zero,
                wz,
                zero,
                zero + 1.0,
                zero,
                -1,
            )
            lamp, sky = light + image * 7, backdrop + image * 15
            s_r = 0.55 * tl.load(sky) + 0.45 * tl.load(sky + 3)
            s_g = 0.55 * tl.load(sky + 1) + 0.45 * tl.load(sky + 4)
            s_b = 0.55 * tl.load(sky + 2) + 0.45 * tl.load(sky + 5)
            grey = (s_r + s_g + s_b) * (0.25 / 3.0) + 0.12
            key, open_sky = 0.78 * lit * tl.sqrt(tl.load(lamp + 1)), 0.42 * open_sky
            haze = 1.0 - tl.exp(-(tl.maximum(reach - 9.0, 0.0) / 26.0))
            haze = tl.where(is_wall, 0.0, haze)
            far = horizon + image * 3
            r = mix(r * (key * tl.load(lamp + 3) + open_sky * (0.5 * s_r + grey)), tl.load(far), haze)
            g = mix(g * (key * tl.load(lamp + 4) + open_sky * (0.5 * s_g + grey)), tl.load(far + 1), haze)
            b = mix(b * (key * tl.load(lamp + 5) + open_sky * (0.5 * s_b + grey)), tl.load(far + 2), haze)
            red, green, blue = display(r) * share, display(g) * share, display(b) * share
        if tl.max((needed & (share < 1.0)).to(tl.int32), axis=0) > 0:
            wall_y = eye_y + dy * edge
            at_x = tl.where(is_wall, dx * edge, dx / dz)
            at_y = tl.where(is_wall, wall_y, dy / dz)
            width = tl.where(is_wall, pixel * edge, pixel)
            shine = tl.where(is_wall, 0.62 + 0.38 * saturate(wall_y / 1.2), 1.0)
            r, g, b = backdrop_texture(kind, backdrop + image * 15, planes, cells, at_x, at_y, width)
            rest = 1.0 - share
            red, green, blue = (
                red + display(r * shine) * rest,
                green + display(g * shine) * rest,
                blue + display(b * shine) * rest,
            )
        place = images + image.to(tl.int64) * 3 * H * W + y * W + x
        there, open_part = in_picture & (cover > 0.0), 1.0 - cover
        red = red * open_part + tl.load(place, mask=there, other=0.0)
        green = green * open_part + tl.load(place + H * W, mask=there, other=0.0)
        blue = blue * open_part + tl.load(place + 2 * H * W, mask=there, other=0.0)
        tl.store(place, red, mask=in_picture)
        tl.store(place + H * W, green, mask=in_picture)
        tl.store(place + 2 * H * W, blue, mask=in_picture)


@triton.jit(do_not_specialize=_NUMBERS)
def _finish(bounds, areas, visible, boxes, fraction, PAIRS, BLOCK: tl.constexpr):
    """Float boxes, zero where nothing is seen, and visible parts."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = pair < PAIRS
    seen = tl.load(bounds + pair * 4 + 2, mask=real, other=0) > 0
    for i in tl.static_range(4):
        value = tl.load(bounds + pair * 4 + i, mask=real, other=0)
        tl.store(boxes + pair * 4 + i, tl.where(seen, value, 0).to(tl.float32), mask=real)
    whole = tl.maximum(tl.load(areas + pair, mask=real, other=1), 1).to(tl.float32)
    tl.store(fraction + pair, tl.load(visible + pair, mask=real, other=0).to(tl.float32) / whole, mask=real)


class Tiles(NamedTuple):
    """Pixels of a tile and warps of a program, for objects and for the ground."""

    width: int = 4
    height: int = 4
    see_warps: int = 1
    shade_warps: int = 1
    ground_width: int = 8
    ground_height: int = 8
    ground_warps: int = 1


DEFAULT_TILES: Final = Tiles()
_MAX_LANES: Final = 16384


def render_fused(
    tensors: SceneTensors, height: int, width: int, supersample: int, tiling: Tiles = DEFAULT_TILES
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, instances, boxes and visible parts of all scenes, as in `render.Render`.

    Raises:
        ValueError: the supersampling is so high that a pixel's samples overflow a byte.
    """
    if supersample > 15:
        raise ValueError(f"the fused renderer supersamples at most 15 x 15, got {supersample}")
    batch, device = len(tensors), tensors.objects.device
    lanes = triton.next_power_of_2(supersample**2)
    tile_w, tile_h = tiling.width, tiling.height
    while tile_w * tile_h * lanes > _MAX_LANES:
        tile_w, tile_h = max(1, tile_w // 2), max(1, tile_h // 2)
    tiles_x, tiles_y = triton.cdiv(width, tile_w), triton.cdiv(height, tile_h)
    tiles = tiles_x * tiles_y

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    objects, kinds, camera = (
        tensors.objects.contiguous(),
        tensors.object_kinds.contiguous(),
        tensors.camera.contiguous(),
    )
    light, floor, backdrop = (
        tensors.light.contiguous(),
        tensors.floor.contiguous(),
        tensors.backdrop.contiguous(),
    )
    grounds = tensors.ground_kinds.contiguous()
    planes, glyphs, cells = tables(device)
    shapes = _shape_table(device)
    pairs = batch * MAX_OBJECTS
    extra, horizon = new(pairs, 20), new(batch, 3)
    counts = new(10, pairs, dtype=torch.int32)  # windows 4, bounds 4, areas, visible
    windows, bounds, areas, visible = counts[:4], counts[4:8], counts[8], counts[9]
    slots = new(batch, tiles, tile_w * tile_h * lanes, dtype=torch.int8)
    distances = new(batch, tiles, tile_w * tile_h * lanes)
    seen_in_tile = new(batch, tiles, dtype=torch.int32)
    covered = new(batch, height, width, dtype=torch.uint8)
    images, instances = new(batch, 3, height, width), new(batch, height, width, dtype=torch.int64)
    boxes, fraction = new(batch, MAX_OBJECTS, 4), new(batch, MAX_OBJECTS)
    _setup[(batch,)](
        objects, kinds, camera, backdrop, grounds, shapes, planes, cells,
        extra, windows, horizon, areas, visible, bounds,
        height, width, height * supersample, width * supersample, num_warps=1,
    )  # fmt: skip
    _see[(tiles, batch)](
        objects, kinds, camera, shapes, extra, windows,
        slots, distances, seen_in_tile, covered, instances, areas, visible, bounds,
        height, width, tiles_x, tiles, supersample, lanes, tile_w, tile_h, num_warps=tiling.see_warps,
    )  # fmt: skip
    _shade_objects[(tiles, batch)](
        objects, kinds, light, floor, backdrop, camera, shapes, extra, planes, glyphs,
        slots, distances, seen_in_tile, images, height, width, tiles_x, tiles,
        supersample, lanes, tile_w, tile_h, num_warps=tiling.shade_warps,
    )  # fmt: skip
    ground_x = triton.cdiv(width, tiling.ground_width)
    _ground[(ground_x * triton.cdiv(height, tiling.ground_height), batch)](
        objects, kinds, light, floor, backdrop, camera, grounds, shapes, extra, horizon, planes, cells,
        covered, images, height, width, ground_x, supersample**2, tiling.ground_width, tiling.ground_height,
        num_warps=tiling.ground_warps,
    )  # fmt: skip
    _finish[(triton.cdiv(pairs, 128),)](bounds, areas, visible, boxes, fraction, pairs, 128, num_warps=1)
    return images, instances, boxes, fraction
