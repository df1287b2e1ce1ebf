"""Exact ground truth of rendered scenes, and batches ready for training."""

from dataclasses import dataclass

from .caption import caption
from .layout import object_box
from .pack import SceneTensors, pack
from .render import Render
from .sampler import sample_scenes
from .spec import SceneSpec


@dataclass(frozen=True, slots=True)
class ObjectTruth:
    """What a detector should find: `box` is half-open pixels (x0, y0, x1, y1), `depth_order` 0 is the nearest."""

    shape: str
    colour: str
    box: tuple[float, float, float, float]
    visible_fraction: float
    depth_order: int


def ground_truth(scene: SceneSpec, rendered: Render, row: int) -> tuple[ObjectTruth, ...]:
    """Truth of every object of the scene that is picture `row` of `rendered`, in the scene's order."""
    depths = [object_box(scene.camera, thing).depth for thing in scene.objects]
    order = sorted(range(len(depths)), key=depths.__getitem__)
    boxes, fractions = rendered.boxes[row].tolist(), rendered.visible_fraction[row].tolist()
    return tuple(
        ObjectTruth(thing.shape, thing.colour, tuple(boxes[slot]), fractions[slot], order.index(slot))
        for slot, thing in enumerate(scene.objects)
    )


@dataclass(frozen=True)
class SceneBatch:
    """Packed scenes with a caption and a complexity each; small enough to send between processes."""

    tensors: SceneTensors
    captions: tuple[str, ...]
    complexity: tuple[float, ...]


def make_batch(
    seed: int, start: int, count: int, split: str = "train", task: str | None = None
) -> SceneBatch:
    """Scenes `start` to `start + count`, captioned and packed: the work of one data process.

    Raises:
        ValueError: `split` or `task` is unknown.
    """
    scenes = sample_scenes(seed, count, split, task, start=start)
    captions = tuple(caption(scene, _caption_seed(seed, start + row)) for row, scene in enumerate(scenes))
    return SceneBatch(pack(scenes), captions, tuple(scene.complexity for scene in scenes))


def _caption_seed(seed: int, index: int) -> int:
    return seed * 1_000_000_007 + index
