"""Procedural scenes: seeded 3-D pictures with captions that are always true and exact ground truth.

`sample_scenes` makes scene records from a seed, and `caption` and `task_prompt` put them into words. `pack` turns them
into tensors. `render` makes pictures, with the instance map and the boxes that a detector learns from. `make_batch`
does all but the rendering in one call, for worker processes.
"""

from .caption import caption, relation_between
from .pack import SceneTensors, pack
from .prompts import TaskPrompt, Wanted, task_prompt, task_prompts
from .render import Render, render
from .sampler import sample_scenes
from .spec import ObjectSpec, SceneSpec
from .split import seen_in_training
from .truth import ObjectTruth, SceneBatch, ground_truth, make_batch

__all__ = [
    "ObjectSpec",
    "ObjectTruth",
    "Render",
    "SceneBatch",
    "SceneSpec",
    "SceneTensors",
    "TaskPrompt",
    "Wanted",
    "caption",
    "ground_truth",
    "make_batch",
    "pack",
    "relation_between",
    "render",
    "sample_scenes",
    "seen_in_training",
    "task_prompt",
    "task_prompts",
]
