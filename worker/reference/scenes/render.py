"""Pictures from packed scenes: trace, light, paint, compose.

Objects are sampled `supersample`² times per pixel; floors and backdrops once, since their textures filter themselves.
Batches are cut so that memory stays bounded. On the CPU the same scenes give the same bits. On CUDA the Triton twin in
`fused` draws the same pictures up to rounding, many times faster; the code here stays the reference.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from .backdrops import BACKDROP_TEXTURES
from .floors import FLOOR_TEXTURES, blend
from .light import light_on
from .pack import FAR, WALL_DEPTH, SceneTensors
from .raytrace import Frame, Triple, Visibility, trace
from .surface import paint, shade
from .vocab import BACKDROPS, MAX_OBJECTS, WALLS

MAX_SAMPLES: Final = 1 << 26
"""Samples rendered at once: 64 pictures of 512 x 512 with 2 x 2 samples, in about 10 GB."""
_WALL_KINDS: Final = tuple(kind in WALLS for kind in BACKDROPS)


Backend = Literal["torch", "triton"]


@dataclass(frozen=True)
class Render:
    """Pictures of B scenes with exact ground truth for their N object slots.

    `images` float32 [B, 3, H, W], sRGB in [0, 1]. `instances` int64 [B, H, W]: slot seen by most of the pixel, -1 for
    none. `boxes` float32 [B, N, 4]: half-open pixel bounds (x0, y0, x1, y1) of each slot in `instances`, zeros when it
    is not seen. `visible_fraction` float32 [B, N]: part of each object's own silhouette inside the picture that
    nothing hides; 0 for empty slots.
    """

    images: Tensor
    instances: Tensor
    boxes: Tensor
    visible_fraction: Tensor


@torch.no_grad()
def render(
    tensors: SceneTensors,
    size: tuple[int, int] = (512, 512),
    supersample: int = 2,
    *,
    max_samples: int = MAX_SAMPLES,
    backend: Backend | None = None,
) -> Render:
    """Render all scenes at `size` (height, width) pixels, on the device that holds them.

    `backend` forces the PyTorch reference or the fused Triton kernels; by default CUDA gets Triton, others PyTorch.
    At most `max_samples` samples (pixels x `supersample`²) are worked on at once, which bounds the memory.

    Raises:
        ValueError: the size or the supersampling is not positive, there is no scene, or the backend is unknown.
    """
    if min(*size, supersample) < 1 or not len(tensors):
        raise ValueError(
            f"need a scene, a positive size and supersample, got {len(tensors)}, {size}, {supersample}"
        )
    if backend not in {None, "torch", "triton"}:
        raise ValueError(f"backend is 'torch', 'triton' or None, got {backend!r}")
    frame = Frame(size[0], size[1], supersample)
    fused = backend == "triton" or (
        backend is None and tensors.objects.device.type == "cuda" and supersample <= 15
    )
    draw = _render_fused if fused else _render_chunk
    step = max(1, max_samples // frame.fine.pixels)
    parts = [draw(tensors[start : start + step], frame) for start in range(0, len(tensors), step)]
    if len(parts) == 1:
        return parts[0]
    return Render(
        *(
            torch.cat([getattr(p, n) for p in parts])
            for n in ("images", "instances", "boxes", "visible_fraction")
        )
    )


def _render_fused(tensors: SceneTensors, frame: Frame) -> Render:
    from .fused import render_fused  # noqa: PLC0415 - needs Triton, which only CUDA machines have

    device = tensors.objects.device
    with (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    ):  # Triton launches on the current one
        return Render(*render_fused(tensors, *frame))


def _render_chunk(tensors: SceneTensors, frame: Frame) -> Render:
    batch, per_pixel = len(tensors), frame.supersample**2
    device = tensors.objects.device
    seen = trace(tensors, frame)
    floor_mean = _floor_mean(tensors)
    if seen is None:
        instances = torch.full((batch, frame.height, frame.width), -1, device=device)
        colour = _background(tensors, torch.arange(batch * frame.pixels, device=device), frame)
        fraction = torch.zeros((batch, MAX_OBJECTS), device=device)
    else:
        instances = _instances(seen.slots, frame)
        objects = _object_layer(tensors, seen, frame, floor_mean)  # [pixels, per_pixel, 4]
        total = objects.sum(1)
        covered = total[:, 3] / per_pixel
        colour = total[:, :3] / per_pixel
        open_pixels = (covered < 1.0).nonzero().squeeze(1)
        behind = _background(tensors, open_pixels, frame)
        colour.index_add_(0, open_pixels, behind * (1.0 - covered[open_pixels])[:, None])
        fraction = seen.visible / seen.areas.clamp_min(1)
    images = colour.view(batch, frame.height, frame.width, 3).permute(0, 3, 1, 2).contiguous()
    return Render(images, instances, _boxes(instances), fraction)


def _object_layer(tensors: SceneTensors, seen: Visibility, frame: Frame, floor_mean: Tensor) -> Tensor:
    """Display colour and coverage of every sample, grouped by pixel: [B H W, samples, 4]."""
    hits, ss = seen.hits, frame.supersample
    offset = 0.02
    start = tuple(p + offset * n for p, n in zip(hits.point, hits.normal, strict=True))
    point: Triple = (start[0], start[1], start[2])
    lit, open_sky = light_on(tensors, hits.image, point, hits.normal, hits.slot)
    colour = display(shade(tensors, hits, paint(tensors, hits), lit, open_sky, floor_mean))
    x = hits.sample % frame.fine.width
    y = torch.div(hits.sample, frame.fine.width, rounding_mode="floor")  # counts rows through the whole batch
    pixel = torch.div(y, ss, rounding_mode="floor") * frame.width + torch.div(x, ss, rounding_mode="floor")
    layer = torch.zeros((len(tensors) * frame.pixels * ss * ss, 4), device=colour.device)
    layer[pixel * ss * ss + y % ss * ss + x % ss] = torch.cat((colour, torch.ones_like(colour[:, :1])), -1)
    return layer.view(-1, ss * ss, 4)


def _floor_mean(tensors: SceneTensors) -> Tensor:
    return 0.6 * tensors.floor[:, :3] + 0.4 * tensors.floor[:, 3:6]


def _background(tensors: SceneTensors, pixels: Tensor, frame: Frame) -> Tensor:
    """Display colour of the floor and backdrop at flat pixel indices, [P, 3]."""
    image = torch.div(pixels, frame.pixels, rounding_mode="floor")
    u, v = frame.screen(
        (pixels % frame.width).float(),
        (torch.div(pixels, frame.width, rounding_mode="floor") % frame.height).float(),
    )
    eye_y, eye_z, cos, sin, tan = tensors.camera[image].unbind(-1)
    dx, dy, dz = tan * u, cos * tan * v - sin, sin * tan * v + cos
    pixel = 2.0 * tan / min(frame.height, frame.width)
    is_wall = torch.tensor(_WALL_KINDS, device=pixels.device)[tensors.ground_kinds[image, 1]]
    end = torch.where(is_wall, WALL_DEPTH, FAR)
    reach = torch.where(dy < -1e-4, -eye_y / dy.clamp_max(-1e-4), torch.inf)  # to the floor, along the ray
    edge = (end - eye_z) / dz  # to the wall, or to the end of the floor
    # the floor's share of the pixel: how far the ray passes below the line where floor and wall meet
    below = -(eye_y + dy * edge)
    share = (below / (pixel * edge * cos).clamp_min(1e-6) + 0.5).clamp(0.0, 1.0)
    on_floor, off_floor = (share > 0.0).nonzero().squeeze(1), (share < 1.0).nonzero().squeeze(1)
    colour = torch.zeros((len(pixels), 3), device=pixels.device)
    ray: Triple = (dx, dy, dz)
    if len(on_floor):
        reach = torch.minimum(reach, edge)
        colour[on_floor] = _floor(tensors, image, ray, reach, pixel, on_floor) * share[on_floor, None]
    if len(off_floor):
        wall_y = eye_y + dy * edge
        place = (torch.where(is_wall, dx * edge, dx / dz), torch.where(is_wall, wall_y, dy / dz))
        width = torch.where(is_wall, pixel * edge, pixel)
        light = torch.where(is_wall, 0.62 + 0.38 * (wall_y / 1.2).clamp(0.0, 1.0), 1.0)
        part = _backdrop(tensors, image, place, width, off_floor) * light[off_floor, None]
        colour[off_floor] += display(part) * (1.0 - share[off_floor, None])
    return colour


def _floor(
    tensors: SceneTensors, image: Tensor, ray: Triple, reach: Tensor, pixel: Tensor, rows: Tensor
) -> Tensor:
    """Display colour of lit floor under the chosen rays."""
    image, reach = image[rows], reach[rows]
    dx, dy, dz = (part[rows] for part in ray)
    eye_z = tensors.camera[image, 1]
    x, z = dx * reach, eye_z + dz * reach
    near = pixel[rows] * reach
    wide = near / (-dy / (dx * dx + dy * dy + dz * dz).sqrt()).clamp_min(0.04)
    columns = tensors.floor[image]
    scale, cos, sin = columns[:, 6], columns[:, 7], columns[:, 8]
    a, b = (x * cos + z * sin) * scale + columns[:, 9], (z * cos - x * sin) * scale + columns[:, 10]
    wa, wb = (near * cos.abs() + wide * sin.abs()) * scale, (wide * cos.abs() + near * sin.abs()) * scale
    base = torch.zeros((len(rows), 3), device=rows.device)
    kinds = tensors.ground_kinds[image, 0]
    for kind, texture in enumerate(FLOOR_TEXTURES):
        some = (kinds == kind).nonzero().squeeze(1)
        if len(some):
            base[some] = texture(a[some], b[some], wa[some], wb[some], columns[some])
    zero = torch.zeros_like(x)
    lit, open_sky = light_on(tensors, image, (x, zero, z), (zero, zero + 1.0, zero), None)
    light = tensors.light[image]
    sky = 0.55 * tensors.backdrop[image, 0:3] + 0.45 * tensors.backdrop[image, 3:6]
    sky = 0.5 * sky + 0.25 * sky.mean(-1, keepdim=True) + 0.12
    colour = base * (
        0.78 * (lit * light[:, 1] ** 0.5)[:, None] * light[:, 3:6] + 0.42 * open_sky[:, None] * sky
    )
    # distance melts into the horizon, but a wall stands before that happens
    haze = 1.0 - torch.exp(-((reach - 9.0).clamp_min(0.0) / 26.0))
    haze = torch.where(
        torch.tensor(_WALL_KINDS, device=rows.device)[tensors.ground_kinds[image, 1]], 0.0, haze
    )
    far = _horizon_colour(tensors)[image]
    return display(blend(colour, far, haze))


def _horizon_colour(tensors: SceneTensors) -> Tensor:
    """What each backdrop shows at the horizon, [B, 3]."""
    count = len(tensors)
    zero = torch.zeros(count, device=tensors.floor.device)
    colour = torch.zeros((count, 3), device=zero.device)
    kinds = tensors.ground_kinds[:, 1]
    for kind, name in enumerate(BACKDROPS):
        some = (kinds == kind).nonzero().squeeze(1)
        if not len(some):
            continue
        rows = tensors.backdrop[some]
        own = (
            rows[:, 6:9]
            if name in {"mountains", "city"}
            else BACKDROP_TEXTURES[kind](zero[some], zero[some] + 0.002, zero[some] + 0.01, rows)
        )
        colour[some] = own
    return colour


def _backdrop(
    tensors: SceneTensors, image: Tensor, place: tuple[Tensor, Tensor], width: Tensor, rows: Tensor
) -> Tensor:
    """Linear colour of the backdrop at the chosen places."""
    image, x, y, width = image[rows], place[0][rows], place[1][rows], width[rows]
    kinds = tensors.ground_kinds[image, 1]
    colour = torch.zeros((len(rows), 3), device=rows.device)
    for kind, texture in enumerate(BACKDROP_TEXTURES):
        some = (kinds == kind).nonzero().squeeze(1)
        if len(some):
            colour[some] = texture(x[some], y[some], width[some], tensors.backdrop[image[some]])
    return colour


def display(linear: Tensor) -> Tensor:
    """Screen colour (sRGB in [0, 1]) of linear light, with a soft shoulder above 0.75 so that highlights do not clip."""
    knee = 0.75
    over = (linear - knee).clamp_min(0.0) / (1.0 - knee)
    soft = torch.where(linear > knee, 1.0 - (1.0 - knee) * torch.exp(-over), linear.clamp_min(0.0))
    return torch.where(soft <= 0.0031308, 12.92 * soft, 1.055 * soft.clamp_min(1e-6) ** (1.0 / 2.4) - 0.055)


def _instances(slots: Tensor, frame: Frame) -> Tensor:
    """Slot that most samples of each pixel see, [B, H, W]; of equals, an object before the background."""
    ss = frame.supersample
    samples = slots.view(-1, frame.height, ss, frame.width, ss)
    samples = samples.permute(0, 1, 3, 2, 4).flatten(3)  # [B, H, W, samples]
    votes = torch.stack([(samples == samples[..., i : i + 1]).sum(-1) for i in range(ss * ss)], -1)
    rank: Tensor = votes * 64 + (samples + 1)  # equal votes go to the higher slot, on every device
    return torch.remainder(rank.amax(-1), 64) - 1


def _boxes(instances: Tensor) -> Tensor:
    """Half-open bounds of every slot in the instance map, float32 [B, N, 4]."""
    batch, height, width = instances.shape
    flat = instances.flatten(1)
    inside = flat >= 0
    key = (torch.arange(batch, device=flat.device)[:, None] * MAX_OBJECTS + flat)[inside]
    place = torch.arange(height * width, device=flat.device).expand(batch, -1)[inside]
    x, y = place % width, torch.div(place, width, rounding_mode="floor")
    bounds = []
    for value, mode, start in (
        (x, "amin", width),
        (y, "amin", height),
        (x + 1, "amax", 0),
        (y + 1, "amax", 0),
    ):
        edge = torch.full((batch * MAX_OBJECTS,), start, device=flat.device)
        bounds.append(edge.scatter_reduce_(0, key, value, mode))
    boxes = torch.stack(bounds, -1).view(batch, MAX_OBJECTS, 4)
    return torch.where((boxes[..., 2:3] > 0), boxes, 0).float()
