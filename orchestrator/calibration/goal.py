"""Goals of `calibrate` that only pictures answer: the policy that prunes most and loses no more than is requested.

The sample is generated dense once and then under one candidate after the other, with the same prompts and seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from toprovar_batch.orchestrator.steps import SILENT, Steps
from toprovar_batch.worker.generator import Generator, generate_all
from toprovar_batch.worker.pruning.policies.specs import PolicySpec
from toprovar_batch.worker.reference.scoring.image_metrics import ssim
from toprovar_batch.worker.reference.scoring.judging import (
    NO_PICTURE,
    Expectation,
    Judged,
    as_floats,
    judge_pictures,
    score_difference,
)
from toprovar_batch.worker.reference.scoring.scorer import Scorer
from toprovar_batch.worker.reference.scoring.verdict import Verdict
from toprovar_batch.worker.request import GenerationRequest

_STEPS: Final = 5
"""Halvings of the range of strengths: to 3% of it, finer than a sample of some dozen pictures can tell."""

MOST_TRIES: Final = 1 + _STEPS


@dataclass(frozen=True)
class Made:
    """What a policy made of the sample.

    Attributes:
        pictures: of each request, [H, W, 3] uint8 RGB; None where it could not be made.
        fraction: mean `token_layer_fraction`.
    """

    pictures: list[Tensor | None]
    fraction: float


@dataclass(frozen=True)
class Candidate:
    """A policy that was tried.

    Attributes:
        policy: its settings.
        fraction: mean `token_layer_fraction`.
        loss: against dense, in the goal's unit.
        standard_error: of the loss; None where the sample is too small for one.
    """

    policy: PolicySpec
    fraction: float
    loss: float
    standard_error: float | None


Loss = Callable[[Made, Made], tuple[float, float | None]]
"""Of what a policy made, beside what dense made: the loss and its standard error."""


def make_sample(
    generator: Generator, requests: Sequence[GenerationRequest], batch_size: int, steps: Steps = SILENT
) -> Made:
    """Generate the sample under the generator's policy, `batch_size` pictures per batch, a piece of the step each."""
    pictures: dict[str, Tensor | None] = {}
    fractions: list[float] = []
    for batch, made in generate_all(generator, requests, batch_size):
        for request, pixels, finite in zip(batch, made.pixels, made.finite, strict=True):
            pictures[request.sample_id] = torch.from_numpy(pixels) if finite else None
        fractions += made.fractions
        steps.advance()
    ordered = [pictures[request.sample_id] for request in requests]
    return Made(ordered, sum(fractions) / len(fractions))


def ssim_loss(made: Made, dense: Made) -> tuple[float, float | None]:
    """Mean of 1 - SSIM to the dense pictures; a picture that could not be made is like none."""
    losses = [1 - _likeness(one, two) for one, two in zip(made.pictures, dense.pictures, strict=True)]
    mean = math.fsum(losses) / len(losses)
    if len(losses) < 2:
        return mean, None
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
    return mean, math.sqrt(variance / len(losses))


def _likeness(one: Tensor | None, two: Tensor | None) -> float:
    if one is None or two is None:
        return 0.0
    cpu = torch.device("cpu")
    return ssim(as_floats(one[None], cpu), as_floats(two[None], cpu)).item()


def score_loss(
    requests: Sequence[GenerationRequest], expected: Sequence[Expectation], scorer: Scorer
) -> Loss:
    """The loss in points: hundredths of the overall score, each task counting the same.

    Args:
        requests: the sample.
        expected: of each picture.
        scorer: reads the pictures.
    """

    def verdict(picture: Tensor | None, expectation: Expectation) -> Verdict:
        if picture is None:
            return NO_PICTURE
        floats = as_floats(picture[None], scorer.detector.device)
        return judge_pictures(scorer, floats, [expectation]).verdicts[0]

    def read(made: Made) -> dict[str, Judged]:
        return {
            request.sample_id: Judged(expectation.task, request.prompt, verdict(picture, expectation))
            for request, expectation, picture in zip(requests, expected, made.pictures, strict=True)
        }

    def loss(made: Made, dense: Made) -> tuple[float, float | None]:
        difference = score_difference(read(dense), read(made))["overall"]
        error = difference["standard_error"]
        return 100 * difference["score"], None if error is None else 100 * error

    return loss


def strongest(
    candidate: Callable[[float], PolicySpec], measure: Callable[[PolicySpec], Candidate], most: float
) -> tuple[Candidate | None, list[Candidate]]:
    """The candidate of the greatest strength that loses at most `most`, by bisection.

    Args:
        candidate: policy of a strength from 0 to 1, losing more the greater it is.
        measure: tries a policy.
        most: loss that is allowed.

    Returns:
        The candidate, None where all that were tried lose more; and those, in order.
    """
    tried = [measure(candidate(1.0))]
    if tried[0].loss <= most:
        return tried[0], tried
    low, high = 0.0, 1.0
    best: Candidate | None = None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried.append(measure(candidate(middle)))
        if tried[-1].loss <= most:
            low, best = middle, tried[-1]
        else:
            high = middle
    return best, tried
