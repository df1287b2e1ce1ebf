"""The judge of pictures: whether each shows what its prompt asks for, and how often that is so.

Whoever makes or reads pictures judges them here: a dataset's evaluation, a calibration, the comparison of policies, and
the look at a model in training. A picture that could not be made has failed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from toprovar_batch.worker.generated import GeneratedBatch
from toprovar_batch.worker.reference.scenes.prompts import Wanted
from toprovar_batch.worker.reference.scenes.vocab import TASKS

from .scorer import Scorer
from .verdict import TaskScore, Verdict, clustered_error, judge, overall_score, task_score

NO_PICTURE: Final = Verdict(False, "error: no picture was made")


class Expected(Protocol):
    """What a picture has to show."""

    @property
    def task(self) -> str:
        """One of the evaluation's."""
        ...

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The objects."""
        ...

    @property
    def relation(self) -> str | None:
        """Where wanted[0] is as seen from wanted[1], or None."""
        ...


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a picture has to show; see `TaskPrompt`."""

    task: str
    wanted: tuple[Wanted, ...]
    relation: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """The task, prompt and verdict of a sample."""

    task: str
    prompt: str
    verdict: Verdict

    @property
    def error(self) -> bool:
        """Whether there is no picture."""
        return self.verdict == NO_PICTURE


@dataclass(frozen=True)
class Judgement:
    """What the scorer says of some pictures.

    Attributes:
        verdicts: of each.
        features: [n, F] float32 on the CPU, of those that could be made.
    """

    verdicts: list[Verdict]
    features: Tensor


def as_floats(pixels: Tensor, device: torch.device) -> Tensor:
    """[B, H, W, 3] uint8 to [B, 3, H, W] float32 in [0, 1] on a device."""
    return pixels.to(device).permute(0, 3, 1, 2).float() / 255.0


def judge_pictures(scorer: Scorer, pictures: Tensor, expected: Sequence[Expected]) -> Judgement:
    """Judge pictures of one size.

    Args:
        scorer: reads them.
        pictures: [B, 3, H, W] float32 in [0, 1].
        expected: of each.
    """
    seen, features = scorer.detector.read(pictures.to(scorer.detector.device))
    verdicts = [
        judge(each.wanted, each.relation, things) for each, things in zip(expected, seen, strict=True)
    ]
    return Judgement(verdicts, features.cpu())


def judge_made(scorer: Scorer, made: GeneratedBatch, expected: Sequence[Expected]) -> Judgement:
    """Judge what a generator made; where the model gave numbers that are not finite, there is no picture.

    Args:
        scorer: reads the pictures.
        made: a batch.
        expected: of each image.
    """
    rows = [row for row, finite in enumerate(made.finite) if finite]
    verdicts = [NO_PICTURE] * len(expected)
    if not rows:
        return Judgement(verdicts, torch.empty(0))
    pictures = as_floats(torch.from_numpy(made.pixels)[rows], scorer.detector.device)
    found = judge_pictures(scorer, pictures, [expected[row] for row in rows])
    for row, verdict in zip(rows, found.verdicts, strict=True):
        verdicts[row] = verdict
    return Judgement(verdicts, found.features)


def task_scores(judged: Iterable[Judged]) -> dict[str, TaskScore]:
    """The score of each task that has samples."""
    passed: dict[str, dict[str, list[bool]]] = {task: defaultdict(list) for task in TASKS}
    for each in judged:
        passed[each.task][each.prompt].append(each.verdict.passed)
    return {task: task_score(by_prompt) for task, by_prompt in passed.items() if by_prompt}


def score_difference(first: Mapping[str, Judged], second: Mapping[str, Judged]) -> dict[str, Any]:
    """How much better the first samples score than the second, on those that both have, by sample id.

    The standard error is that of the paired difference, over prompts.

    Returns:
        `tasks` and `overall`, JSON-able.

    Raises:
        ValueError: they share no sample.
    """
    changes: dict[str, dict[str, list[int]]] = {task: defaultdict(list) for task in TASKS}
    for sample_id, judged in first.items():
        if sample_id in second:
            change = judged.verdict.passed - second[sample_id].verdict.passed
            changes[judged.task][judged.prompt].append(change)
    tasks = {task: _mean_change(groups) for task, groups in changes.items() if groups}
    score, error = overall_score(tasks.values())
    return {
        "tasks": {task: asdict(difference) for task, difference in tasks.items()},
        "overall": {"tasks": len(tasks), "score": score, "standard_error": error},
    }


def _mean_change(by_prompt: Mapping[str, Sequence[int]]) -> TaskScore:
    images = sum(map(len, by_prompt.values()))
    mean = sum(map(sum, by_prompt.values())) / images
    return TaskScore(images, len(by_prompt), mean, clustered_error(by_prompt.values(), mean))
