"""How a single object and the ground look: random, but never ambiguous."""

from typing import Final, NamedTuple

from .dice import Dice
from .spec import BackdropSpec, CameraSpec, FloorSpec, LightSpec
from .split import allowed_colours, heldout_floors
from .vocab import (
    BACKDROPS,
    CHECKERS,
    DIGIT_SHAPES,
    FLOOR_CLASHES,
    FLOORS,
    NO_GLASS,
    NO_METAL,
    PATTERNS,
    SHAPE_NAMES,
    SOLID_SHAPES,
    THIN_SHAPES,
    TINT_CLASHES,
    TINT_NAMES,
    WARMTHS,
)

LEVELS: Final = 5
"""Levels of fineness that the sampler aims at: the classes of `complexity`."""
_FLOOR_ODDS: Final = (  # by level, in the order of FLOORS
    (10, 0, 0, 0, 0, 0, 0, 1, 0),
    (6, 1, 2, 2, 0, 2, 1, 3, 0),
    (2, 2, 3, 3, 1, 3, 3, 2, 0),
    (1, 3, 2, 3, 3, 2, 3, 1, 3),
    (1, 3, 2, 2, 3, 1, 2, 1, 4),
)
_BACKDROP_ODDS: Final = (  # by level, in the order of BACKDROPS
    (8, 3, 0, 1, 0, 0, 0, 0, 0, 0),
    (4, 3, 3, 3, 1, 0, 1, 0, 1, 0),
    (2, 1, 3, 2, 3, 1, 2, 1, 3, 1),
    (1, 0, 2, 1, 3, 3, 2, 3, 2, 3),
    (1, 0, 1, 1, 2, 4, 2, 3, 1, 4),
)
_PATTERN_ODDS: Final = (0.0, 0.15, 0.35, 0.5, 0.6)
_THIN_ODDS: Final = (0.0, 0.08, 0.2, 0.35, 0.4)
_LIGHT_COLOURS: Final = frozenset({"yellow", "cyan", "pink", "white", "orange"})


class Look(NamedTuple):
    """Everything about an object that does not depend on where it stands."""

    shape: str
    colour: str
    material: str
    pattern: str
    accent: str
    digit: int | None
    frequency: float


def pick_shape(dice: Dice, level: int) -> str:
    """A shape, thin ones more often at higher levels."""
    return dice.pick(THIN_SHAPES) if dice.chance(_THIN_ODDS[level]) else dice.pick(SHAPE_NAMES[:9])


def pick_look(dice: Dice, shape: str, colour: str, level: int) -> Look:
    """Material, pattern and digit for a shape and a colour."""
    material = dice.weighted(("matte", "shiny", "metal", "glass"), (4.0, 3.5, 1.7, 0.8))
    metal_ok = colour not in NO_METAL and shape not in {"card", "sign", "fence"}
    if (material == "metal" and not metal_ok) or (
        material == "glass" and (colour in NO_GLASS or shape not in SOLID_SHAPES)
    ):
        material = "shiny"
    opaque = material in {"matte", "shiny"}
    digit = None
    if shape in DIGIT_SHAPES and opaque:
        always = shape != "cube"
        digit = dice.integer(0, 9) if always or dice.chance(0.06 + 0.06 * level) else None
    pattern = "plain"
    if opaque and digit is None and shape in SOLID_SHAPES and dice.chance(_PATTERN_ODDS[level]):
        pattern = dice.pick(PATTERNS[1:])
        if pattern in {"striped", "checkered"} and colour in {"black", "white"}:
            pattern = "dotted"  # else black on white and white on black would look the same
    if digit is not None:
        accent = "black" if colour in _LIGHT_COLOURS else "white"
    elif pattern == "wooden":
        accent = "black" if colour != "black" else "white"
    else:
        accent = pick_accent(dice, colour)
    return Look(shape, colour, material, pattern, accent, digit, dice.between(2.2, 4.2))


def pick_accent(dice: Dice, colour: str) -> str:
    """A second colour that leaves no doubt which colour is the main one."""
    if colour in {"white", "yellow", "pink", "cyan"}:
        return "black" if colour in {"white", "yellow"} or dice.chance(0.5) else "white"
    return "white" if colour in {"black", "brown"} or dice.chance(0.75) else "black"


def pick_colour(dice: Dice, shape: str, split: str) -> str:
    """A colour that the split allows for the shape."""
    return dice.pick(allowed_colours(shape, split))


def pick_floor(
    dice: Dice, level: int, colours: frozenset[str], lone_shape: str | None, split: str
) -> FloorSpec:
    """A floor on which none of the colours drowns; a lone shape of a training task avoids its held-out floors."""
    hidden = heldout_floors(lone_shape) if lone_shape is not None and split == "train" else frozenset()
    kind, tint = "plain", "light gray"
    for _ in range(12):
        kind = dice.weighted(FLOORS, _FLOOR_ODDS[level])
        tint = dice.pick(tuple(CHECKERS)) if kind == "checker" else dice.pick(TINT_NAMES)
        clash = FLOOR_CLASHES[kind]
        if kind in {"plain", "tiles", "grid"}:
            clash |= TINT_CLASHES[tint]
        if kind not in hidden and not clash & colours:
            break
    else:  # nothing clashes with light gray; which floors are hidden depends on the shape
        kind = next(kind for kind in ("plain", "tiles", "grid") if kind not in hidden)
        tint = "light gray"
    return FloorSpec(kind, tint, *_floor_layout(dice, kind))


def floor_of(dice: Dice, kind: str, colours: frozenset[str]) -> FloorSpec:
    """A floor of the given kind whose tint does not clash with the colours."""
    tints = [tint for tint in TINT_NAMES if not TINT_CLASHES[tint] & colours]
    tint = dice.pick(tuple(CHECKERS)) if kind == "checker" else dice.pick(tints)
    return FloorSpec(kind, tint, *_floor_layout(dice, kind))


def _floor_layout(dice: Dice, kind: str) -> tuple[float, float, tuple[float, float]]:
    scale = {"cobblestone": 1.7, "wood": 1.25, "grid": 1.5, "sand": 1.0, "grass": 1.0}.get(kind, 1.1)
    scale *= dice.between(0.8, 1.25)
    angle = dice.between(-0.5, 0.5) if kind in {"sand", "grass"} else dice.between(-0.8, 0.8)
    return scale, angle, (dice.between(0.0, 14.0), dice.between(0.0, 14.0))


def pick_backdrop(dice: Dice, level: int, colours: frozenset[str]) -> BackdropSpec:
    """A backdrop; not a dark one behind black objects."""
    kind = dice.weighted(BACKDROPS, _BACKDROP_ODDS[level])
    if kind in {"night", "city"} and "black" in colours:
        kind = "clouds"
    offset = (dice.between(2.0, 6.0), dice.between(2.0, 6.0))
    return BackdropSpec(kind, dice.pick(TINT_NAMES), dice.between(0.85, 1.3), offset)


def pick_camera(dice: Dice, count: int, tall: bool) -> CameraSpec:
    """A camera that sees `count` objects; `tall` where one stands on another."""
    crowd = min(count, 12) / 12.0
    pitch = dice.between(0.13 + 0.10 * crowd, 0.21 + 0.15 * crowd)
    target = dice.between(0.95, 1.15) if tall else dice.between(0.55, 0.85)
    return CameraSpec(dice.between(8.3, 9.2), pitch, dice.between(0.34, 0.37), target)


def pick_light(dice: Dice) -> LightSpec:
    """A key light from the left or the right, in front of the objects so that their colours show."""
    side = dice.pick(("left", "right"))
    azimuth = dice.between(0.40, 1.0) * (1.0 if side == "right" else -1.0)
    warmth = dice.weighted(WARMTHS, (0.5, 0.25, 0.25))
    return LightSpec(side, azimuth, dice.between(0.75, 1.05), warmth, dice.between(0.06, 0.20))
