"""The part of the key light and of the sky that reach points."""

import triton
import triton.language as tl

from .fields import enter_box, field
from .numbers import saturate
from .shared import COLUMNS, EXTRA, N_OBJECTS, TABLE


@triton.jit
def light_on(objects, kinds, light, shapes, extra, image, mask, px, py, pz, nx, ny, nz, skip):
    """Part of the key light and of the sky that reach points (see `light.light_on`); `skip` casts nothing."""
    lx, ly, lz = tl.load(light + image * 7), tl.load(light + image * 7 + 1), tl.load(light + image * 7 + 2)
    softness = tl.load(light + image * 7 + 6)
    open_sky = px * 0.0 + 1.0
    lit = px * 0.0 + 1.0
    for m in range(N_OBJECTS):
        pair = image * N_OBJECTS + m
        row = extra + pair * EXTRA
        reach, bulk = tl.load(row + 15), tl.load(row + 16)
        if (reach > 0.0) & (m != skip):
            column = objects + pair * COLUMNS
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
                steps = tl.where(tl.load(shapes + shape * TABLE + 6) > 0.0, 30, 14)
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
