"""Prompts of the six evaluation tasks, each with what a picture must show to be right."""

from dataclasses import dataclass

from .dice import Dice
from .phrases import NOUNS, NUMBERS, article, floor_phrase
from .sampler import sample_scenes
from .spec import SceneSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """Exactly `count` objects of a shape and, where it is given, a colour."""

    shape: str
    colour: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A prompt and its exact meaning; `relation` says where wanted[0] is as seen from wanted[1]."""

    task: str
    text: str
    wanted: tuple[Wanted, ...]
    relation: str | None


def task_prompt(scene: SceneSpec) -> TaskPrompt:
    """The canonical prompt of a task's scene.

    Raises:
        ValueError: the scene belongs to no task.
    """
    if scene.task is None:
        raise ValueError("the scene follows no task, so it has no task prompt")
    things = scene.objects
    names = [NOUNS[thing.shape][0][0] for thing in things]
    coloured = [article(f"{thing.colour} {name}") for thing, name in zip(things, names, strict=True)]
    wanted = tuple(Wanted(thing.shape, thing.colour, 1) for thing in things)
    if scene.task == "one_object":
        text = f"{article(names[0])} on {floor_phrase(Dice('canonical'), scene.floor)}"
        wanted = (Wanted(things[0].shape, None, 1),)
    elif scene.task == "two_objects":
        text = f"{article(names[0])} and {article(names[1])}"
        wanted = tuple(Wanted(thing.shape, None, 1) for thing in things)
    elif scene.task == "counting":
        text = f"{NUMBERS[len(things)]} {things[0].colour} {NOUNS[things[0].shape][0][1]}"
        wanted = (Wanted(things[0].shape, things[0].colour, len(things)),)
    elif scene.task == "position":
        text = f"{coloured[0]} {scene.relation} {coloured[1]}"
    else:
        text = " and ".join(coloured)
    return TaskPrompt(scene.task, f"a photo of {text}", wanted, scene.relation)


def task_prompts(task: str, count: int, split: str = "heldout", seed: int = 0) -> list[TaskPrompt]:
    """Up to `count` different prompts of a task, in a fixed order; fewer where the split has no more.

    Raises:
        ValueError: `split` or `task` is unknown.
    """
    found: dict[str, TaskPrompt] = {}
    for scene in sample_scenes(seed, 40 * count, split, task):
        prompt = task_prompt(scene)
        found.setdefault(prompt.text, prompt)
        if len(found) == count:
            break
    return list(found.values())
