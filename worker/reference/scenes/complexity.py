"""How fine a scene is, from its content alone.

complexity = 1 - exp(-1.3 detail). Here detail adds up what the floor and the backdrop contribute (tables below). For
every object it adds (0.05 + pattern + thin parts + digit) x (its scale / 0.8). The weights follow the high-frequency
energy that each ingredient brings to a rendered picture.
"""

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .spec import SceneSpec

FLOOR_DETAIL: Final = {
    "plain": 0.0, "marble": 0.25, "sand": 0.20, "grid": 0.45, "wood": 0.25, "tiles": 0.30, "checker": 0.55,
    "grass": 0.40, "cobblestone": 0.85,
}  # fmt: skip
BACKDROP_DETAIL: Final = {
    "studio": 0.0, "sky": 0.0, "sunset": 0.03, "clouds": 0.06, "mountains": 0.10, "night": 0.22, "wallpaper": 0.20,
    "dots": 0.25, "bricks": 0.60, "city": 0.50,
}  # fmt: skip
PATTERN_DETAIL: Final = {
    "plain": 0.0, "wooden": 0.04, "marbled": 0.05, "speckled": 0.08, "striped": 0.08, "dotted": 0.08, "checkered": 0.10,
}  # fmt: skip
THIN_DETAIL: Final = {"cage": 0.12, "fence": 0.16, "lattice": 0.22, "pole": 0.02, "sign": 0.03}
DIGIT_DETAIL: Final = 0.05
CLASSES: Final = ("plain", "simple", "moderate", "detailed", "busy")


def scene_complexity(scene: "SceneSpec") -> float:
    """Fineness of a scene in [0, 1): see the module's definition."""
    detail = FLOOR_DETAIL[scene.floor.kind] + BACKDROP_DETAIL[scene.backdrop.kind]
    for thing in scene.objects:
        own = 0.05 + PATTERN_DETAIL[thing.pattern] + THIN_DETAIL.get(thing.shape, 0.0)
        if thing.digit is not None:
            own += DIGIT_DETAIL
        detail += own * thing.scale / 0.8
    return 1.0 - math.exp(-1.3 * detail)


def complexity_class(complexity: float) -> str:
    """Name of the fifth of [0, 1] that holds `complexity`."""
    return CLASSES[min(int(complexity * len(CLASSES)), len(CLASSES) - 1)]
