"""What a scene is: frozen records, cheap to make and to pickle. Lengths are world units, angles radians.

The world looks along +z from the camera: x is right, y is up, z is away, and the floor is y = 0.
"""

from dataclasses import dataclass

from .complexity import complexity_class, scene_complexity

Vec3 = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object; names are those of `vocab`."""

    shape: str
    colour: str
    material: str
    pattern: str
    accent: str
    """Second colour of a pattern and the ink of a digit."""
    digit: int | None
    size: str
    scale: float
    """World units per unit of the shape's own frame."""
    position: Vec3
    """Centre of the shape's box."""
    yaw: float
    standing: bool
    """A ring on its rim rather than lying flat."""
    support: int | None
    """Index of the object it stands on; None on the floor or in the air."""
    frequency: float
    """Repeats of the pattern per unit of the shape's own frame."""


@dataclass(frozen=True, slots=True)
class FloorSpec:
    """The ground plane."""

    kind: str
    tint: str
    """A name of `TINTS`, or of `CHECKERS` for a checker floor."""
    scale: float
    angle: float
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BackdropSpec:
    """What is behind the floor."""

    kind: str
    tint: str
    scale: float
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """Pinhole camera without roll at (0, target + distance sin pitch, -distance cos pitch)."""

    distance: float
    pitch: float
    tan_half_fov: float
    """Of the shorter image side."""
    target: float
    """Height of the point it looks at, above the world's origin."""


@dataclass(frozen=True, slots=True)
class LightSpec:
    """One key light."""

    side: str
    """`left` or `right` of the camera."""
    azimuth: float
    elevation: float
    warmth: str
    softness: float
    """Penumbra width per unit of distance to the caster."""


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """Everything the renderer and the captions know."""

    objects: tuple[ObjectSpec, ...]
    floor: FloorSpec
    backdrop: BackdropSpec
    camera: CameraSpec
    light: LightSpec
    task: str | None
    relation: str | None
    """For the position task: what objects[0] is to objects[1]."""
    split: str

    @property
    def complexity(self) -> float:
        """Fineness in [0, 1]; `complexity.scene_complexity` defines it."""
        return scene_complexity(self)

    @property
    def complexity_class(self) -> str:
        """`plain`, `simple`, `moderate`, `detailed` or `busy`: fifths of `complexity`."""
        return complexity_class(self.complexity)
