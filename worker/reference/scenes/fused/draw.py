"""The kernels in order, and the memory between them."""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor

from toprovar_batch.worker.reference.scenes.noise import tables
from toprovar_batch.worker.reference.scenes.pack import SceneTensors
from toprovar_batch.worker.reference.scenes.vocab import MAX_OBJECTS

from .ground import ground_kernel
from .see import finish_kernel, see_kernel
from .setup import setup_kernel
from .shade import shade_kernel
from .shared import shape_table


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
    shapes = shape_table(device)
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
    setup_kernel[(batch,)](
        objects, kinds, camera, backdrop, grounds, shapes, planes, cells,
        extra, windows, horizon, areas, visible, bounds,
        height, width, height * supersample, width * supersample, num_warps=1,
    )  # fmt: skip
    see_kernel[(tiles, batch)](
        objects, kinds, camera, shapes, extra, windows,
        slots, distances, seen_in_tile, covered, instances, areas, visible, bounds,
        height, width, tiles_x, tiles, supersample, lanes, tile_w, tile_h, num_warps=tiling.see_warps,
    )  # fmt: skip
    shade_kernel[(tiles, batch)](
        objects, kinds, light, floor, backdrop, camera, shapes, extra, planes, glyphs,
        slots, distances, seen_in_tile, images, height, width, tiles_x, tiles,
        supersample, lanes, tile_w, tile_h, num_warps=tiling.shade_warps,
    )  # fmt: skip
    ground_x = triton.cdiv(width, tiling.ground_width)
    ground_kernel[(ground_x * triton.cdiv(height, tiling.ground_height), batch)](
        objects, kinds, light, floor, backdrop, camera, grounds, shapes, extra, horizon, planes, cells,
        covered, images, height, width, ground_x, supersample**2, tiling.ground_width, tiling.ground_height,
        num_warps=tiling.ground_warps,
    )  # fmt: skip
    finish_kernel[(triton.cdiv(pairs, 128),)](
        bounds, areas, visible, boxes, fraction, pairs, 128, num_warps=1
    )
    return images, instances, boxes, fraction
