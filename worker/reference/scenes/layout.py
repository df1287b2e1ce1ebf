"""Where objects go: cheap conservative geometry in plain Python, so that one core makes thousands of scenes per second.

Screen coordinates are (u, v) with u right, v up, both in [-1, 1] over the shorter side of the picture. Boxes here are
those of each object's upright bounding box and so contain the true silhouette.
"""

import math
from typing import NamedTuple

from .spec import CameraSpec, ObjectSpec
from .vocab import SHAPES

MAX_COVER = 0.22
"""Largest part of an object's screen box that the boxes of nearer ones may cover, all together."""


class ScreenBox(NamedTuple):
    """Bounds of an object on the screen, with its distance along the optical axis."""

    left: float
    right: float
    bottom: float
    top: float
    depth: float

    @property
    def u(self) -> float:
        """Middle, left to right."""
        return 0.5 * (self.left + self.right)

    @property
    def v(self) -> float:
        """Middle, bottom to top."""
        return 0.5 * (self.bottom + self.top)


def extents(shape: str, scale: float, yaw: float, standing: bool) -> tuple[float, float, float]:
    """Half extents of the turned object along the world's x, y, z."""
    row = SHAPES[shape]
    half_x, half_y, half_z = row.half
    if standing:
        half_y, half_z = half_z, half_y
    elif row.round:
        return scale * half_x, scale * half_y, scale * half_z
    cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
    return scale * (cos * half_x + sin * half_z), scale * half_y, scale * (sin * half_x + cos * half_z)


def half_height(shape: str, scale: float, standing: bool) -> float:
    """Half of an object's height."""
    return scale * SHAPES[shape].half[2 if standing else 1]


def screen_box(
    camera: CameraSpec, position: tuple[float, float, float], half: tuple[float, float, float]
) -> ScreenBox:
    """Screen bounds of an upright box; `half` as `extents` gives it."""
    x, y, z = position
    half_x, half_y, half_z = half
    cos, sin, zoom = math.cos(camera.pitch), math.sin(camera.pitch), 1.0 / camera.tan_half_fov
    # relative to the point looked at: forward = (0, -sin, cos), up = (0, cos, sin)
    low, high, near, far = y - half_y - camera.target, y + half_y - camera.target, z - half_z, z + half_z
    bottom = (low * cos + near * sin) / (camera.distance - low * sin + near * cos)
    top_near = (high * cos + near * sin) / (camera.distance - high * sin + near * cos)
    top_far = (high * cos + far * sin) / (camera.distance - high * sin + far * cos)
    nearest = camera.distance - high * sin + near * cos
    centre = camera.distance - (y - camera.target) * sin + z * cos
    left = min((x - half_x) / nearest, (x - half_x) / centre)
    right = max((x + half_x) / nearest, (x + half_x) / centre)
    return ScreenBox(left * zoom, right * zoom, bottom * zoom, max(top_near, top_far) * zoom, centre)


def object_box(camera: CameraSpec, thing: ObjectSpec) -> ScreenBox:
    """Screen bounds of an object."""
    return screen_box(camera, thing.position, extents(thing.shape, thing.scale, thing.yaw, thing.standing))


def cover(hidden: ScreenBox, hiding: ScreenBox) -> float:
    """Part of `hidden`'s box that `hiding`'s box covers, in [0, 1]."""
    width = min(hidden.right, hiding.right) - max(hidden.left, hiding.left)
    height = min(hidden.top, hiding.top) - max(hidden.bottom, hiding.bottom)
    if width <= 0.0 or height <= 0.0:
        return 0.0
    return width * height / ((hidden.right - hidden.left) * (hidden.top - hidden.bottom))


def fits(box: ScreenBox, margin: float = 0.96) -> bool:
    """Whether the object lies inside the picture."""
    return box.left > -margin and box.right < margin and box.bottom > -margin and box.top < margin


def is_beside(first: ScreenBox, second: ScreenBox) -> bool:
    """Whether the first is clearly left of the second, as seen from the camera."""
    gap = second.u - first.u
    reach = 0.5 * (first.right - first.left + second.right - second.left)
    return gap > 0.8 * reach and gap > 1.2 * abs(second.v - first.v)


def is_over(first: ScreenBox, second: ScreenBox) -> bool:
    """Whether the first is clearly higher on the screen than the second and roughly in line with it."""
    rise = first.v - second.v
    reach = 0.5 * (first.top - first.bottom + second.top - second.bottom)
    return rise > 0.7 * reach and rise > 1.5 * abs(first.u - second.u)


def is_before(first: ScreenBox, second: ScreenBox, depth_margin: float) -> bool:
    """Whether the first is clearly nearer than the second and overlaps its columns, so that "in front of" fits."""
    in_line = abs(first.u - second.u) < 0.3 * (first.right - first.left + second.right - second.left)
    return in_line and second.depth - first.depth > depth_margin
