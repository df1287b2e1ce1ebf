"""Scores of a dataset: which pictures show what their prompts ask for, and how alike two datasets are."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor
from tqdm import tqdm

from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.reference.scoring.image_metrics import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    percentile,
    psnr,
    ssim,
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


def read_dataset(data: EvaluationData, scorer: Scorer) -> Reading:
    """Let the detector read every picture of a dataset.

    Raises:
        OutputFolderError: a row or picture cannot be read, or an id is there twice.
    """
    judged: dict[str, Judged] = {}
    features: list[Tensor] = []
    sides: Counter[int] = Counter()
    for samples in tqdm(data, total=data.num_groups, desc=data.output, unit="group", disable=None):
        for sample in samples:
            if sample.sample_id in judged:
                raise OutputFolderError(f"{data.output}: sample {sample.sample_id} is there twice")
            judged[sample.sample_id] = Judged(sample.task, sample.prompt, NO_PICTURE)
        for batch, images in _batches(data, samples):
            found = judge_pictures(scorer, images, batch)
            features.append(found.features)
            sides[scorer.reference_side(images.shape[-2], images.shape[-1])] += len(batch)
            for sample, verdict in zip(batch, found.verdicts, strict=True):
                judged[sample.sample_id] = Judged(sample.task, sample.prompt, verdict)
    all_features = torch.cat(features) if features else torch.empty(0)
    return Reading(
        judged,
        feature_statistics(all_features) if len(all_features) > 1 else None,
        sides.most_common(1)[0][0] if sides else None,
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


def compare_pictures(first: EvaluationData, second: EvaluationData) -> dict[str, Any]:
    """SSIM and PSNR of the pictures that both datasets made from the same sample id and seed.

    Returns:
        `pairs` compared, `identical` ones among them, `skipped` by reason, and mean and 5th percentile of both
        measures, None where there is no pair. PSNR in dB; its mean is over the pairs that differ, and its percentile
        None where it is infinite.

    Raises:
        OutputFolderError: the datasets share no sample, or a pair differs in size.
    """
    places = second.places()
    shared, skipped = 0, Counter[str]()
    likeness: list[float] = []
    ratio: list[float] = []
    for samples in tqdm(first, total=first.num_groups, desc="pairs", unit="group", disable=None):
        for sample in samples:
            if sample.sample_id not in places:
                skipped["only in the first"] += 1
                continue
            shared += 1
            group, row = places[sample.sample_id]
            other = second.samples(group)[row]
            if sample.content is None or other.content is None:
                skipped["no picture"] += 1
            elif sample.seed != other.seed:
                skipped["other seed"] += 1
            else:
                one, two = first.decode(sample)[None], second.decode(other)[None]
                _check_sizes(first, second, sample.sample_id, one, two)
                likeness += ssim(one, two).tolist()
                ratio += psnr(one, two).tolist()
    if not shared:
        raise OutputFolderError(
            f"{first.output} and {second.output} share no sample_id; compare runs of the same prompts"
        )
    skipped["only in the second"] = len(places) - shared
    finite = [value for value in ratio if math.isfinite(value)]
    low_ratio = percentile(ratio, 0.05) if ratio else math.inf
    return {
        "pairs": len(ratio),
        "identical": len(ratio) - len(finite),
        "skipped": {reason: count for reason, count in skipped.items() if count},
        "ssim": {
            "mean": math.fsum(likeness) / len(likeness) if likeness else None,
            "percentile_5": percentile(likeness, 0.05) if likeness else None,
        },
        "psnr_db": {
            "mean_of_differing": math.fsum(finite) / len(finite) if finite else None,
            "percentile_5": low_ratio if math.isfinite(low_ratio) else None,
        },
    }


def _check_sizes(
    first: EvaluationData, second: EvaluationData, sample_id: str, one: Tensor, two: Tensor
) -> None:
    if one.shape != two.shape:
        sizes = [f"{image.shape[-1]} x {image.shape[-2]}" for image in (one, two)]
        raise OutputFolderError(
            f"sample {sample_id}: {sizes[0]} pixels in {first.output}, {sizes[1]} in {second.output}; "
            "compare runs of one resolution"
        )
