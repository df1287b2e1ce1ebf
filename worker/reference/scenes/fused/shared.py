"""What the kernels share: sizes of their tables, a tile's samples, and rays in an object's own space."""

from functools import cache
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from toprovar_batch.worker.reference.scenes.backdrops import BACKDROP_TEXTURES
from toprovar_batch.worker.reference.scenes.light import BULK, IS_THIN, REACH
from toprovar_batch.worker.reference.scenes.pack import FAR, WALL_DEPTH
from toprovar_batch.worker.reference.scenes.vocab import (
    BACKDROPS,
    DIGIT_SHAPES,
    MATERIALS,
    MAX_OBJECTS,
    PATTERNS,
    SHAPE_NAMES,
    SHAPES,
    WALLS,
)

_WALLS_AT: Final = tuple(BACKDROPS.index(name) for name in WALLS)
assert sorted(_WALLS_AT) == [5, 6, 7]
assert BACKDROPS[8:] == ("mountains", "city")
assert MATERIALS == ("matte", "shiny", "metal", "glass")
assert PATTERNS == ("plain", "striped", "checkered", "dotted", "marbled", "speckled", "wooden")
assert [SHAPE_NAMES.index(name) for name in DIGIT_SHAPES] == [1, 13, 14]
assert (SHAPE_NAMES[0], SHAPE_NAMES[4], len(SHAPES), len(BACKDROP_TEXTURES)) == ("sphere", "ring", 15, 10)

N_OBJECTS = tl.constexpr(MAX_OBJECTS)
COLUMNS = tl.constexpr(20)  # of SceneTensors.objects
EXTRA = tl.constexpr(20)  # of the prepared columns, see setup_kernel
TABLE = tl.constexpr(8)  # of the shape table: half 3, reach, bulk, steps, thin, round
FAR_AWAY = tl.constexpr(FAR)
WALL_AT = tl.constexpr(WALL_DEPTH)
# New sizes and slices of a batch must not compile anew.
NUMBERS: Final = ["H", "W", "fine_h", "fine_w", "tiles_x", "tiles", "PAIRS"]
COLUMN_TABLES: Final = ["objects", "kinds", "camera", "light", "floor", "backdrop", "ground_kinds"]


@cache
def shape_table(device: torch.device) -> Tensor:
    rows = [
        (*shape.half, reach, bulk, shape.steps, thin, shape.round)
        for shape, reach, bulk, thin in zip(SHAPES.values(), REACH, BULK, IS_THIN, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32).to(device)


@triton.jit
def sample_places(tiles_x, SS: tl.constexpr, SP: tl.constexpr, TW: tl.constexpr, TH: tl.constexpr):
    """Sample coordinates of the tile's lanes (pixel by pixel), and which lanes are samples."""
    tile = tl.program_id(0)
    tx, ty = (tile % tiles_x) * TW, (tile // tiles_x) * TH
    lane = tl.arange(0, TW * TH * SP)
    pixel, sample = lane // SP, lane % SP
    x = (tx + pixel % TW) * SS + sample % SS
    y = (ty + pixel // TW) * SS + sample // SS
    return tx, ty, x, y, sample < SS * SS


@triton.jit
def ray(row, x, y, fine_h, fine_w):
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
