"""How alike the pictures are that two datasets made of the same samples."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.reference.scoring.image_metrics import percentile, psnr, ssim

from .data import EvaluationData, Sample


class PictureComparison:
    """SSIM and PSNR of the pictures that both datasets made from the same sample id and seed.

    Samples may come in any order: one whose partner has not come yet waits, with the bytes of its picture's file.
    Datasets of one job wait for about a shard; others for as much as their orders differ.
    """

    def __init__(self, first: EvaluationData, second: EvaluationData) -> None:
        """Find the samples that both have, without reading a picture.

        Raises:
            OutputFolderError: a dataset cannot be read or has an id twice, or they share no sample.
        """
        self._first, self._second = first, second
        ids, other_ids = first.sample_ids(), second.sample_ids()
        self._shared = ids & other_ids
        if not self._shared:
            raise OutputFolderError(
                f"{first.output} and {second.output} share no sample_id; compare runs of the same prompts"
            )
        self._skipped = Counter(
            {
                "only in the first": len(ids - other_ids),
                "only in the second": len(other_ids - ids),
                "no picture": 0,
                "other seed": 0,
            }
        )
        self._waiting: dict[str, Sample] = {}
        self._likeness: list[float] = []
        self._ratio: list[float] = []

    def add(self, samples: Sequence[Sample], others: Sequence[Sample]) -> None:
        """Take samples of the first and of the second dataset, each sample once.

        Raises:
            OutputFolderError: a picture cannot be read, or those of a pair differ in size.
        """
        for sample in samples:
            if sample.sample_id in self._shared:
                self._match(sample, is_first=True)
        for sample in others:
            if sample.sample_id in self._shared:
                self._match(sample, is_first=False)

    def _match(self, sample: Sample, *, is_first: bool) -> None:
        partner = self._waiting.pop(sample.sample_id, None)
        if partner is None:
            self._waiting[sample.sample_id] = sample
        elif sample.content is None or partner.content is None:
            self._skipped["no picture"] += 1
        elif sample.seed != partner.seed:
            self._skipped["other seed"] += 1
        else:
            self._compare(*((sample, partner) if is_first else (partner, sample)))

    def _compare(self, one: Sample, other: Sample) -> None:
        picture, other_picture = self._first.decode(one)[None], self._second.decode(other)[None]
        if picture.shape != other_picture.shape:
            sizes = [f"{image.shape[-1]} x {image.shape[-2]}" for image in (picture, other_picture)]
            raise OutputFolderError(
                f"sample {one.sample_id}: {sizes[0]} pixels in {self._first.output}, {sizes[1]} in "
                f"{self._second.output}; compare runs of one resolution"
            )
        self._likeness += ssim(picture, other_picture).tolist()
        self._ratio += psnr(picture, other_picture).tolist()

    def summary(self) -> dict[str, Any]:
        """What the pairs came to, JSON-able.

        Returns:
            `pairs` compared, `identical` ones among them, `skipped` by reason, and mean and 5th percentile of both
            measures, None where there is no pair. PSNR in dB. Its mean is over the pairs that differ, and its
            percentile None where it is infinite.
        """
        likeness, ratio = self._likeness, self._ratio
        finite = [value for value in ratio if math.isfinite(value)]
        low_ratio = percentile(ratio, 0.05) if ratio else math.inf
        return {
            "pairs": len(ratio),
            "identical": len(ratio) - len(finite),
            "skipped": {reason: count for reason, count in self._skipped.items() if count},
            "ssim": {
                "mean": math.fsum(likeness) / len(likeness) if likeness else None,
                "percentile_5": percentile(likeness, 0.05) if likeness else None,
            },
            "psnr_db": {
                "mean_of_differing": math.fsum(finite) / len(finite) if finite else None,
                "percentile_5": low_ratio if math.isfinite(low_ratio) else None,
            },
        }
