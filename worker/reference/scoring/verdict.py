"""Right or wrong: what a prompt asks for against what a picture shows, after GenEval (arXiv 2310.11513).

A picture passes when it shows exactly the wanted number of every shape that the prompt names, each in its colour. For
the position task the direction must be right, too. Shapes that the prompt does not name are ignored. GenEval itself is laxer
in that one object more than asked for fails only its counting task; its rule for directions is taken over unchanged.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from toprovar_batch.worker.reference.scenes.prompts import Wanted
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, SHAPE_NAMES, TASKS

POSITION_MARGIN: Final = 0.1
"""Part of both boxes' sides by which two middles must differ before a direction counts, as in GenEval."""
_DIRECTIONS: Final = ("left of", "right of", "above", "below")

Box = tuple[float, float, float, float]


class Seen(Protocol):
    """An object in a picture, detected or known: `box` is (x0, y0, x1, y1) in pixels, y pointing down."""

    @property
    def shape(self) -> str:
        """Name of the shape."""
        ...

    @property
    def colour(self) -> str:
        """Name of the colour."""
        ...

    @property
    def box(self) -> Box:
        """Bounds in the picture."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture is right, and if not the first thing that is wrong with it."""

    passed: bool
    reason: str | None = None


def check_wanted(task: str, wanted: Sequence[Wanted], relation: str | None) -> None:
    """Refuse what no picture can be judged by.

    Raises:
        ValueError: an unknown task, shape, colour or relation; no object at all; a count below 1; or a relation
            of other objects than two single ones of different shapes.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is none of {', '.join(TASKS)}")
    if not wanted:
        raise ValueError("no object is wanted")
    for want in wanted:
        if want.shape not in SHAPE_NAMES:
            raise ValueError(f"shape {want.shape!r} is unknown")
        if want.colour is not None and want.colour not in COLOUR_NAMES:
            raise ValueError(f"colour {want.colour!r} is unknown")
        if want.count < 1:
            raise ValueError(f"count {want.count} is below 1")
    if relation is not None and relation not in _DIRECTIONS:
        raise ValueError(f"relation {relation!r} is none of {', '.join(_DIRECTIONS)}")
    pair = len(wanted) == 2 and wanted[0].shape != wanted[1].shape and all(w.count == 1 for w in wanted)
    if relation is not None and not pair:
        raise ValueError(f"relation {relation!r} needs two single objects of different shapes")
    if task == "position" and relation is None:
        raise ValueError("task 'position' needs a relation")


def judge(wanted: Sequence[Wanted], relation: str | None, seen: Sequence[Seen]) -> Verdict:
    """Compare the objects of a picture with a prompt.

    Args:
        wanted: what the prompt asks for, already checked.
        relation: where wanted[0] is as seen from wanted[1], or None.
        seen: every object of the picture.
    """
    totals: Counter[str] = Counter()
    for want in wanted:
        totals[want.shape] += want.count
    for shape, total in totals.items():
        shown = sum(thing.shape == shape for thing in seen)
        if shown != total:
            return Verdict(False, f"count: {shown} of shape {shape}, not {total}")
    demands: Counter[tuple[str, str]] = Counter()
    for want in wanted:
        if want.colour is not None:
            demands[want.shape, want.colour] += want.count
    for (shape, colour), count in demands.items():
        colours = sorted(thing.colour for thing in seen if thing.shape == shape)
        if colours.count(colour) < count:
            return Verdict(False, f"colour: {shape} in {' and '.join(colours)}, not {colour}")
    if relation is None:
        return Verdict(True)
    first, second = (next(thing for thing in seen if thing.shape == want.shape) for want in wanted[:2])
    shown_relations = directions(first.box, second.box)
    if relation in shown_relations:
        return Verdict(True)
    place = " and ".join(sorted(shown_relations)) or "at the place of"
    return Verdict(False, f"position: {first.shape} {place} {second.shape}, not {relation}")


def directions(first: Box, second: Box) -> set[str]:
    """Where the first box is as seen from the second; none where the middles are close, two on a diagonal."""
    widths = (first[2] - first[0]) + (second[2] - second[0])
    heights = (first[3] - first[1]) + (second[3] - second[1])
    x = 0.5 * (first[0] + first[2] - second[0] - second[2])
    y = 0.5 * (first[1] + first[3] - second[1] - second[3])
    distance = math.hypot(x, y)
    beyond_x = math.copysign(max(abs(x) - POSITION_MARGIN * widths, 0.0), x)
    beyond_y = math.copysign(max(abs(y) - POSITION_MARGIN * heights, 0.0), y)
    found = zip(_DIRECTIONS, (-beyond_x, beyond_x, -beyond_y, beyond_y), strict=True)
    return {name for name, amount in found if distance > 0.0 and amount > 0.5 * distance}


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Score of a task.

    Attributes:
        images: pictures judged, those that could not be generated included.
        prompts: different prompts among them.
        score: part of the pictures that passed.
        standard_error: of the score, over prompts: pictures of one prompt are not independent. None for one prompt.
    """

    images: int
    prompts: int
    score: float
    standard_error: float | None


def task_score(passed_by_prompt: Mapping[str, Sequence[bool]]) -> TaskScore:
    """Score of one task from what happened to every picture of every prompt.

    Raises:
        ValueError: there is no picture.
    """
    images = sum(map(len, passed_by_prompt.values()))
    if not images:
        raise ValueError("a task without pictures has no score")
    score = sum(sum(passed) for passed in passed_by_prompt.values()) / images
    return TaskScore(images, len(passed_by_prompt), score, clustered_error(passed_by_prompt.values(), score))


def clustered_error(groups: Iterable[Sequence[float]], mean: float) -> float | None:
    """Standard error of a mean over all values, which are independent only between groups; None for one group."""
    filled = [group for group in groups if group]
    count, total = len(filled), sum(map(len, filled))
    if count < 2:
        return None
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in filled)
    return math.sqrt(squares * count / (count - 1)) / total


def overall_score(tasks: Iterable[TaskScore]) -> tuple[float, float | None]:
    """Mean of the tasks' scores, each counting the same, and its standard error where every task has one.

    Raises:
        ValueError: there is no task.
    """
    scores = list(tasks)
    if not scores:
        raise ValueError("there is no task to average")
    mean = math.fsum(task.score for task in scores) / len(scores)
    errors = [task.standard_error for task in scores if task.standard_error is not None]
    if len(errors) < len(scores):
        return mean, None
    return mean, math.sqrt(math.fsum(error**2 for error in errors)) / len(scores)
