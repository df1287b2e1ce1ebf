"""The displayed colour of samples that see objects: paint, light, and what their material mirrors."""

import triton
import triton.language as tl

from .fields import field
from .light import light_on
from .numbers import clamp, display, length3, mix, saturate
from .paint import ink_amount, pattern_amount
from .shared import COLUMN_TABLES, COLUMNS, EXTRA, N_OBJECTS, NUMBERS, ray, sample_places


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


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=COLUMN_TABLES)
def shade_kernel(
    objects, kinds, light, floor, backdrop, camera, shapes, extra, planes, glyphs,
    slots, distances, seen_in_tile, images, H, W, tiles_x, tiles,
    SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Displayed colour of all samples that see objects, summed over each pixel and divided by all its samples."""
    image = tl.program_id(1)
    BLOCK: tl.constexpr = TW * TH * SP
    present = tl.load(seen_in_tile + image.to(tl.int64) * tiles + tl.program_id(0))
    if present != 0:
        tx, ty, x, y, _real = sample_places(tiles_x, SS, SP, TW, TH)
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
        for n in range(N_OBJECTS):
            if (present >> n) & 1:
                own = slot == n
                pair = image * N_OBJECTS + n
                column = objects + pair * COLUMNS
                row = extra + pair * EXTRA
                what = kinds + pair * 4
                shape, material = tl.load(what).to(tl.int32), tl.load(what + 1).to(tl.int32)
                pattern, digit = tl.load(what + 2).to(tl.int32), tl.load(what + 3).to(tl.int32)
                ox, oy, oz, dx, dy, dz, _shrink = ray(row, x, y, fine_h, fine_w)
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
                    amount = pattern_amount(
                        pattern, shape, planes, tl.load(column + 19), qx, qy, qz, ax, ay, az, w
                    )
                    br, bg, bb = mix(br, er, amount), mix(bg, eg, amount), mix(bb, eb, amount)
                if (digit >= 0) & ((shape == 1) | (shape == 13) | (shape == 14)):
                    ink = ink_amount(digit, shape, glyphs, qx, qy, qz, ax, ay, az, w)
                    br, bg, bb = mix(br, er, ink), mix(bg, eg, ink), mix(bb, eb, ink)
                # light
                lit, open_sky = light_on(
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
