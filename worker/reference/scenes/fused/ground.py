"""Floor and backdrop, behind the objects."""

import triton
import triton.language as tl

from .light import light_on
from .numbers import display, length3, mix, saturate
from .shared import COLUMN_TABLES, FAR_AWAY, NUMBERS, WALL_AT
from .textures import backdrop_texture, floor_texture


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=COLUMN_TABLES)
def ground_kernel(
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
        edge = (tl.where(is_wall, WALL_AT, FAR_AWAY) - eye_z) / dz
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
            lit, open_sky = light_on(
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
