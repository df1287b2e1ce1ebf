"""The first kernel: what the others need of each object, once per picture."""

import triton
import triton.language as tl

from .numbers import clamp
from .shared import COLUMN_TABLES, COLUMNS, EXTRA, N_OBJECTS, NUMBERS, TABLE
from .textures import backdrop_texture


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=COLUMN_TABLES)
def setup_kernel(
    objects, kinds, camera, backdrop, ground_kinds, shapes, planes, cells,
    extra, windows, horizon, areas, visible, bounds, H, W, fine_h, fine_w,
):  # fmt: skip
    """Per object: ray basis 9, local eye 3, half box 3, reach, bulk, curved, window; per scene: horizon colour."""
    image = tl.program_id(0)
    n = tl.arange(0, 16)
    real = n < N_OBJECTS
    row = objects + (image * N_OBJECTS + n) * COLUMNS
    shape = tl.load(kinds + (image * N_OBJECTS + n) * 4, mask=real, other=-1).to(tl.int32)
    used = shape >= 0
    table = shapes + tl.maximum(shape, 0) * TABLE
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
    out = extra + (image * N_OBJECTS + n) * EXTRA
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
    at = windows + (image * N_OBJECTS + n) * 4
    tl.store(at, x0.to(tl.int32), mask=real)
    tl.store(at + 1, y0.to(tl.int32), mask=real)
    tl.store(at + 2, x1.to(tl.int32), mask=real)
    tl.store(at + 3, y1.to(tl.int32), mask=real)
    # what the other kernels add up
    at = bounds + (image * N_OBJECTS + n) * 4
    none = n * 0
    tl.store(areas + image * N_OBJECTS + n, none, mask=real)
    tl.store(visible + image * N_OBJECTS + n, none, mask=real)
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
