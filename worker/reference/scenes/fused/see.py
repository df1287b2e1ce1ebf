"""What every sample sees, and what that adds up to: instances, boxes and visible parts."""

import triton
import triton.language as tl

from .fields import enter_box, field
from .shared import COLUMN_TABLES, COLUMNS, EXTRA, N_OBJECTS, NUMBERS, TABLE, ray, sample_places


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=COLUMN_TABLES)
def see_kernel(
    objects, kinds, camera, shapes, extra, windows,
    slots, distances, seen_in_tile, covered, instances, areas, visible, bounds,
    H, W, tiles_x, tiles, SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Nearest object of every sample, the instance map, and what adds up to boxes and visible parts."""
    image = tl.program_id(1)
    BLOCK: tl.constexpr = TW * TH * SP
    tx, ty, x, y, real = sample_places(tiles_x, SS, SP, TW, TH)
    fine_h, fine_w = H * SS, W * SS
    real = real & (x < fine_w) & (y < fine_h)
    tan = tl.load(camera + image * 5 + 4)
    width_of_sample = tan / tl.minimum(fine_h, fine_w).to(tl.float32) * 0.7

    n16 = tl.arange(0, 16)
    at = windows + (image * N_OBJECTS + n16) * 4
    x0, y0 = tl.load(at, mask=n16 < N_OBJECTS, other=0), tl.load(at + 1, mask=n16 < N_OBJECTS, other=0)
    x1, y1 = tl.load(at + 2, mask=n16 < N_OBJECTS, other=0), tl.load(at + 3, mask=n16 < N_OBJECTS, other=0)
    touches = (x0 < (tx + TW) * SS) & (x1 > tx * SS) & (y0 < (ty + TH) * SS) & (y1 > ty * SS)
    candidates = tl.sum(tl.where(touches & (x1 > x0) & (y1 > y0), 1 << n16, 0), axis=0)

    slot = tl.full((BLOCK,), -1, tl.int32)
    nearest = tl.full((BLOCK,), float("inf"), tl.float32)
    found_at = tl.full((BLOCK,), 1.0, tl.float32)
    if candidates != 0:
        for n in range(N_OBJECTS):
            if (candidates >> n) & 1:
                pair = image * N_OBJECTS + n
                row = extra + pair * EXTRA
                at_n = windows + pair * 4
                inside = real & (x >= tl.load(at_n)) & (y >= tl.load(at_n + 1))
                inside = inside & (x < tl.load(at_n + 2)) & (y < tl.load(at_n + 3))
                ox, oy, oz, dx, dy, dz, shrink = ray(row, x, y, fine_h, fine_w)
                near, far = enter_box(
                    ox, oy, oz, dx, dy, dz, tl.load(row + 12), tl.load(row + 13), tl.load(row + 14)
                )
                alive = inside & (near < far)
                far = far + 0.01
                eps = near * width_of_sample
                shape = tl.load(kinds + pair * 4).to(tl.int32)
                steps = tl.load(shapes + shape * TABLE + 5).to(tl.int32)
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
                depth = t * tl.load(objects + pair * COLUMNS + 3) * shrink
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
        for n in range(N_OBJECTS):
            if (candidates >> n) & 1:
                own = real & (slot == n)
                count = tl.sum(own.to(tl.int32), axis=0)
                if count > 0:
                    present |= 1 << n
                    tl.atomic_add(visible + image * N_OBJECTS + n, count, sem="relaxed")
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
        for n in range(N_OBJECTS):
            if (present >> n) & 1:
                own = in_picture & (instance == n)
                low_x = tl.min(tl.where(own, px, W), axis=0)
                if low_x < W:
                    at_b = bounds + (image * N_OBJECTS + n) * 4
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


@triton.jit(do_not_specialize=NUMBERS)
def finish_kernel(bounds, areas, visible, boxes, fraction, PAIRS, BLOCK: tl.constexpr):
    """Float boxes, zero where nothing is seen, and visible parts."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = pair < PAIRS
    seen = tl.load(bounds + pair * 4 + 2, mask=real, other=0) > 0
    for i in tl.static_range(4):
        value = tl.load(bounds + pair * 4 + i, mask=real, other=0)
        tl.store(boxes + pair * 4 + i, tl.where(seen, value, 0).to(tl.float32), mask=real)
    whole = tl.maximum(tl.load(areas + pair, mask=real, other=1), 1).to(tl.float32)
    tl.store(fraction + pair, tl.load(visible + pair, mask=real, other=0).to(tl.float32) / whole, mask=real)
