"""How far the scorer can be trusted: what it says about renders whose content is known exactly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from toprovar_batch.worker.reference.scenes import (
    ObjectTruth,
    TaskPrompt,
    ground_truth,
    pack,
    render,
    sample_scenes,
    task_prompt,
)
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, TASK_SHAPES, TASKS

from .detector import Detection, Detector
from .image_metrics import FeatureStatistics, feature_statistics
from .verdict import judge

_BATCH: Final = 32
_OTHER_PROMPTS: Final = 8
_OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ASKEW: Final = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
_LEAST_SCORE: Final = 0.1
_THRESHOLDS: Final = tuple(0.02 * step for step in range(6, 36))

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ReadRender:
    """A render with its own prompt, what is truly in it, and what the detector reads."""

    prompt: TaskPrompt
    truth: tuple[ObjectTruth, ...]
    seen: list[Detection]
    features: Tensor


def read_renders(
    detector: Detector, task: str, seed: int, count: int, side: int, change: Change | None = None
) -> Iterator[ReadRender]:
    """Render held-out scenes of a task at side x side pixels and let the detector read them.

    Args:
        detector: on the device that renders, too.
        task: one of the six.
        seed: of the scenes.
        count: how many.
        side: pixels.
        change: what to do to the pictures first, or None.
    """
    for start in range(0, count, _BATCH):
        scenes = sample_scenes(seed, min(_BATCH, count - start), "heldout", task, start=start)
        rendered = render(pack(scenes).to(detector.device), (side, side))
        images = rendered.images if change is None else change(rendered.images)
        seen, features = detector.read(images)
        for row, scene in enumerate(scenes):
            yield ReadRender(task_prompt(scene), ground_truth(scene, rendered, row), seen[row], features[row])


def reference_statistics(detector: Detector, seed: int, count: int, side: int) -> FeatureStatistics:
    """Statistics of the features of about `count` held-out renders, equally many of each task."""
    each = -(-count // len(TASKS))
    return feature_statistics(
        torch.stack(
            [read.features for task in TASKS for read in read_renders(detector, task, seed, each, side)]
        )
    )


def calibrate(detector: Detector, seed: int, count: int, side: int, change: Change) -> float:
    """The threshold with which most renders pass their own prompt, untouched and changed ones counting the same.

    Args:
        detector: its own threshold does not matter.
        seed: of the scenes.
        count: renders per task.
        side: pixels.
        change: what generated pictures suffer.

    Returns:
        The middle one of the best.
    """
    kept, detector.min_score = detector.min_score, _LEAST_SCORE
    try:
        renders = [
            read
            for task in TASKS
            for way in (None, change)
            for read in read_renders(detector, task, seed, count, side, way)
        ]
    finally:
        detector.min_score = kept
    passed = [sum(_passes(read, read.prompt, threshold) for read in renders) for threshold in _THRESHOLDS]
    best = [threshold for threshold, score in zip(_THRESHOLDS, passed, strict=True) if score == max(passed)]
    return round(best[len(best) // 2], 3)


def _passes(read: ReadRender, prompt: TaskPrompt, threshold: float = 0.0) -> bool:
    seen = [detection for detection in read.seen if detection.score >= threshold]
    return judge(prompt.wanted, prompt.relation, seen).passed


def scorer_accuracy(
    detector: Detector, seed: int, count: int, side: int, change: Change | None = None
) -> dict[str, Any]:
    """How often renders pass, by task and on the average of the tasks.

    Args:
        detector: what is measured.
        seed: of the scenes, which nothing was trained or calibrated on.
        count: renders per task.
        side: pixels.
        change: what to do to the pictures first, or None.

    Returns:
        `own`: renders that pass their own prompt, which should be 1. `other`: those that pass the prompt of another scene
        of the task, and `near`: a prompt that is wrong in one thing; both should be 0. And why own prompts failed.
    """
    own, other, near, reasons = {}, {}, {}, {}
    for task in TASKS:
        reads = list(read_renders(detector, task, seed, count, side, change))
        verdicts = [judge(read.prompt.wanted, read.prompt.relation, read.seen) for read in reads]
        own[task] = sum(verdict.passed for verdict in verdicts) / len(reads)
        kinds = [verdict.reason.split(":")[0] for verdict in verdicts if verdict.reason]
        reasons[task] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        other[task] = _false_passes(reads, _others)
        near[task] = _false_passes(reads, lambda reads, row: near_misses(reads[row].prompt))
    rates = {"own": own, "other": other, "near": near}
    with_mean = {
        name: by_task | {"overall": sum(by_task.values()) / len(TASKS)} for name, by_task in rates.items()
    }
    return {"renders": count * len(TASKS), **with_mean, "own_failures": reasons}


def _others(reads: Sequence[ReadRender], row: int) -> list[TaskPrompt]:
    return [reads[(row + step) % len(reads)].prompt for step in range(1, _OTHER_PROMPTS + 1)]


def _false_passes(
    reads: Sequence[ReadRender], prompts_for: Callable[[Sequence[ReadRender], int], list[TaskPrompt]]
) -> float:
    """Part of the prompts that are wrong about their render and pass it all the same."""
    passed = [
        _passes(read, prompt)
        for row, read in enumerate(reads)
        for prompt in prompts_for(reads, row)
        if not judge(prompt.wanted, prompt.relation, read.truth).passed
    ]
    return sum(passed) / max(1, len(passed))


def near_misses(prompt: TaskPrompt) -> list[TaskPrompt]:
    """The prompt with one thing wrong, in every way: a shape, a colour, a number, swapped colours, a direction."""
    changed = []
    shapes, colours = {want.shape for want in prompt.wanted}, {want.colour for want in prompt.wanted}
    for index, want in enumerate(prompt.wanted):
        ways = [replace(want, shape=shape) for shape in TASK_SHAPES if shape not in shapes]
        if want.colour is not None:
            ways += [replace(want, colour=colour) for colour in COLOUR_NAMES if colour not in colours]
        ways += [replace(want, count=count) for count in (want.count - 1, want.count + 1) if count > 0]
        changed += [(*prompt.wanted[:index], way, *prompt.wanted[index + 1 :]) for way in ways]
    if len(prompt.wanted) == 2 and prompt.wanted[0].colour is not None:
        first, second = prompt.wanted
        changed.append((replace(first, colour=second.colour), replace(second, colour=first.colour)))
    if prompt.relation is not None:  # a count of two cannot stand in a relation
        changed = [wanted for wanted in changed if all(want.count == 1 for want in wanted)]
    near = [replace(prompt, wanted=wanted) for wanted in changed]
    if prompt.relation is not None:
        near += [replace(prompt, relation=way[prompt.relation]) for way in (_OPPOSITE, _ASKEW)]
    return near
