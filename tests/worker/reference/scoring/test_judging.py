"""The judge of pictures: verdicts of what was made, and scores of many."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toprovar_batch.worker.generated import GeneratedBatch, PhaseTimes
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.reference.scenes import Wanted
from toprovar_batch.worker.reference.scoring.judging import (
    NO_PICTURE,
    Expectation,
    Judged,
    as_floats,
    judge_made,
    judge_pictures,
    score_difference,
    task_scores,
)
from toprovar_batch.worker.reference.scoring.verdict import Verdict

RED_CUBE = Expectation("colours", (Wanted("cube", "red", 1),), None)
RIGHT, WRONG = Verdict(True), Verdict(False, "count: 0 of shape cube, not 1")


class Detector:
    """Sees a red cube where a picture is bright; the feature is its brightness."""

    device = torch.device("cpu")

    def read(self, images):
        thing = SimpleNamespace(shape="cube", colour="red", box=(0, 0, 1, 1))
        brightness = images.mean((1, 2, 3))
        return [[thing] if value > 0.5 else [] for value in brightness], brightness[:, None]


SCORER = SimpleNamespace(detector=Detector())


def _made(*brightness, finite=None):
    pixels = np.stack([np.full((4, 6, 3), value, np.uint8) for value in brightness])
    finite = [True] * len(brightness) if finite is None else finite
    return GeneratedBatch(pixels, finite, [ImageStatistics()] * len(brightness), PhaseTimes())


def test_pictures_become_floats_with_their_channels_in_front():
    floats = as_floats(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), torch.device("cpu"))
    assert floats.shape == (1, 3, 1, 1)
    assert floats.flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_every_picture_is_judged_by_its_own_expectation():
    ball = Expectation("colours", (Wanted("sphere", None, 1),), None)
    found = judge_pictures(SCORER, torch.ones(2, 3, 4, 6), [RED_CUBE, ball])
    assert [verdict.passed for verdict in found.verdicts] == [True, False]
    assert found.features.tolist() == [[1.0], [1.0]]


def test_a_picture_that_could_not_be_made_has_failed_and_is_not_looked_at():
    found = judge_made(SCORER, _made(255, 255, 0, finite=[True, False, True]), [RED_CUBE] * 3)
    assert [verdict.passed for verdict in found.verdicts] == [True, False, False]
    assert found.verdicts[1] == NO_PICTURE
    assert found.features.tolist() == [[1.0], [0.0]]
    nothing = judge_made(SCORER, _made(255, finite=[False]), [RED_CUBE])
    assert (nothing.verdicts, len(nothing.features)) == ([NO_PICTURE], 0)


def test_the_score_of_a_task_counts_missing_pictures_as_failed():
    judged = [
        Judged("colours", "a", RIGHT),
        Judged("colours", "b", NO_PICTURE),
        Judged("counting", "c", WRONG),
    ]
    scores = task_scores(judged)
    assert list(scores) == ["counting", "colours"]
    assert (scores["colours"].score, scores["colours"].images, scores["counting"].score) == (0.5, 2, 0.0)
    assert [each.error for each in judged] == [False, True, False]


def test_a_difference_is_over_shared_samples_with_each_task_counting_the_same():
    first = {str(row): Judged("colours", f"p{row}", RIGHT) for row in range(4)}
    first["4"] = Judged("counting", "q", RIGHT)
    second = first | {"0": Judged("colours", "p0", WRONG)}
    del second["3"]
    difference = score_difference(first, second)
    assert difference["tasks"]["colours"]["score"] == pytest.approx(1 / 3)
    assert difference["tasks"]["colours"]["images"] == 3
    assert difference["overall"] == {"tasks": 2, "score": pytest.approx(1 / 6), "standard_error": None}
    with pytest.raises(ValueError, match="no task"):
        score_difference(first, {})
