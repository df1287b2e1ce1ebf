"""Light on surfaces: soft shadows marched through the casters' distance fields, and analytic ambient occlusion."""

from typing import Final

import torch
from torch import Tensor

from .pack import CENTRE, SCALE, TO_LOCAL, SceneTensors
from .raytrace import Triple, enter_box
from .sdf import FIELDS
from .vocab import MAX_OBJECTS, SHAPES, THIN_SHAPES

_HALF: Final = tuple(shape.half for shape in SHAPES.values())
REACH: Final = tuple(sum(h * h for h in half) ** 0.5 for half in _HALF)
BULK: Final = tuple(  # radius of the sphere that stands for a shape where it dims the sky
    0.0 if name in THIN_SHAPES else (min(shape.half) + max(shape.half)) * 0.45
    for name, shape in SHAPES.items()
)
IS_THIN: Final = tuple(name in THIN_SHAPES for name in SHAPES)
_STEPS: Final = 14
_THIN_STEPS: Final = 30


def _soft(shape: int, origin: Triple, direction: Triple, softness: Tensor) -> Tensor:
    """Part of the light in [0, 1] that passes the shape; softness is the penumbra's width per unit of distance."""
    x, y, z = _HALF[shape]
    pad = 0.18
    near, far = enter_box(origin, direction, (x + pad, y + pad, z + pad))
    steps = _THIN_STEPS if IS_THIN[shape] else _STEPS
    field, t = FIELDS[shape], near
    lit = torch.ones_like(near)
    stride = (far - near).clamp_min(0.0) / steps
    for _ in range(steps):
        gap = field(*(torch.addcmul(o, d, t) for o, d in zip(origin, direction, strict=True)))
        lit = torch.minimum(lit, gap / (softness * (t + 0.15)))
        t = t + torch.maximum(gap.abs() * 0.8, stride * 0.35).clamp_max(0.35)
        # past the box nothing darkens any more: stay at its far side
        t = torch.minimum(t, torch.maximum(far, near))
    lit = (0.5 + 0.5 * lit).clamp_(0.0, 1.0)
    lit = lit * lit * (3.0 - 2.0 * lit)
    return torch.where(near < far, lit, 1.0)


def light_on(
    tensors: SceneTensors, image: Tensor, point: Triple, normal: Triple, slot: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Key light and sky that reach P points.

    Args:
        tensors: the scenes.
        image: scene of each point, int64 [P].
        point: world coordinates, flat.
        normal: unit normals, flat.
        slot: object that each point is on, int64 [P]; it casts no shadow on itself. None on the floor.

    Returns:
        Part of the key light that arrives, and part of the sky that is open, float32 [P] in [0, 1].
    """
    shape = tensors.object_kinds[..., 0]
    reach = torch.tensor((*REACH, 0.0), device=shape.device)[shape] * tensors.objects[..., SCALE]
    bulk = torch.tensor((*BULK, 0.0), device=shape.device)[shape] * tensors.objects[..., SCALE]
    light_x, light_y, light_z = tensors.light[image, :3].unbind(-1)
    towards: Triple = (light_x, light_y, light_z)
    softness = tensors.light[image, 6]
    open_sky = torch.ones_like(point[0])
    rows, casters = [], []
    for n in range(MAX_OBJECTS):
        table = torch.cat((tensors.objects[:, n, CENTRE], reach[:, n, None], bulk[:, n, None]), -1)
        cx, cy, cz, far_reach, radius = table[image].unbind(-1)
        dx, dy, dz = cx - point[0], cy - point[1], cz - point[2]
        squared = (dx * dx + dy * dy + dz * dz).clamp_min(1e-6)
        along = dx * towards[0] + dy * towards[1] + dz * towards[2]
        width = far_reach + softness * along.clamp_min(0.0)
        shades = (far_reach > 0.0) & (along > -far_reach) & (squared - along * along < width * width)
        facing = (dx * normal[0] + dy * normal[1] + dz * normal[2]).clamp_min(0.0) * squared.rsqrt()
        dimmed = (facing * radius * radius / squared).clamp_max(1.0)
        if slot is not None:
            other = slot != n
            shades &= other
            dimmed = dimmed * other
        open_sky = open_sky * (1.0 - 0.75 * dimmed)
        chosen = shades.nonzero().squeeze(1)
        rows.append(chosen)
        casters.append(image[chosen] * MAX_OBJECTS + n)
    lit = _shadows(tensors, torch.cat(rows), torch.cat(casters), point, towards)
    return lit, open_sky


def _shadows(tensors: SceneTensors, rows: Tensor, casters: Tensor, point: Triple, towards: Triple) -> Tensor:
    """Darkest of the shadows that each caster (flat index of image and slot) throws on its point."""
    lit = torch.ones_like(point[0])
    shapes = tensors.object_kinds[..., 0].reshape(-1)[casters]
    objects = tensors.objects.view(-1, tensors.objects.shape[-1])
    for shape in range(len(SHAPES)):
        some = (shapes == shape).nonzero().squeeze(1)
        if not len(some):
            continue
        row, caster = rows[some], casters[some]
        columns = objects[caster]
        rotation, scale = columns[:, TO_LOCAL].unbind(-1), columns[:, SCALE]
        centre = columns[:, CENTRE].unbind(-1)
        ox, oy, oz = (p[row] - c for p, c in zip(point, centre, strict=True))
        ox, oy, oz = ox / scale, oy / scale, oz / scale
        dx, dy, dz = (t[row] for t in towards)

        def turned(x: Tensor, y: Tensor, z: Tensor, rotation: tuple[Tensor, ...] = rotation) -> Triple:
            axes = (rotation[3 * i] * x + rotation[3 * i + 1] * y + rotation[3 * i + 2] * z for i in range(3))
            return next(axes), next(axes), next(axes)

        soft = tensors.light[torch.div(caster, MAX_OBJECTS, rounding_mode="floor"), 6]
        lit.scatter_reduce_(0, row, _soft(shape, turned(ox, oy, oz), turned(dx, dy, dz), soft), "amin")
    return lit
