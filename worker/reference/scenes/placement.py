"""Puts looks on the floor, on each other or in the air, so that the camera sees enough of every one."""

import math
from dataclasses import replace
from typing import Final

from .dice import Dice
from .layout import MAX_COVER, ScreenBox, cover, extents, fits, half_height, screen_box
from .looks import Look
from .spec import CameraSpec, ObjectSpec
from .vocab import SHAPES

_BASE_SCALE: Final = (0.0, 1.25, 0.98, 0.86, 0.77, 0.70, 0.64, 0.59, 0.55, 0.52, 0.49, 0.46, 0.44)
_TRIES: Final = 20
MIN_SIDE: Final = 0.08
"""Least width or height of an object on the screen, in half picture sides: 10 pixels of 256."""


def base_scale(count: int) -> float:
    """World scale of a medium object in a scene of `count`."""
    return _BASE_SCALE[min(count, len(_BASE_SCALE) - 1)]


class Stage:
    """Objects placed so far, with their screen boxes and how much of each is hidden."""

    def __init__(self, dice: Dice, camera: CameraSpec, count: int, max_cover: float = MAX_COVER) -> None:
        self.objects: list[ObjectSpec] = []
        self.boxes: list[ScreenBox] = []
        self._hidden: list[float] = []
        self._footprints: list[tuple[float, float, float]] = []
        self.camera = camera
        self._dice, self._max_cover = dice, max_cover
        self._depth_range = 0.35 if count == 1 else min(0.5 + 0.30 * count, 3.3)
        self._width = 0.22 if count == 1 else 0.84

    def _pose(self, shape: str) -> tuple[float, bool]:
        """Yaw, and whether a ring stands: it lies only where the camera looks down into it."""
        dice, row = self._dice, SHAPES[shape]
        if shape == "ring":
            standing = self.camera.pitch < 0.22 or dice.chance(0.6)
            return dice.between(-0.75, 0.75), standing
        if row.facing:
            return dice.between(-0.45, 0.45), False
        if shape in {"cube", "cage", "pyramid", "diamond"}:  # never face on, where they look flat
            return dice.between(0.2, 0.62) * (1.0 if dice.chance(0.5) else -1.0), False
        return dice.between(-math.pi / 4, math.pi / 4), False

    def _admit(self, thing: ObjectSpec, ignore: int | None = None) -> bool:
        """Take the object if it fits beside, before and behind the others."""
        half = extents(thing.shape, thing.scale, thing.yaw, thing.standing)
        box = screen_box(self.camera, thing.position, half)
        if not fits(box) or min(box.right - box.left, box.top - box.bottom) < MIN_SIDE:
            return False
        x, _, z = thing.position
        reach = max(half[0], half[2])
        hidden, changes = 0.0, []
        for index, (other, (ox, oz, other_reach)) in enumerate(
            zip(self.boxes, self._footprints, strict=True)
        ):
            if index != ignore and math.hypot(ox - x, oz - z) < reach + other_reach + 0.06:
                return False
            nearer_is_new = box.depth < other.depth
            part = cover(other, box) if nearer_is_new else cover(box, other)
            if part == 0.0 or index == ignore:
                continue
            if nearer_is_new:
                changes.append((index, part))
                if self._hidden[index] + part > self._max_cover:
                    return False
            else:
                hidden += part
                if hidden > self._max_cover:
                    return False
        for index, part in changes:
            self._hidden[index] += part
        self.objects.append(thing)
        self.boxes.append(box)
        self._hidden.append(hidden)
        self._footprints.append((x, z, reach))
        return True

    def put_down(self, look: Look, size: str, scale: float) -> bool:
        """Place one object anywhere free on the floor; False where no room was found."""
        dice, camera = self._dice, self.camera
        for _ in range(_TRIES):
            yaw, standing = self._pose(look.shape)
            z = dice.between(-self._depth_range, self._depth_range)
            depth = camera.distance + z * math.cos(camera.pitch)
            x = dice.between(-self._width, self._width) * camera.tan_half_fov * depth
            y = half_height(look.shape, scale, standing)
            if self._admit(_object(look, size, scale, (x, y, z), yaw, standing, None)):
                return True
        return False

    def put_on(self, look: Look, size: str, scale: float, below: int) -> bool:
        """Place one object on top of another, or floating over it where that has no flat top."""
        base, dice = self.objects[below], self._dice
        base_half = half_height(base.shape, base.scale, base.standing)
        on_top = SHAPES[base.shape].flat_top
        yaw, standing = self._pose(look.shape)
        gap = 0.0 if on_top else dice.between(0.10, 0.30)
        y = base.position[1] + base_half + gap + half_height(look.shape, scale, standing)
        thing = _object(
            look,
            size,
            scale,
            (base.position[0], y, base.position[2]),
            yaw,
            standing,
            below if on_top else None,
        )
        return self._admit(thing, ignore=below)

    def swap_pair(self) -> None:
        """Exchange the order of the two objects of a stack."""
        low, high = self.objects
        self.objects = [replace(high, support=None if high.support is None else 1), low]
        self.boxes.reverse()


def _object(
    look: Look,
    size: str,
    scale: float,
    position: tuple[float, float, float],
    yaw: float,
    standing: bool,
    support: int | None,
) -> ObjectSpec:
    return ObjectSpec(
        shape=look.shape,
        colour=look.colour,
        material=look.material,
        pattern=look.pattern,
        accent=look.accent,
        digit=look.digit,
        size=size,
        scale=scale,
        position=position,
        yaw=yaw,
        standing=standing,
        support=support,
        frequency=look.frequency,
    )
