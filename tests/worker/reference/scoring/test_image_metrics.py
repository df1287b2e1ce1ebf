"""Frechet distance, SSIM and PSNR against closed forms and slow direct computations."""

import math

import pytest
import torch

from toprovar_batch.worker.reference.scoring.image_metrics import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    percentile,
    psnr,
    ssim,
)


def images(seed, size=(24, 31), count=2):
    return torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(seed))


def statistics(mean, covariance):
    return FeatureStatistics(1000, torch.tensor(mean).double(), torch.tensor(covariance).double())


def test_identical_pictures_have_similarity_one_and_infinite_ratio():
    x = images(0)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0])
    assert psnr(x, x).tolist() == [math.inf, math.inf]


def test_psnr_of_a_known_error():
    x = images(0) * 0.5
    assert psnr(x, x + 0.1).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    y = x.clone()
    y[:, 0] += 0.1  # one channel of three
    assert psnr(x, y).tolist() == pytest.approx([20.0 + 10 * math.log10(3)] * 2, abs=1e-4)


def test_ssim_agrees_with_its_definition_written_out():
    x, y = images(1, (13, 12), 1), images(2, (13, 12), 1)
    weights = torch.tensor([math.exp(-0.5 * (i / 1.5) ** 2) for i in range(-5, 6)]).double()
    window = torch.outer(weights, weights) / weights.sum() ** 2
    luma = torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]
    a, b = ((picture[0].double() * luma).sum(0) for picture in (x, y))
    values = []
    for top in range(3):
        for left in range(2):
            p, q = (plane[top : top + 11, left : left + 11] for plane in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            both = (window * (p - mp) * (q - mq)).sum()
            value = (2 * mp * mq + 1e-4) * (2 * both + 9e-4)
            values.append(value / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(x, y).item() == pytest.approx(torch.stack(values).mean().item())


def test_ssim_of_flat_pictures_is_the_brightness_term():
    x, y = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(x, y).item() == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), rel=1e-5)


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_pairs_of_other_shapes_are_refused(measure):
    with pytest.raises(ValueError, match="one shape"):
        measure(images(0), images(0, (24, 30)))


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels or more, got 31 x 10"):
        ssim(images(0, (10, 31)), images(1, (10, 31)))


def test_frechet_distance_of_gaussians_in_closed_form():
    # diagonal covariances: |m1 - m2|² + Σ (√a - √b)²
    first = statistics([0.0, 1.0, 2.0], [[4.0, 0, 0], [0, 9.0, 0], [0, 0, 1.0]])
    second = statistics([1.0, 1.0, 0.0], [[1.0, 0, 0], [0, 16.0, 0], [0, 0, 0.0]])
    assert frechet_distance(first, second) == pytest.approx(5.0 + 1.0 + 1.0 + 1.0)
    assert frechet_distance(second, first) == pytest.approx(8.0)


def test_frechet_distance_of_covariances_that_do_not_commute():
    first = statistics([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
    second = statistics([0.0, 0.0], [[3.0, 0.0], [0.0, 1.0]])
    # for 2 x 2: tr √M = √(tr M + 2 √det M), with M = C1 C2
    expected = 4.0 + 4.0 - 2.0 * math.sqrt(8.0 + 2.0 * math.sqrt(9.0))
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_without_full_rank():
    features = torch.randn((5, 40), generator=torch.Generator().manual_seed(3))
    same = feature_statistics(features)
    assert same.few
    assert frechet_distance(same, same) == pytest.approx(0.0, abs=1e-6)


def test_statistics_are_those_of_the_sample():
    features = torch.randn((200, 4), generator=torch.Generator().manual_seed(4))
    found = feature_statistics(features)
    assert (found.count, found.few) == (200, False)
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(features.double().T))
    with pytest.raises(ValueError, match="two pictures"):
        feature_statistics(features[:1])
    with pytest.raises(ValueError, match="4 features cannot be compared with 3"):
        frechet_distance(found, feature_statistics(features[:, :3]))


def test_percentiles_interpolate_and_take_infinities():
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([7.0], 0.05) == 7.0
    assert percentile([math.inf, math.inf], 0.05) == math.inf
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
