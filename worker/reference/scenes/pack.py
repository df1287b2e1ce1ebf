"""Scenes as tensors: fixed object slots, named columns, one move to the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor

from .palette import LIGHTS, OBJECT_COLOURS, floor_colours, surroundings
from .spec import ObjectSpec, SceneSpec
from .vocab import BACKDROPS, FLOORS, MATERIALS, MAX_OBJECTS, PATTERNS, SHAPES

_SHAPE_INDEX: Final = {name: index for index, name in enumerate(SHAPES)}
_MATERIAL_INDEX: Final = {name: index for index, name in enumerate(MATERIALS)}
_PATTERN_INDEX: Final = {name: index for index, name in enumerate(PATTERNS)}
_FLOOR_INDEX: Final = {name: index for index, name in enumerate(FLOORS)}
_BACKDROP_INDEX: Final = {name: index for index, name in enumerate(BACKDROPS)}

CENTRE, SCALE, TO_LOCAL = slice(0, 3), 3, slice(4, 13)
COLOUR, ACCENT, FREQUENCY = slice(13, 16), slice(16, 19), 19
_EMPTY_FLOATS: Final = (0.0, -9.0, 0.0, 0.01, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, *(0.0,) * 7)
_EMPTY_KINDS: Final = (-1, 0, 0, -1)

WALL_DEPTH: Final = 4.6
"""Distance of a wall behind the world's origin, in world units; `FAR` for open backdrops."""
FAR: Final = 60.0


@dataclass(frozen=True)
class SceneTensors:
    """A batch of B scenes with N = `MAX_OBJECTS` slots each; unused slots have shape -1.

    `objects` float32 [B, N, 20]: centre 3, scale, world-to-local rotation 9, colour 3, accent 3, frequency.
    `object_kinds` int64 [B, N, 4]: shape, material, pattern, digit (-1 for none).
    `camera` float32 [B, 5]: eye height, eye z, cos pitch, sin pitch, tan of half the field of view.
    `light` float32 [B, 7]: direction to the light 3, colour 3, softness.
    `floor` float32 [B, 11]: colour 3, second colour 3, scale, cos angle, sin angle, offset 2.
    `backdrop` float32 [B, 15]: zenith 3, horizon 3, main 3, second 3, scale, offset 2.
    `ground_kinds` int64 [B, 2]: floor, backdrop. Colours are linear light.
    """

    objects: Tensor
    object_kinds: Tensor
    camera: Tensor
    light: Tensor
    floor: Tensor
    backdrop: Tensor
    ground_kinds: Tensor

    def __len__(self) -> int:
        return self.objects.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "SceneTensors":
        return SceneTensors(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "SceneTensors":
        """The same scenes on `device`."""
        return SceneTensors(
            *(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self))
        )

    @staticmethod
    def cat(parts: Sequence["SceneTensors"]) -> "SceneTensors":
        """The scenes of all parts, in order."""
        return SceneTensors(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(SceneTensors))
        )


def _object_floats(thing: ObjectSpec) -> tuple[float, ...]:
    cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
    # rows are the local axes in world coordinates; standing tips the ring's axis from up to towards the camera
    x_axis, up, z_axis = (cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)
    rows = (*x_axis, *((-z_axis[0], 0.0, -z_axis[2], *up) if thing.standing else (*up, *z_axis)))
    return (
        *thing.position, thing.scale, *rows, *OBJECT_COLOURS[thing.colour], *OBJECT_COLOURS[thing.accent],
        thing.frequency,
    )  # fmt: skip


def _object_kinds(thing: ObjectSpec) -> tuple[int, int, int, int]:
    digit = -1 if thing.digit is None else thing.digit
    return _SHAPE_INDEX[thing.shape], _MATERIAL_INDEX[thing.material], _PATTERN_INDEX[thing.pattern], digit


def _camera(scene: SceneSpec) -> tuple[float, ...]:
    camera = scene.camera
    cos, sin = math.cos(camera.pitch), math.sin(camera.pitch)
    return camera.target + camera.distance * sin, -camera.distance * cos, cos, sin, camera.tan_half_fov


def _light(scene: SceneSpec) -> tuple[float, ...]:
    light = scene.light
    flat = math.cos(light.elevation)
    direction = (flat * math.sin(light.azimuth), math.sin(light.elevation), -flat * math.cos(light.azimuth))
    return *direction, *LIGHTS[light.warmth], light.softness


def _floor(scene: SceneSpec) -> tuple[float, ...]:
    floor = scene.floor
    main, second = floor_colours(floor.kind, floor.tint)
    return *main, *second, floor.scale, math.cos(floor.angle), math.sin(floor.angle), *floor.offset


def _backdrop(scene: SceneSpec) -> tuple[float, ...]:
    backdrop = scene.backdrop
    around = surroundings(backdrop.kind, backdrop.tint)
    return *around.zenith, *around.horizon, *around.main, *around.second, backdrop.scale, *backdrop.offset


def pack(scenes: Sequence[SceneSpec]) -> SceneTensors:
    """Tensors of the scenes, on the CPU.

    Raises:
        ValueError: a scene has more than `MAX_OBJECTS` objects.
    """
    floats: list[tuple[float, ...]] = []
    kinds: list[tuple[int, int, int, int]] = []
    for index, scene in enumerate(scenes):
        empty = MAX_OBJECTS - len(scene.objects)
        if empty < 0:
            raise ValueError(f"scene {index} has {len(scene.objects)} objects, at most {MAX_OBJECTS} fit")
        floats += [_object_floats(thing) for thing in scene.objects]
        kinds += [_object_kinds(thing) for thing in scene.objects]
        floats += [_EMPTY_FLOATS] * empty
        kinds += [_EMPTY_KINDS] * empty
    grounds = [(_FLOOR_INDEX[scene.floor.kind], _BACKDROP_INDEX[scene.backdrop.kind]) for scene in scenes]
    return SceneTensors(
        objects=torch.tensor(floats, dtype=torch.float32).view(-1, MAX_OBJECTS, len(_EMPTY_FLOATS)),
        object_kinds=torch.tensor(kinds, dtype=torch.int64).view(-1, MAX_OBJECTS, 4),
        camera=torch.tensor([_camera(scene) for scene in scenes], dtype=torch.float32).view(-1, 5),
        light=torch.tensor([_light(scene) for scene in scenes], dtype=torch.float32).view(-1, 7),
        floor=torch.tensor([_floor(scene) for scene in scenes], dtype=torch.float32).view(-1, 11),
        backdrop=torch.tensor([_backdrop(scene) for scene in scenes], dtype=torch.float32).view(-1, 15),
        ground_kinds=torch.tensor(grounds, dtype=torch.int64).view(-1, 2),
    )
