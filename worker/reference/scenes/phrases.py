"""Words for everything a caption may name."""

from typing import Final

from .dice import Dice
from .spec import BackdropSpec, FloorSpec, ObjectSpec

NOUNS: Final[
    dict[str, tuple[tuple[str, str], ...]]
] = {  # singular and plural; the first is the class's own name
    "sphere": (("sphere", "spheres"), ("ball", "balls")),
    "cube": (("cube", "cubes"), ("block", "blocks")),
    "cylinder": (("cylinder", "cylinders"),),
    "cone": (("cone", "cones"),),
    "ring": (("ring", "rings"), ("donut", "donuts"), ("torus", "tori")),
    "capsule": (("capsule", "capsules"), ("pill", "pills")),
    "pyramid": (("pyramid", "pyramids"),),
    "diamond": (("diamond", "diamonds"), ("octahedron", "octahedra")),
    "star": (("star", "stars"),),
    "cage": (("cage", "cages"), ("wire frame", "wire frames")),
    "fence": (("fence", "fences"),),
    "lattice": (("lattice", "lattices"), ("wire grid", "wire grids")),
    "pole": (("pole", "poles"), ("post", "posts")),
    "sign": (("sign", "signs"),),
    "card": (("card", "cards"),),
}
NUMBERS: Final = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
MATERIAL_WORDS: Final = {
    "matte": ("matte",),
    "shiny": ("shiny", "glossy"),
    "metal": ("metal", "metallic"),
    "glass": ("glass",),
}
_FLOORS: Final = {
    "tiles": ("{tint} tiled floor", "floor of {tint} tiles"),
    "wood": ("wooden floor", "floor of wooden planks", "plank floor"),
    "grid": ("{tint} floor with grid lines",),
    "marble": ("marble floor", "white marble floor"),
    "cobblestone": ("cobblestone pavement", "floor of cobblestones"),
}
_BACKDROPS: Final = {
    "sky": ("under a clear blue sky", "under a blue sky"),
    "clouds": ("under a cloudy sky", "under a blue sky with clouds"),
    "sunset": ("at sunset", "under an orange sunset sky"),
    "night": ("at night under a starry sky", "under a night sky", "at night with the moon in the sky"),
    "bricks": ("in front of a brick wall", "against a brick wall"),
    "mountains": ("with mountains behind", "in front of snowy mountains"),
    "city": ("with a city skyline behind", "with lit city windows at dusk behind"),
}
_TINTED_BACKDROPS: Final = {
    "studio": ("in a {tint} studio", "against a plain {tint} background"),
    "wallpaper": ("against {tint} striped wallpaper", "in front of a wall with {tint} stripes"),
    "dots": ("against {tint} wallpaper with dots", "in front of a dotted {tint} wall"),
}


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def floor_phrase(dice: Dice, floor: FloorSpec) -> str:
    """A noun phrase with its article: "a wooden floor", "grass"."""
    if floor.kind == "grass":
        return dice.pick(("grass", "green grass", "a lawn"))
    if floor.kind == "sand":
        return dice.pick(("sand", "rippled sand"))
    if floor.kind == "checker":
        return article(dice.pick((f"{floor.tint} checkered floor", "checkered floor")))
    if floor.kind == "plain":
        return article(f"{floor.tint} floor") if dice.chance(0.7) else article(f"plain {floor.tint} floor")
    return article(dice.pick(_FLOORS[floor.kind]).format(tint=floor.tint))


def backdrop_phrase(dice: Dice, backdrop: BackdropSpec) -> str:
    """An adverbial: "under a cloudy sky", "against a brick wall"."""
    if backdrop.kind in _TINTED_BACKDROPS:
        tint = backdrop.tint
        phrase = dice.pick(_TINTED_BACKDROPS[backdrop.kind])
        return phrase.format(tint=tint)
    return dice.pick(_BACKDROPS[backdrop.kind])


def colour_words(dice: Dice, thing: ObjectSpec, *, pattern: bool) -> str:
    """Colour of an object, with its pattern where asked: "red", "red and white striped", "striped red"."""
    if not pattern or thing.pattern == "plain":
        return thing.colour
    if thing.pattern in {"striped", "checkered", "dotted"} and dice.chance(0.4):
        return f"{thing.colour} and {thing.accent} {thing.pattern}"
    return f"{thing.pattern} {thing.colour}" if dice.chance(0.5) else f"{thing.colour} {thing.pattern}"


def listing(parts: list[str]) -> str:
    """The parts as one phrase: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
