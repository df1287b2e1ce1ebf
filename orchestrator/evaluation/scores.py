"""Scores of a dataset: which pictures show what their prompts ask for, and how near they are to true renders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.reference.scoring.image_metrics import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)
from toprovar_batch.worker.reference.scoring.judging import NO_PICTURE, Judged, judge_pictures, task_scores
from toprovar_batch.worker.reference.scoring.scorer import Scorer
from toprovar_batch.worker.reference.scoring.verdict import overall_score

from .data import EvaluationData, Sample

_BATCH: Final = 8


@dataclass(frozen=True)
class Reading:
    """All samples of a dataset, judged.

    Attributes:
        judged: by sample id.
        features: statistics of the pictures' features; None for fewer than two pictures.
        side: of the reference renders nearest in size to most pictures, in pixels; None without a picture.
    """

    judged: dict[str, Judged]
    features: FeatureStatistics | None
    side: int | None


class DatasetReader:
    """Lets the detector read the pictures of a dataset, some samples at a time.

    Args:
        data: the dataset.
        scorer: reads the pictures.
    """

    def __init__(self, data: EvaluationData, scorer: Scorer) -> None:
        self._data, self._scorer = data, scorer
        self._judged: dict[str, Judged] = {}
        self._features: list[Tensor] = []
        self._sides: Counter[int] = Counter()

    def add(self, samples: Sequence[Sample]) -> None:
        """Judge samples, such as those of one row group.

        Raises:
            OutputFolderError: a picture cannot be read, or an id is there twice.
        """
        scorer = self._scorer
        for sample in samples:
            if sample.sample_id in self._judged:
                raise OutputFolderError(f"{self._data.output}: sample {sample.sample_id} is there twice")
            self._judged[sample.sample_id] = Judged(sample.task, sample.prompt, NO_PICTURE)
        for batch, images in _batches(self._data, samples):
            found = judge_pictures(scorer, images, batch)
            self._features.append(found.features)
            self._sides[scorer.reference_side(images.shape[-2], images.shape[-1])] += len(batch)
            for sample, verdict in zip(batch, found.verdicts, strict=True):
                self._judged[sample.sample_id] = Judged(sample.task, sample.prompt, verdict)

    def reading(self) -> Reading:
        """All samples so far."""
        features = torch.cat(self._features) if self._features else torch.empty(0)
        return Reading(
            self._judged,
            feature_statistics(features) if len(features) > 1 else None,
            self._sides.most_common(1)[0][0] if self._sides else None,
        )


def _batches(data: EvaluationData, samples: Sequence[Sample]) -> Iterator[tuple[list[Sample], Tensor]]:
    """Samples with a picture in batches of one size, with their pictures [B, 3, H, W]."""
    waiting: dict[torch.Size, tuple[list[Sample], list[Tensor]]] = {}
    for sample in samples:
        if sample.content is None:
            continue
        image = data.decode(sample)
        batch, images = waiting.setdefault(image.shape, ([], []))
        batch.append(sample)
        images.append(image)
        if len(batch) == _BATCH:
            yield batch, torch.stack(images)
            del waiting[image.shape]
    for batch, images in waiting.values():
        yield batch, torch.stack(images)


def summarise(output: str, reading: Reading, scorer: Scorer) -> dict[str, Any]:
    """A dataset's scores as a JSON-able record.

    Args:
        output: the dataset's address.
        reading: of its pictures.
        scorer: whose reference renders the Frechet distance is taken to.
    """
    scores = task_scores(reading.judged.values())
    tasks = {}
    for task, own in scores.items():
        rows = [judged for judged in reading.judged.values() if judged.task == task]
        reasons = Counter(row.verdict.reason.split(":")[0] for row in rows if row.verdict.reason)
        tasks[task] = asdict(own) | {
            "errors": sum(row.error for row in rows),
            "failures": dict(sorted(reasons.items())),
        }
    score, error = overall_score(scores.values())
    return {
        "output": output,
        "images": len(reading.judged),
        "errors": sum(judged.error for judged in reading.judged.values()),
        "tasks": tasks,
        "overall": {"tasks": len(tasks), "score": score, "standard_error": error},
        "frechet": _frechet(reading, scorer),
    }


def _frechet(reading: Reading, scorer: Scorer) -> dict[str, Any] | None:
    if reading.features is None or reading.side is None:
        return None
    reference = scorer.references[reading.side]
    return {
        "distance": frechet_distance(reading.features, reference),
        "images": reading.features.count,
        "few_images": reading.features.few,
        "reference_images": reference.count,
        "reference_side": reading.side,
        "renders": scorer.record.get("frechet_of_renders", {}).get(str(reading.side)),
    }
