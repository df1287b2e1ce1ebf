"""Linear-light colours of floors, backdrops and lights. sRGB appears only at the vocabulary and in the final picture."""

from typing import Final, NamedTuple

from .vocab import CHECKERS, COLOURS, RGB, TINTS


def to_linear(colour: RGB) -> RGB:
    """Linear-light version of an sRGB colour, both in [0, 1]."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return red, green, blue


def mix(first: RGB, second: RGB, amount: float) -> RGB:
    """`first` at 0, `second` at 1."""
    red, green, blue = (a + (b - a) * amount for a, b in zip(first, second, strict=True))
    return red, green, blue


OBJECT_COLOURS: Final = {name: to_linear(colour) for name, colour in COLOURS.items()}
TINT_COLOURS: Final = {name: to_linear(colour) for name, colour in TINTS.items()}
_WHITE: Final[RGB] = (1.0, 1.0, 1.0)
_DARK: Final[RGB] = (0.02, 0.02, 0.025)

_NATURAL: Final[dict[str, tuple[RGB, RGB]]] = {  # sRGB pairs of floors that have one look
    "wood": ((0.66, 0.44, 0.26), (0.50, 0.31, 0.16)),
    "grass": ((0.27, 0.50, 0.14), (0.48, 0.66, 0.22)),
    "sand": ((0.88, 0.78, 0.58), (0.76, 0.63, 0.42)),
    "marble": ((0.90, 0.90, 0.91), (0.48, 0.49, 0.53)),
    "cobblestone": ((0.60, 0.58, 0.56), (0.24, 0.22, 0.21)),
}


def _pair(first: RGB, second: RGB) -> tuple[RGB, RGB]:
    return to_linear(first), to_linear(second)


_FLOORS: Final[dict[tuple[str, str], tuple[RGB, RGB]]] = {
    **{("checker", name): _pair(*pair) for name, pair in CHECKERS.items()},
    **{("plain", name): (colour, colour) for name, colour in TINT_COLOURS.items()},
    **{("tiles", name): (colour, mix(colour, _DARK, 0.75)) for name, colour in TINT_COLOURS.items()},
    **{
        ("grid", name): (colour, _WHITE if sum(colour) < 0.6 else mix(colour, _DARK, 0.8))
        for name, colour in TINT_COLOURS.items()
    },
}


def floor_colours(kind: str, tint: str) -> tuple[RGB, RGB]:
    """Main and second colour of a floor."""
    return _FLOORS.get((kind, tint)) or _NATURAL_LINEAR[kind]


_NATURAL_LINEAR: Final = {kind: _pair(*pair) for kind, pair in _NATURAL.items()}


class Surroundings(NamedTuple):
    """The gradient that lights and mirrors itself in objects, and the backdrop's own two colours."""

    zenith: RGB
    horizon: RGB
    main: RGB
    second: RGB


_SKIES: Final[dict[str, tuple[RGB, RGB, RGB, RGB]]] = {  # sRGB: zenith, horizon, main, second
    "sky": ((0.24, 0.50, 0.88), (0.80, 0.90, 0.98), (0.24, 0.50, 0.88), (0.80, 0.90, 0.98)),
    "clouds": ((0.26, 0.50, 0.86), (0.78, 0.88, 0.97), (0.26, 0.50, 0.86), (0.99, 0.99, 1.0)),
    "sunset": ((0.38, 0.28, 0.58), (0.99, 0.64, 0.35), (0.36, 0.22, 0.50), (1.0, 0.60, 0.25)),
    "night": ((0.22, 0.24, 0.40), (0.46, 0.48, 0.62), (0.02, 0.03, 0.10), (0.10, 0.12, 0.27)),
    "bricks": ((0.92, 0.92, 0.94), (0.74, 0.60, 0.54), (0.62, 0.28, 0.20), (0.80, 0.75, 0.70)),
    "mountains": ((0.34, 0.56, 0.88), (0.86, 0.92, 0.97), (0.36, 0.44, 0.58), (0.62, 0.70, 0.82)),
    "city": ((0.30, 0.30, 0.50), (0.80, 0.60, 0.58), (0.13, 0.14, 0.22), (1.0, 0.84, 0.45)),
}
_SKIES_LINEAR: Final = {
    kind: Surroundings(*(to_linear(colour) for colour in colours)) for kind, colours in _SKIES.items()
}
_TINTED: Final = {
    (kind, name): Surroundings(
        (0.92, 0.93, 0.96),
        mix(colour, _WHITE, 0.35),
        colour,
        mix(colour, _WHITE if kind == "studio" else _DARK, 0.45),
    )
    for kind in ("studio", "wallpaper", "dots")
    for name, colour in TINT_COLOURS.items()
}


def surroundings(kind: str, tint: str) -> Surroundings:
    """Colours of a backdrop."""
    return _TINTED.get((kind, tint)) or _SKIES_LINEAR[kind]


LIGHTS: Final[dict[str, RGB]] = {
    "neutral": (1.0, 1.0, 1.0),
    "warm": (1.12, 0.98, 0.80),
    "cool": (0.86, 0.98, 1.14),
}
