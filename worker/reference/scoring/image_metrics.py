"""How alike pictures are: Frechet distance of two sets' features, SSIM and PSNR of pairs."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_LUMA: Final = (0.299, 0.587, 0.114)
_WINDOW: Final = 11
_SIGMA: Final = 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean, float64 [F], and covariance, float64 [F, F], of the features of `count` pictures."""

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def few(self) -> bool:
        """Whether the pictures are too few for a distance to mean much by itself: fewer than two a feature.

        The distance between two small samples of the same distribution is far from 0; compare it only with that of
        equally many pictures.
        """
        return self.count < 2 * len(self.mean)


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Statistics of features [n, F], in float64 on the CPU.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(features) < 2:
        raise ValueError(f"statistics need two pictures or more, got {len(features)}")
    values = features.to("cpu", torch.float64)
    mean = values.mean(0)
    centred = values - mean
    return FeatureStatistics(len(values), mean, centred.T @ centred / (len(values) - 1))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Frechet distance of the normal distributions with these statistics; 0 for equal ones.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½), where the roots are those of symmetric matrices, whose eigenvalues
    are real; negative ones are rounding and count as 0. So covariances without full rank do no harm.

    Raises:
        ValueError: the numbers of features differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"{len(first.mean)} features cannot be compared with {len(second.mean)}")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    inner = root @ second.covariance @ root
    cross = torch.linalg.eigvalsh(0.5 * (inner + inner.T)).clamp_min(0.0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2.0 * cross
    return max(0.0, float((first.mean - second.mean).square().sum() + spread))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels, in dB: float64 [B], infinite for equal pictures.

    Args:
        first: float [B, 3, H, W] in [0, 1].
        second: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(first, second)
    error = (first.double() - second.double()).square().mean((1, 2, 3))
    return -10.0 * error.log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of the luma (BT.601), after Wang et al. 2004: float64 [B], 1 for equal pictures.

    Gaussian window of 11 x 11 pixels with sigma 1.5, only where it lies wholly inside; K1 = 0.01, K2 = 0.03.

    Args:
        first: float [B, 3, H, W] in [0, 1], sides of 11 pixels or more.
        second: the same shape.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window.
    """
    _check_pair(first, second)
    if min(first.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs sides of {_WINDOW} pixels or more, got {first.shape[-1]} x {first.shape[-2]}"
        )
    x, y = _luma(first), _luma(second)
    mean_x, mean_y = _window_means(x), _window_means(y)
    var_x = _window_means(x * x) - mean_x**2
    var_y = _window_means(y * y) - mean_y**2
    both = _window_means(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * both + _C2) / (var_x + var_y + _C2)
    return (brightness * structure).mean((1, 2, 3))


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.dim() != 4 or first.shape[1] != 3:
        raise ValueError(
            f"need two batches [B, 3, H, W] of one shape, got {list(first.shape)} and {list(second.shape)}"
        )


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    return (images.double() * weights[:, None, None]).sum(1, keepdim=True)  # [B, 1, H, W]


def _window_means(planes: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=planes.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights = weights / weights.sum()
    across = functional.conv2d(planes, weights.view(1, 1, 1, -1))
    return functional.conv2d(across, weights.view(1, 1, -1, 1))


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` (in [0, 1]) of all lie, interpolated; infinities are allowed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values have no percentile")
    ranked = sorted(values)
    place = part * (len(ranked) - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    return low if low == high else low + (high - low) * (place - math.floor(place))
