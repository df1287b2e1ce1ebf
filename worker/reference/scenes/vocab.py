"""The closed vocabulary of a scene: what exists, how it is called, and what clashes with what.

Every class name here is also a detector label, so the order of the tuples is part of the data format.
"""

from typing import Final, NamedTuple

RGB = tuple[float, float, float]

MAX_OBJECTS: Final = 12

COLOURS: Final[dict[str, RGB]] = {  # sRGB, far apart in hue or in lightness
    "red": (0.86, 0.09, 0.10),
    "orange": (0.98, 0.47, 0.04),
    "yellow": (0.97, 0.84, 0.09),
    "green": (0.11, 0.60, 0.19),
    "cyan": (0.16, 0.83, 0.87),
    "blue": (0.10, 0.27, 0.86),
    "purple": (0.50, 0.13, 0.72),
    "pink": (0.98, 0.52, 0.72),
    "brown": (0.43, 0.22, 0.07),
    "black": (0.075, 0.075, 0.085),
    "white": (0.95, 0.95, 0.94),
}


class Shape(NamedTuple):
    """A shape's fixed geometry in its own frame, where y is up and the origin is the centre of its box."""

    half: RGB
    """Half extents along x, y, z."""
    round: bool = False
    """Turning it about y changes nothing."""
    facing: bool = False
    """Flat: it is kept turned towards the camera so that it can be recognised."""
    flat_top: bool = False
    """Something can stand on it."""
    steps: int = 20
    """Sphere-tracing steps that its distance field needs."""


SHAPES: Final[dict[str, Shape]] = {
    "sphere": Shape((1.0, 1.0, 1.0), round=True, steps=12),
    "cube": Shape((0.80, 0.80, 0.80), flat_top=True),
    "cylinder": Shape((0.72, 0.86, 0.72), round=True, flat_top=True),
    "cone": Shape((0.88, 0.95, 0.88), round=True, steps=24),
    "ring": Shape((1.0, 0.27, 1.0), round=True, steps=26),
    "capsule": Shape((0.47, 1.0, 0.47), round=True),
    "pyramid": Shape((0.92, 0.80, 0.92), steps=24),
    "diamond": Shape((0.84, 1.04, 0.84), steps=24),
    "star": Shape((1.0, 0.95, 0.24), facing=True, steps=28),
    "cage": Shape((0.86, 0.86, 0.86), steps=40),
    "fence": Shape((1.50, 0.72, 0.09), facing=True, steps=44),
    "lattice": Shape((1.10, 0.95, 0.05), facing=True, steps=44),
    "pole": Shape((0.30, 1.35, 0.30), round=True, steps=30),
    "sign": Shape((0.86, 1.05, 0.30), facing=True, steps=28),
    "card": Shape((0.70, 0.92, 0.06), facing=True, steps=22),
}
SHAPE_NAMES: Final = tuple(SHAPES)
TASK_SHAPES: Final = SHAPE_NAMES[:9]  # solid and easy to name: what prompts of the evaluation ask for
THIN_SHAPES: Final = ("cage", "fence", "lattice", "pole", "sign", "card")
DIGIT_SHAPES: Final = ("cube", "sign", "card")
COLOUR_NAMES: Final = tuple(COLOURS)

MATERIALS: Final = ("matte", "shiny", "metal", "glass")
NO_METAL: Final = frozenset({"black", "white", "brown"})  # dark chrome, silver and bronze have other names
NO_GLASS: Final = frozenset({"black", "white", "brown"})
SOLID_SHAPES: Final = frozenset(TASK_SHAPES)  # glass wires would vanish

PATTERNS: Final = ("plain", "striped", "checkered", "dotted", "marbled", "speckled", "wooden")
SIZES: Final[dict[str, float]] = {"small": 0.62, "medium": 1.0, "large": 1.3}

TINTS: Final[dict[str, RGB]] = {  # quiet colours, sRGB, for floors and studio walls
    "light gray": (0.76, 0.76, 0.76),
    "dark gray": (0.30, 0.30, 0.32),
    "beige": (0.84, 0.77, 0.64),
    "pale blue": (0.66, 0.77, 0.88),
    "pale green": (0.70, 0.83, 0.70),
    "pale pink": (0.90, 0.75, 0.76),
    "lavender": (0.76, 0.71, 0.88),
    "slate blue": (0.32, 0.38, 0.50),
    "cream": (0.94, 0.90, 0.80),
    "teal": (0.20, 0.42, 0.43),
}
TINT_NAMES: Final = tuple(TINTS)
TINT_CLASHES: Final[dict[str, frozenset[str]]] = {  # objects of these colours would sink into the tint
    "light gray": frozenset(),
    "dark gray": frozenset({"black"}),
    "beige": frozenset(),
    "pale blue": frozenset({"cyan"}),
    "pale green": frozenset({"green"}),
    "pale pink": frozenset({"pink"}),
    "lavender": frozenset({"purple"}),
    "slate blue": frozenset({"blue"}),
    "cream": frozenset({"white"}),
    "teal": frozenset({"cyan", "green"}),
}

FLOORS: Final = ("plain", "checker", "tiles", "wood", "grass", "sand", "grid", "marble", "cobblestone")
FLOOR_CLASHES: Final[dict[str, frozenset[str]]] = {
    "plain": frozenset(),
    "checker": frozenset(),
    "tiles": frozenset(),
    "wood": frozenset({"brown", "orange"}),
    "grass": frozenset({"green"}),
    "sand": frozenset({"yellow"}),
    "grid": frozenset(),
    "marble": frozenset({"white"}),
    "cobblestone": frozenset(),
}
CHECKERS: Final[dict[str, tuple[RGB, RGB]]] = {
    "black and white": ((0.13, 0.13, 0.14), (0.90, 0.90, 0.89)),
    "gray and white": ((0.50, 0.50, 0.52), (0.90, 0.90, 0.89)),
    "blue and white": ((0.28, 0.42, 0.66), (0.90, 0.91, 0.92)),
    "brown and cream": ((0.47, 0.33, 0.24), (0.92, 0.86, 0.74)),
    "green and cream": ((0.32, 0.50, 0.38), (0.92, 0.88, 0.76)),
}

BACKDROPS: Final = (
    "studio", "sky", "clouds", "sunset", "night", "bricks", "wallpaper", "dots", "mountains", "city",
)  # fmt: skip
WALLS: Final = frozenset(
    {"bricks", "wallpaper", "dots"}
)  # these end the floor at a plane; the others are far away

RELATIONS: Final = ("left of", "right of", "above", "below", "in front of", "behind")
WARMTHS: Final = ("neutral", "warm", "cool")
TASKS: Final = ("one_object", "two_objects", "counting", "colours", "position", "colour_binding")
SPLITS: Final = ("train", "heldout")
