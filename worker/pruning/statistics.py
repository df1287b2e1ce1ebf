"""What entropy maps say: low-entropy ratio, layer scores, and the probability to keep a token (ToProVAR).

Everything stays on the maps' device and waits for nothing. Maps that say nothing (one token, all equal, not finite)
give the answer that prunes nothing.
"""

import math

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.resize import resize

# A second singular value below this part of the first is rounding of a float32 map.
_RANK_ONE = 1e-7


def low_entropy_ratio(maps: Tensor) -> Tensor:
    """Fraction of tokens below the mean entropy (ToProVAR, rho of Eq. 3).

    Args:
        maps: [..., N] float32 nats.

    Returns:
        [...] float64; NaN, which reaches no threshold in either direction, where all tokens are equal or one is no
        finite number.
    """
    exact = maps.double()  # in float32 the mean of equal numbers may differ from them
    ratio = (exact < exact.mean(-1, keepdim=True)).double().mean(-1)
    tells = exact.isfinite().all(-1) & (exact.amin(-1) < exact.amax(-1))
    return torch.where(tells, ratio, torch.nan)


def singular_value_ratio(maps: Tensor) -> Tensor:
    """sigma1 / sigma2 of each map (`principal_component_ratio`; ToProVAR, Eq. 4).

    Args:
        maps: [..., h, w] entropy maps.

    Returns:
        [...] float64, at least 1. It is infinite where the map has rank one (one token, one row, all equal, a product of
        a row and a column). It also is where the map is zero or holds a number that is not finite.
    """
    # The full decomposition of all maps in one batched call: 0.4 ms on an H200 for 320 maps of 12 x 12.
    values = torch.linalg.svdvals(torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0).double())
    first, second = values[..., 0], values[..., 1:2].sum(-1)  # of one row or column there is no second
    ratio = first / second.clamp_min(torch.finfo(second.dtype).tiny)
    tells = maps.isfinite().all(-1).all(-1) & (second > _RANK_ONE * first)
    return torch.where(tells, ratio.clamp_min(1), torch.inf)


def representation_score(ratio: Tensor, beta: float) -> Tensor:
    """R = exp(-beta (sigma1/sigma2 - 1)) (ToProVAR, Eq. 4): near 1 Detail, near 0 Global.

    Args:
        ratio: from `singular_value_ratio`.
        beta: not negative. With 0 every score is 1, but that of an infinite ratio.

    Returns:
        [...] float64 in [0, 1]; 0, which keeps the layer, where the ratio is infinite.
    """
    score = torch.exp(-beta * (torch.where(ratio.isinf(), 1.0, ratio) - 1))
    return torch.where(ratio.isinf(), 0.0, score)


def keep_probability(
    unimportance: Tensor,
    scores: Tensor,
    progress: float,
    a_min: float,
    a_max: float,
    *,
    literal: bool = False,
) -> Tensor:
    """P_keep = 1 - clip(a_min + (a_max - a_min) q, 0, 1), q = progress * R * H^ (ToProVAR, Eqs. 5 and 6).

    H^ is the map over its sum, times N so that its mean is 1. Without the N, as the paper prints it, H^ is about 1 / N
    and every token gets the same probability.

    Args:
        unimportance: [..., N], not negative: the entropies, or what stands in for them.
        scores: [...] R of each map.
        progress: s / S, scales counted from 1.
        a_min: what every token loses.
        a_max: what a token of q = 1 loses.
        literal: leave the N out.

    Returns:
        [..., N] float32; 1 in a map that holds a number which is not finite.
    """
    total = unimportance.sum(-1, dtype=torch.float64)[..., None]
    share = unimportance / torch.where(total > 0, total, 1.0)
    num_tokens = unimportance.shape[-1]
    share = torch.where(total > 0, share, 1 / num_tokens)
    weight = progress * scores[..., None] * (1 if literal else num_tokens)
    lost = (a_min + (a_max - a_min) * weight * share).clamp(0, 1)
    finite = unimportance.isfinite().all(-1, keepdim=True)
    return torch.where(finite, 1 - lost, 1.0).float()


def kept_counts(probability: Tensor, floor: float) -> Tensor:
    """round(sum of P_keep) of each map, and no fewer than a fraction `floor` of its tokens.

    Args:
        probability: [..., N] from `keep_probability`.
        floor: fraction in [0, 1].

    Returns:
        [...] int64.
    """
    wanted = probability.sum(-1, dtype=torch.float64).round().long()
    return wanted.clamp_min(floor_count(floor, probability.shape[-1]))


def floor_count(floor: float, num_tokens: int) -> int:
    """Tokens that are kept at least: the fraction `floor`, rounded up."""
    return math.ceil(floor * num_tokens - 1e-9)  # 0.07 * 100 is a hair above 7


def keep_lowest(keys: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` lowest of each row; of equal ones those of lower index.

    Args:
        keys: [..., N]; NaN counts as highest.
        counts: [...] int64.

    Returns:
        [..., N] bool.
    """
    order = keys.argsort(dim=-1, stable=True)
    chosen = (torch.arange(keys.shape[-1], device=keys.device) < counts[..., None]).expand(keys.shape)
    return torch.zeros_like(chosen).scatter(-1, order, chosen)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[K, B, h, w] maps to [K, B, H * W] of another token map, bilinearly."""
    if maps.shape[-2:] == size:
        return maps.flatten(-2)
    return resize(maps, size, "bilinear").flatten(-2)
