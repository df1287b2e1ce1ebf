"""Random scenes: free ones of five levels of fineness, and those of the six evaluation tasks.

Scene i of a seed depends on the seed, the split, the task and i alone.
"""

from typing import Final

from .dice import Dice
from .layout import is_beside, is_over
from .looks import (
    LEVELS,
    Look,
    floor_of,
    pick_backdrop,
    pick_camera,
    pick_colour,
    pick_floor,
    pick_light,
    pick_look,
    pick_shape,
)
from .placement import Stage, base_scale
from .spec import FloorSpec, SceneSpec
from .split import allowed_colours, heldout_colours, heldout_floors, heldout_pairs, is_heldout_pair
from .vocab import FLOOR_CLASHES, SHAPES, SIZES, SPLITS, TASK_SHAPES, TASKS

_TASK_SHARE: Final = 0.5
"""Part of the scenes sampled without a task that still follow one: their prompts must be learnt too."""
_TASK_ODDS: Final = (1.0, 2.0, 2.0, 1.0, 3.0, 3.0)
"""Which colour belongs to which thing, and where it is, takes the most pictures to learn."""
_COUNTS: Final = ((1, 1), (1, 2), (2, 4), (3, 6), (6, 12))
_TWO_THINGS: Final = frozenset({"two_objects", "position", "colour_binding"})
_POSITIONS: Final = ("left of", "right of", "above", "below")
_HELDOUT_ALL: Final = tuple((shape, colour) for shape in SHAPES for colour in sorted(heldout_colours(shape)))
_HELDOUT_SHAPE_PAIRS: Final = tuple(
    (first, second)
    for first in TASK_SHAPES
    for second in TASK_SHAPES
    if first != second and is_heldout_pair(first, second)
)
_HELDOUT_FLOORS: Final = tuple(
    (shape, floor) for shape in TASK_SHAPES for floor in sorted(heldout_floors(shape))
)


def sample_scenes(
    seed: int, count: int, split: str = "train", task: str | None = None, *, start: int = 0
) -> list[SceneSpec]:
    """Scenes `start` to `start + count` of the endless list that the other arguments name.

    Args:
        seed: any integer.
        count: how many.
        split: "train" shows no held-out combination; every scene of "heldout" shows at least one.
        task: one of `vocab.TASKS`, or None for the training mix of free scenes and of all tasks.
        start: index of the first scene.

    Raises:
        ValueError: `split` or `task` is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return [
        _scene(Dice(f"{seed}/{split}/{task}/{index}"), split, task) for index in range(start, start + count)
    ]


def _scene(dice: Dice, split: str, task: str | None) -> SceneSpec:
    if task is None and dice.chance(_TASK_SHARE):
        task = dice.weighted(TASKS, _TASK_ODDS)
    if task is None:
        return _free_scene(dice, split)
    level = dice.weighted((0, 1, 2, 3), (3.0, 4.0, 3.0, 1.5))
    while True:
        scene = _task_scene(dice, split, task, level)
        if scene is not None:
            return scene


def _finish(
    dice: Dice,
    stage: Stage,
    level: int,
    split: str,
    task: str | None,
    relation: str | None,
    floor: FloorSpec | None = None,
) -> SceneSpec:
    colours = frozenset(thing.colour for thing in stage.objects)
    # what a prompt names as its whole content must not repeat a held-out prompt
    lone = stage.objects[0].shape if len(stage.objects) == 1 else None
    floor = floor or pick_floor(dice, level, colours, lone, split)
    backdrop, light = pick_backdrop(dice, level, colours), pick_light(dice)
    return SceneSpec(tuple(stage.objects), floor, backdrop, stage.camera, light, task, relation, split)


def _free_scene(dice: Dice, split: str) -> SceneSpec:
    level = dice.integer(0, LEVELS - 1)
    while True:
        count = dice.integer(*_COUNTS[level])
        tall = count > 1 and dice.chance(0.3)
        looks = _free_looks(dice, level, count, split)
        stage = Stage(dice, pick_camera(dice, count, tall), count)
        for number, look in enumerate(looks):
            size = dice.weighted(tuple(SIZES), (0.25, 0.5, 0.25))
            scale = base_scale(count) * SIZES[size]
            below = number - 1 if tall and number == 1 and stage.objects else None
            if (
                below is not None
                and SHAPES[stage.objects[below].shape].flat_top
                and look.shape in TASK_SHAPES
            ):
                stage.put_on(look, "small", base_scale(count) * SIZES["small"], below)
            else:
                stage.put_down(look, size, scale)
        shown = {(thing.shape, thing.colour) for thing in stage.objects}
        whole = len(stage.objects) != 2 or not is_heldout_pair(*(thing.shape for thing in stage.objects))
        if stage.objects and (looks[0].shape, looks[0].colour) in shown and (whole or split == "heldout"):
            return _finish(dice, stage, level, split, None, None)


def _free_looks(dice: Dice, level: int, count: int, split: str) -> list[Look]:
    looks: list[Look] = []
    for number in range(count):
        if looks and dice.chance(0.22):
            looks.append(looks[-1])
            continue
        if number == 0 and split == "heldout":
            shape, colour = dice.pick(_HELDOUT_ALL if level > 1 else heldout_pairs())
        else:
            shape = pick_shape(dice, level)
            colour = pick_colour(dice, shape, split)
        if number == 1 and count == 2 and split == "train":
            while is_heldout_pair(looks[0].shape, shape):
                shape = pick_shape(dice, level)
            colour = pick_colour(dice, shape, split)
        looks.append(pick_look(dice, shape, colour, level))
    return looks


def _task_names(dice: Dice, split: str, task: str) -> list[tuple[str, str]]:
    """The (shape, colour) of every object, in the order in which the prompt names them."""
    if task in _TWO_THINGS and split == "heldout":
        first, second = dice.pick(_HELDOUT_SHAPE_PAIRS)
        colours = [pick_colour(dice, shape, "train") for shape in (first, second)]
        while colours[0] == colours[1] and task != "two_objects":
            colours[1] = pick_colour(dice, second, "train")
        return list(zip((first, second), colours, strict=True))
    by_pair = split == "heldout" and task != "one_object"
    shape = dice.pick(TASK_SHAPES)
    one = dice.pick(heldout_pairs()) if by_pair else (shape, dice.pick(allowed_colours(shape, "train")))
    if task == "counting":
        return [one] * dice.integer(2, 5)
    if task in {"one_object", "colours"}:
        return [one]
    while True:
        shape = dice.pick(TASK_SHAPES)
        other = (shape, dice.pick(allowed_colours(shape, "train")))
        if (
            shape != one[0]
            and other[1] != one[1]
            and (split == "heldout" or not is_heldout_pair(shape, one[0]))
        ):
            return [one, other] if dice.chance(0.5) else [other, one]


def _task_scene(dice: Dice, split: str, task: str, level: int) -> SceneSpec | None:
    """One attempt; None where the objects found no place."""
    floor = None
    names = _task_names(dice, split, task)
    if task == "one_object" and split == "heldout":
        shape, kind = dice.pick(_HELDOUT_FLOORS)
        colour = _unclashing(dice, shape, kind)
        names, floor = [(shape, colour)], floor_of(dice, kind, frozenset({colour}))
    looks = [pick_look(dice, shape, colour, min(level, 1)) for shape, colour in names]
    # half the surface of a checkered object has the other colour: too much where the prompt asks for one
    looks = [look._replace(pattern="marbled") if look.pattern == "checkered" else look for look in looks]
    if task == "counting":
        looks = [looks[0]] * len(looks)
    relation = dice.pick(_POSITIONS) if task == "position" else None
    tall = relation in {"above", "below"}
    stage = Stage(dice, pick_camera(dice, len(names), tall), len(names), max_cover=0.05)
    size = dice.weighted(tuple(SIZES), (0.2, 0.5, 0.3)) if len(names) == 1 else dice.pick(("small", "medium"))
    scale = base_scale(len(names)) * (0.82 if size == "small" and len(names) > 1 else SIZES[size])
    if len(names) > 1:
        size = "medium"
    placed = (
        _stack(stage, looks, scale * 0.85, relation == "above")
        if tall
        else all(stage.put_down(look, size, scale) for look in looks)
    )
    if not placed or (relation is not None and not holds(stage, relation)):
        return None
    return _finish(dice, stage, level, split, task, relation, floor)


def _unclashing(dice: Dice, shape: str, kind: str) -> str:
    return dice.pick(
        [colour for colour in allowed_colours(shape, "train") if colour not in FLOOR_CLASHES[kind]]
    )


def _stack(stage: Stage, looks: list[Look], scale: float, first_on_top: bool) -> bool:
    low, high = (looks[1], looks[0]) if first_on_top else (looks[0], looks[1])
    if not stage.put_down(low, "medium", scale) or not stage.put_on(high, "medium", scale * 0.9, 0):
        return False
    if first_on_top:  # the named order is the order of the scene
        stage.swap_pair()
    return True


def holds(stage: Stage, relation: str) -> bool:
    """Whether the first object of the stage has the relation to the second, with margin."""
    first, second = stage.boxes
    if relation in {"above", "below"}:
        return is_over(first, second) if relation == "above" else is_over(second, first)
    return is_beside(first, second) if relation == "left of" else is_beside(second, first)
