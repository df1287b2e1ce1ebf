"""Primary visibility: which object each sample of the picture sees, and where.

Only the samples inside an object's projected box are traced for it, shape by shape, as flat lists. So no work is spent
on empty slots, and no loop runs over images or pixels.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from .pack import CENTRE, SCALE, TO_LOCAL, SceneTensors
from .sdf import FIELDS, normal
from .vocab import MAX_OBJECTS, SHAPES

_HALF: Final = tuple(shape.half for shape in SHAPES.values())
_STEPS: Final = tuple(shape.steps for shape in SHAPES.values())
_COMPACT_EVERY: Final = 6
Triple = tuple[Tensor, Tensor, Tensor]


class Frame(NamedTuple):
    """Size of the picture in pixels, and samples along a pixel's side."""

    height: int
    width: int
    supersample: int

    @property
    def fine(self) -> "Frame":
        """The frame whose pixels are this one's samples."""
        return Frame(self.height * self.supersample, self.width * self.supersample, 1)

    @property
    def pixels(self) -> int:
        """Pixels of one picture."""
        return self.height * self.width

    def screen(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Screen coordinates (u right, v up; ±1 over the shorter side) of the centres of pixels (x, y)."""
        half = 0.5 * min(self.height, self.width)
        return (x + (0.5 - 0.5 * self.width)) / half, ((0.5 * self.height - 0.5) - y) / half


@dataclass(frozen=True)
class Hits:
    """What the M samples that see an object see. Flat tensors; triples are x, y, z."""

    sample: Tensor
    """Flat index into [B, fine height, fine width]."""
    image: Tensor
    slot: Tensor
    shape: Tensor
    local: Triple
    """Point in the shape's own frame."""
    local_normal: Triple
    point: Triple
    normal: Triple
    view: Triple
    """Unit direction from the eye."""
    footprint: Tensor
    """Width of a pixel at the point, in the shape's own frame."""


@dataclass(frozen=True)
class Visibility:
    """Samples that see objects, and how much of each object there is to see."""

    hits: Hits
    slots: Tensor
    """int64 [B, fine height, fine width]: slot seen by each sample, -1 for none."""
    areas: Tensor
    """int64 [B, N]: samples that each object would fill alone."""
    visible: Tensor
    """int64 [B, N]: samples that it does fill."""


def _dot(a: Triple, b: Triple) -> Tensor:
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def object_windows(tensors: SceneTensors, frame: Frame) -> Tensor:
    """Half-open pixel bounds (x0, y0, x1, y1) of each object's projected box, int64 [B, N, 4]; empty slots are void."""
    shape = tensors.object_kinds[..., 0]
    half = torch.tensor(_HALF, device=shape.device)[shape.clamp_min(0)]  # [B, N, 3]
    corners = torch.tensor(
        [[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], device=shape.device
    )
    local = corners * half[:, :, None]  # [B, N, 8, 3]
    rotation = tensors.objects[..., TO_LOCAL].reshape(-1, MAX_OBJECTS, 3, 3)
    world = (local[..., None] * rotation[:, :, None]).sum(-2) * tensors.objects[..., SCALE, None, None]
    world = world + tensors.objects[..., None, CENTRE]
    eye_y, eye_z, cos, sin, tan = (column[:, None, None] for column in tensors.camera.unbind(-1))
    x, y, z = world[..., 0], world[..., 1] - eye_y, world[..., 2] - eye_z
    depth = (z * cos - y * sin).clamp_min(0.1)
    scale = 0.5 * min(frame.height, frame.width) / (tan * depth)
    px = x * scale + 0.5 * frame.width
    py = 0.5 * frame.height - (y * cos + z * sin) * scale
    low = torch.stack((px.amin(-1), py.amin(-1)), -1).floor().long() - 1
    high = torch.stack((px.amax(-1), py.amax(-1)), -1).ceil().long() + 1
    size = torch.tensor([frame.width, frame.height], device=shape.device)
    low, high = torch.minimum(low.clamp_min(0), size), torch.minimum(high.clamp_min(0), size)
    high = torch.where((shape >= 0)[..., None], high, low)
    return torch.cat((low, torch.maximum(high, low)), -1)


class _Rays:
    """Rays of every (image, slot) pair in the frame of its object: direction = ahead + u right + v up."""

    def __init__(self, tensors: SceneTensors) -> None:
        rotation = tensors.objects[..., TO_LOCAL].reshape(-1, MAX_OBJECTS, 3, 3)
        eye_y, eye_z, cos, sin, tan = tensors.camera.unbind(-1)
        zero = torch.zeros_like(cos)
        world = torch.stack((zero, -sin, cos, tan, zero, zero, zero, cos * tan, sin * tan), -1).view(
            -1, 1, 1, 3, 3
        )
        # [B, N, 3 rows of the ray basis, 3 local axes]
        self._basis = (world * rotation[:, :, :, None]).sum(-1).transpose(-1, -2).reshape(-1, 9)
        eye = torch.stack((zero, eye_y, eye_z), -1)[:, None] - tensors.objects[..., CENTRE]
        local_eye = (rotation * eye[:, :, None]).sum(-1) / tensors.objects[..., SCALE, None]
        self._eye = local_eye.view(-1, 3)
        self._scale = tensors.objects[..., SCALE].reshape(-1)

    def cast(self, pair: Tensor, u: Tensor, v: Tensor) -> tuple[Triple, Triple, Tensor]:
        """Local origin, unit local direction, and optical depth per unit of local distance, flat."""
        basis = self._basis[pair].unbind(-1)
        x, y, z = (torch.addcmul(torch.addcmul(basis[i], basis[3 + i], u), basis[6 + i], v) for i in range(3))
        shrink = _dot((x, y, z), (x, y, z)).rsqrt_()
        eye_x, eye_y, eye_z = self._eye[pair].unbind(-1)
        return (eye_x, eye_y, eye_z), (x * shrink, y * shrink, z * shrink), self._scale[pair] * shrink


def enter_box(origin: Triple, direction: Triple, half: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave a box around 0; they miss it where the first exceeds the second."""
    near = torch.full_like(origin[0], 0.0)
    far = torch.full_like(origin[0], torch.inf)
    for o, d, h in zip(origin, direction, half, strict=True):
        inverse = torch.where(d.abs() < 1e-6, 1e6, d.reciprocal())
        middle, reach = -o * inverse, inverse.abs() * h
        near = torch.maximum(near, middle - reach)
        far = torch.minimum(far, middle + reach)
    return near, far


def _march(shape: int, origin: Triple, direction: Triple, near: Tensor, far: Tensor, eps: Tensor) -> Tensor:
    """Local distance along each ray at which it meets the shape, inf where it does not."""
    result = torch.full_like(near, torch.inf)
    rows = torch.arange(near.shape[0], device=near.device)
    field, t = FIELDS[shape], near
    for step in range(1, _STEPS[shape] + 1):
        gap = field(*(torch.addcmul(o, d, t) for o, d in zip(origin, direction, strict=True)))
        last = step == _STEPS[shape]
        if last or step % _COMPACT_EVERY == 0:
            arrived = gap < eps
            result[rows[arrived]] = t[arrived]
            if last:
                break
            keep = ((~arrived) & (t < far)).nonzero().squeeze(1)
            rows, far, eps, t, gap = rows[keep], far[keep], eps[keep], t[keep], gap[keep]
            origin = (origin[0][keep], origin[1][keep], origin[2][keep])
            direction = (direction[0][keep], direction[1][keep], direction[2][keep])
        t = t + gap
    return result


class _Found(NamedTuple):
    """Samples of one shape that meet it, before the depth test."""

    shape: int
    sample: Tensor
    pair: Tensor
    distance: Tensor
    depth: Tensor


def _samples_in(windows: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every (pair, x, y) inside the windows [N', 4] of the given pairs, flat."""
    x0, y0, x1, y1 = windows.unbind(-1)
    width, area = x1 - x0, (x1 - x0) * (y1 - y0)
    row = torch.repeat_interleave(torch.arange(len(pairs), device=pairs.device), area)
    offset = torch.arange(row.shape[0], device=row.device) - (area.cumsum(0) - area)[row]
    y = torch.div(offset, width[row], rounding_mode="floor")
    return pairs[row], x0[row] + offset - y * width[row], y0[row] + y


def _find(tensors: SceneTensors, rays: _Rays, shape: int, windows: Tensor, fine: Frame) -> _Found | None:
    pairs = (tensors.object_kinds[..., 0].reshape(-1) == shape).nonzero().squeeze(1)
    if not len(pairs):
        return None
    pair, x, y = _samples_in(windows.view(-1, 4)[pairs], pairs)
    origin, direction, depth_per_unit = rays.cast(pair, *fine.screen(x.float(), y.float()))
    near, far = enter_box(origin, direction, _HALF[shape])
    inside = (near < far).nonzero().squeeze(1)
    pair, near, far, depth_per_unit = pair[inside], near[inside], far[inside], depth_per_unit[inside]
    origin = (origin[0][inside], origin[1][inside], origin[2][inside])
    direction = (direction[0][inside], direction[1][inside], direction[2][inside])
    sample = (torch.div(pair, MAX_OBJECTS, rounding_mode="floor") * fine.height + y[inside]) * fine.width + x[
        inside
    ]
    tan = tensors.camera[:, 4].repeat_interleave(MAX_OBJECTS)[pair]
    eps = near * tan / min(fine.height, fine.width) * 0.7  # a third of a sample's width
    distance = _march(shape, origin, direction, near, far + 0.01, eps)
    met = distance.isfinite().nonzero().squeeze(1)
    distance = distance[met]
    return _Found(shape, sample[met], pair[met], distance, distance * depth_per_unit[met])


def _surface(tensors: SceneTensors, rays: _Rays, found: _Found, frame: Frame) -> Hits:
    """Full record of the samples that passed the depth test."""
    fine = frame.fine
    image = torch.div(found.pair, MAX_OBJECTS, rounding_mode="floor")
    x = found.sample % fine.width
    y = torch.div(found.sample, fine.width, rounding_mode="floor") % fine.height
    origin, direction, _ = rays.cast(found.pair, *fine.screen(x.float(), y.float()))
    lx, ly, lz = (torch.addcmul(o, d, found.distance) for o, d in zip(origin, direction, strict=True))
    nx, ny, nz = normal(FIELDS[found.shape], lx, ly, lz)
    rows = tensors.objects.view(-1, tensors.objects.shape[-1])[found.pair]  # [M, columns]
    rotation, scale = rows[:, TO_LOCAL].unbind(-1), rows[:, SCALE]

    def to_world(a: Tensor, b: Tensor, c: Tensor) -> Triple:
        turned = (a * rotation[i] + b * rotation[3 + i] + c * rotation[6 + i] for i in range(3))
        return next(turned), next(turned), next(turned)

    px, py, pz = to_world(lx * scale, ly * scale, lz * scale)
    centre = rows[:, CENTRE].unbind(-1)
    pixel = 2.0 * tensors.camera[image, 4] / min(frame.height, frame.width)
    return Hits(
        sample=found.sample,
        image=image,
        slot=found.pair % MAX_OBJECTS,
        shape=torch.full_like(found.pair, found.shape),
        local=(lx, ly, lz),
        local_normal=(nx, ny, nz),
        point=(px + centre[0], py + centre[1], pz + centre[2]),
        normal=to_world(nx, ny, nz),
        view=to_world(*direction),
        footprint=found.distance * pixel,
    )


def _join(parts: list[Hits]) -> Hits:
    def flat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def triple(name: str) -> Triple:
        rows = [getattr(part, name) for part in parts]
        return (
            torch.cat([r[0] for r in rows]),
            torch.cat([r[1] for r in rows]),
            torch.cat([r[2] for r in rows]),
        )

    return Hits(
        sample=flat("sample"),
        image=flat("image"),
        slot=flat("slot"),
        shape=flat("shape"),
        local=triple("local"),
        local_normal=triple("local_normal"),
        point=triple("point"),
        normal=triple("normal"),
        view=triple("view"),
        footprint=flat("footprint"),
    )


def trace(tensors: SceneTensors, frame: Frame) -> Visibility | None:
    """What each sample of the B pictures sees; None when there is no object at all."""
    batch, fine = len(tensors), frame.fine
    rays, windows = _Rays(tensors), object_windows(tensors, fine)
    everything = (_find(tensors, rays, shape, windows, fine) for shape in range(len(SHAPES)))
    found = [part for part in everything if part is not None and len(part.sample)]
    if not found:
        return None
    device = windows.device
    nearest = torch.full((batch * fine.pixels,), torch.inf, device=device)
    for part in found:
        nearest.scatter_reduce_(0, part.sample, part.depth, "amin")
    slots = torch.full((batch * fine.pixels,), -1, dtype=torch.int64, device=device)
    for part in found:  # equal depths go to the higher slot, so that the order of writing does not matter
        first = (part.depth == nearest[part.sample]).nonzero().squeeze(1)
        slots.scatter_reduce_(0, part.sample[first], part.pair[first] % MAX_OBJECTS, "amax")
    areas = torch.bincount(torch.cat([part.pair for part in found]), minlength=batch * MAX_OBJECTS)
    kept = []
    for part in found:
        wins = (part.depth == nearest[part.sample]) & (part.pair % MAX_OBJECTS == slots[part.sample])
        rows = wins.nonzero().squeeze(1)
        chosen = _Found(part.shape, part.sample[rows], part.pair[rows], part.distance[rows], part.depth[rows])
        kept.append(_surface(tensors, rays, chosen, frame))
    hits = _join(kept)
    visible = torch.bincount(hits.image * MAX_OBJECTS + hits.slot, minlength=batch * MAX_OBJECTS)
    return Visibility(
        hits,
        slots.view(batch, fine.height, fine.width),
        areas.view(batch, MAX_OBJECTS),
        visible.view(batch, MAX_OBJECTS),
    )
