"""Colours of objects: patterns painted on them, digits, and how each material answers the light."""

from typing import Final

import torch
from torch import Tensor

from .floors import blend, filtered_checker, filtered_lines
from .noise import digit_distance, fractal, noise
from .pack import ACCENT, COLOUR, FREQUENCY, SceneTensors
from .raytrace import Hits, Triple
from .vocab import DIGIT_SHAPES, MATERIALS, PATTERNS, SHAPES

_NAMES: Final = tuple(SHAPES)
_ROUND: Final = tuple(shape.round for shape in SHAPES.values())
_CURVED: Final = tuple(1.0 if shape.round else 0.3 for shape in SHAPES.values())
_SPHERE, _RING = _NAMES.index("sphere"), _NAMES.index("ring")
_METAL, _GLASS, _SHINY = (MATERIALS.index(name) for name in ("metal", "glass", "shiny"))
_DIGIT_BOX: Final = {
    "cube": (0.52, 0.0),
    "sign": (0.50, 0.38),
    "card": (0.66, 0.0),
}  # glyph's half height, its centre
_STROKE: Final = 0.135


def _pick(hits: Hits, rows: Tensor) -> tuple[Triple, Triple, Tensor]:
    local = (hits.local[0][rows], hits.local[1][rows], hits.local[2][rows])
    normal = (hits.local_normal[0][rows], hits.local_normal[1][rows], hits.local_normal[2][rows])
    return local, normal, hits.footprint[rows]


def _unwrap(local: Triple, normal: Triple, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Surface coordinates in local units: around and up for round shapes, across the nearest face for the others."""
    x, y, z = local
    nx, ny, nz = (n.abs() for n in normal)
    tables = torch.tensor(_ROUND, device=x.device)
    is_round, is_sphere, is_ring = tables[shape], shape == _SPHERE, shape == _RING
    angle = torch.atan2(x, -z) * (6.0 / torch.pi) * 0.5  # six units around
    tube = torch.atan2(y, torch.hypot(x, z) - 0.73) * (2.0 / torch.pi)
    level = torch.where(is_sphere, torch.asin(y.clamp(-1.0, 1.0)), torch.where(is_ring, tube, y))
    flat_end = (ny > 0.85) & ~is_sphere & ~is_ring
    sideways = (nx > nz) & (nx >= ny)
    u = torch.where(is_round & ~flat_end, angle, torch.where(sideways, z, x))
    v = torch.where(is_round & ~flat_end, level, torch.where((ny > nx) & (ny > nz), z, y))
    return u, v


def _striped(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    del u, v
    along = (local[1] * 0.88 + local[0] * 0.36 + local[2] * 0.30) * frequency
    return filtered_lines(along, 0.40, w * frequency)


def _checkered(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    del local
    return filtered_checker(u * frequency, v * frequency, w * frequency, w * frequency)


def _dotted(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    del local
    v = v * frequency + 0.5
    u = u * frequency + 0.5 * (v.floor() % 2.0)
    distance = torch.hypot(u - u.floor() - 0.5, v - v.floor() - 0.5)
    return ((0.30 - distance) / (w * frequency).clamp_min(1e-3) + 0.5).clamp(0.0, 1.0)


def _marbled(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    a, b = local[0] + 0.73 * local[2], local[1] + 0.41 * local[2] - 0.2 * local[0]
    del u, v
    warp = fractal(a * 1.4 + frequency, b * 1.4 + 7.0, w * 1.4, 4)
    return (1.0 - torch.sin((a * 0.35 + b * 0.5 + 1.3 * warp) * 6.283).abs()) ** 4 * 0.85


def _speckled(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    del u, v
    a, b = local[0] + 0.73 * local[2], local[1] + 0.61 * local[2] - 0.4 * local[0]
    spots = noise(a * 3.0 * frequency, b * 3.0 * frequency)
    return ((spots - 0.68) * 8.0).clamp(0.0, 1.0) * (1.5 - w * 4.0 * frequency).clamp(0.0, 1.0)


def _wooden(u: Tensor, v: Tensor, local: Triple, w: Tensor, frequency: Tensor) -> Tensor:
    del u, v
    warp = fractal(local[0] * 1.1 + frequency, local[1] * 0.5 + local[2] * 0.6, w, 2)
    rings = torch.hypot(local[0] + 0.9, local[2] - 0.55 + 0.15 * local[1]) + 0.35 * warp
    fade = (1.5 - w * 5.0 * 2.5).clamp(0.0, 1.0)
    return (torch.sin(rings * 5.0 * 6.283) * 0.5 + 0.5) ** 2 * fade * 0.42 + 0.05


_PAINTS: Final = (None, _striped, _checkered, _dotted, _marbled, _speckled, _wooden)
assert len(_PAINTS) == len(PATTERNS)


def paint(tensors: SceneTensors, hits: Hits) -> Tensor:
    """Surface colour of every hit, linear RGB [M, 3], before light."""
    rows = tensors.objects[hits.image, hits.slot]
    kinds = tensors.object_kinds[hits.image, hits.slot]
    colour, accent = rows[:, COLOUR], rows[:, ACCENT]
    for pattern, painter in enumerate(_PAINTS):
        if painter is None:
            continue
        some = (kinds[:, 2] == pattern).nonzero().squeeze(1)
        if not len(some):
            continue
        local, normal, w = _pick(hits, some)
        frequency = rows[some, FREQUENCY]
        u, v = _unwrap(local, normal, hits.shape[some])
        amount = painter(u, v, local, w, frequency)
        colour = colour.index_copy(0, some, blend(colour[some], accent[some], amount))
    return _digits(hits, kinds[:, 3], colour, accent)


def _digits(hits: Hits, digit: Tensor, colour: Tensor, accent: Tensor) -> Tensor:
    for name in DIGIT_SHAPES:
        some = ((hits.shape == _NAMES.index(name)) & (digit >= 0)).nonzero().squeeze(1)
        if not len(some):
            continue
        (x, y, z), (nx, ny, nz), w = _pick(hits, some)
        size, middle = _DIGIT_BOX[name]
        if name == "cube":  # the same digit on all faces, upright on the sides
            sideways = nx.abs() > nz.abs()
            top = ny.abs() > 0.7
            u = torch.where(top, x, torch.where(sideways, z * nx.sign(), -x * nz.sign()))
            v = torch.where(top, z * ny.sign(), y)
            shown = (torch.maximum(nx.abs(), torch.maximum(ny.abs(), nz.abs())) > 0.7).float()
        else:
            u, v, shown = x * -nz.sign(), y - middle, (nz.abs() > 0.7).float()
        distance = digit_distance(digit[some], u / size, v / size)
        ink = ((_STROKE - distance) / (w / size).clamp_min(1e-3) + 0.5).clamp(0.0, 1.0) * shown
        colour = colour.index_copy(0, some, blend(colour[some], accent[some], ink))
    return colour


def sky_towards(tensors: SceneTensors, image: Tensor, direction: Triple, floor_mean: Tensor) -> Tensor:
    """Blurred surroundings seen along a direction, linear RGB [P, 3]: what mirrors and fills the shade."""
    zenith, horizon = tensors.backdrop[image, 0:3], tensors.backdrop[image, 3:6]
    up = direction[1]
    sky = blend(horizon, zenith, (up.clamp_min(0.0) * 1.3).clamp_max(1.0))
    ground = floor_mean[image] * (0.55 + 0.35 * (1.0 + up.clamp(-1.0, 0.0)))[:, None]
    return blend(ground, sky, (up * 9.0 + 0.5).clamp(0.0, 1.0))


def _softbox(direction: Triple, towards: tuple[Tensor, ...]) -> Tensor:
    """A broad window beside the key light, so that curved mirrors show a shape."""
    aim = (direction[0] * towards[0] + direction[1] * towards[1] + direction[2] * towards[2]).clamp(-1.0, 1.0)
    window = ((aim - 0.86) * 14.0).clamp(0.0, 1.0)
    band = ((0.20 - (direction[1] - 0.42).abs()) * 8.0).clamp(0.0, 1.0)
    return window + 0.35 * band


def shade(
    tensors: SceneTensors, hits: Hits, base: Tensor, lit: Tensor, open_sky: Tensor, floor_mean: Tensor
) -> Tensor:
    """Light that leaves every hit towards the eye, linear RGB [M, 3].

    Args:
        tensors: the scenes.
        hits: the samples.
        base: painted colour [M, 3].
        lit: part of the key light that arrives [M].
        open_sky: part of the sky that is open [M].
        floor_mean: mean floor colour of each scene [B, 3].
    """
    image, normal, view = hits.image, hits.normal, hits.view
    light = tensors.light[image]
    towards, tone = light[:, :3].unbind(-1), light[:, 3:6]
    facing = sum_dot(normal, (towards[0], towards[1], towards[2]))
    against = -sum_dot(normal, view)
    mirror = tuple(v + 2.0 * against * n for v, n in zip(view, normal, strict=True))
    reflected: Triple = (mirror[0], mirror[1], mirror[2])
    around = sky_towards(tensors, image, reflected, floor_mean)
    glint = sum_dot(reflected, (towards[0], towards[1], towards[2])).clamp_min(0.0)
    direct = ((facing + 0.12) / 1.12).clamp_min(0.0) * lit
    # shade near the floor is deeper where the surface looks down at it
    height = (hits.point[1] / 0.5).clamp(0.0, 1.0)
    contact = 1.0 - 0.45 * (1.0 - height) * (0.5 - 0.5 * normal[1])
    fill = _fill(tensors, image, normal, floor_mean) * (open_sky * contact)[:, None]
    diffuse = base * (1.02 * direct[:, None] * tone + fill)
    fresnel = (1.0 - against.clamp(0.0, 1.0)) ** 5

    # a flat face would mirror one spot all over and lose its colour
    curved = torch.tensor(_CURVED, device=lit.device)[hits.shape]
    fresnel = fresnel * curved
    gleam = (glint**70 * 0.9 * lit * curved)[:, None] * tone
    window = (_softbox(reflected, towards) * (0.35 + 0.65 * lit) * curved)[:, None] * tone
    matte = diffuse + 0.05 * fresnel[:, None] * around
    shiny = diffuse + gleam + (0.02 + 0.55 * fresnel)[:, None] * around * open_sky[:, None] + 0.06 * window
    sheen = blend(base, torch.ones_like(base), 0.08 + 0.4 * fresnel)
    # under a blue sky a true mirror would turn orange into brown and pink into violet
    pale = torch.lerp(around, around.mean(-1, keepdim=True), 0.75)
    metal = base * (pale * (0.35 + 0.65 * open_sky)[:, None] + 0.35 * direct[:, None] * tone + 0.06)
    metal = metal + sheen * (0.45 * window + (glint**24 * 0.5 * lit * curved)[:, None] * tone)
    glass = _glass(tensors, hits, base, floor_mean) + gleam * 1.3 + (0.05 + 0.75 * fresnel)[:, None] * around
    glass = glass + 0.22 * window

    material = tensors.object_kinds[image, hits.slot, 1][:, None]
    colour = torch.where(material == _SHINY, shiny, matte)
    return torch.where(material == _GLASS, glass, torch.where(material == _METAL, metal, colour))


def sum_dot(a: Triple, b: Triple) -> Tensor:
    """Dot product of two triples."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _fill(tensors: SceneTensors, image: Tensor, normal: Triple, floor_mean: Tensor) -> Tensor:
    """Soft light from all around: sky from above, bounce from the floor, never less than what shows the colour."""
    sky = 0.55 * tensors.backdrop[image, 0:3] + 0.45 * tensors.backdrop[image, 3:6]
    grey = sky.mean(-1, keepdim=True)
    sky = 0.30 * sky + 0.45 * grey + 0.22  # a neutral share keeps red red under a blue sky
    up = (normal[1] * 0.5 + 0.5)[:, None]
    return 0.50 * torch.lerp(floor_mean[image] * 0.6 + 0.12, sky, up)


def _glass(tensors: SceneTensors, hits: Hits, base: Tensor, floor_mean: Tensor) -> Tensor:
    """Surroundings seen upside down through tinted glass, darker and deeper towards the rim."""
    view, normal = hits.view, hits.normal
    cosine = -sum_dot(view, normal)
    eta = 1.0 / 1.35
    bend = eta * cosine - (1.0 - eta * eta * (1.0 - cosine * cosine)).clamp_min(0.0).sqrt()
    inner = tuple(eta * v + bend * n for v, n in zip(view, normal, strict=True))
    # leaving a ball of glass bends the ray once more, about as much again
    through: Triple = (2.0 * inner[0] - view[0], 2.0 * inner[1] - view[1], 2.0 * inner[2] - view[2])
    seen = sky_towards(tensors, hits.image, through, floor_mean)
    depth = cosine.clamp(0.0, 1.0)
    tint = blend(base, torch.ones_like(base), 0.01 + 0.08 * (1.0 - depth))
    body = tint * (0.45 + 1.0 * seen)
    return body * (0.60 + 0.40 * depth)[:, None]
