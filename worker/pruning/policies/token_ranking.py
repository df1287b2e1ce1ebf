"""Step 3 of ToProVAR: how many tokens of a layer run, and in which order they are taken."""

from dataclasses import dataclass

from torch import Tensor

from toprovar_batch.worker.pruning.draw import pruning_noise
from toprovar_batch.worker.pruning.statistics import floor_count, keep_probability, kept_counts

from .specs import ToprovarSpec


@dataclass(frozen=True)
class TokenRanking:
    """Which tokens a pruned layer keeps: the `counts` of lowest key.

    Attributes:
        keys: [K, B, N], K = L or 1 for all layers.
        counts: [L, B] int64, on the device.
    """

    keys: Tensor
    counts: Tensor


def rank_tokens(
    spec: ToprovarSpec, unimportance: Tensor, scores: Tensor, scale_index: int, num_scales: int, seeds: Tensor
) -> TokenRanking:
    """Decide how many tokens of each layer and prompt run, and in which order they are taken (Eqs. 5 and 6).

    Args:
        spec: a_min, a_max, normalisation, selection and floor.
        unimportance: [K, B, N] at the scale's size, K = L or 1.
        scores: [L, B] R.
        scale_index: counted from 0.
        num_scales: S.
        seeds: [B] int64, of the draw.
    """
    num_layers, num_tokens = scores.shape[0], unimportance.shape[-1]
    progress = (scale_index + 1) / num_scales
    probability = keep_probability(
        unimportance, scores, progress, spec.a_min, spec.a_max, literal=spec.normalisation == "literal"
    )
    if spec.selection == "top_count":
        return TokenRanking(unimportance, kept_counts(probability, spec.keep_ratio_floor))
    # A token is kept where its noise is below P_keep, so the lowest differences are the ones drawn.
    keys = pruning_noise(seeds, scale_index, num_layers, num_tokens) - probability
    drawn = (keys < 0).sum(-1)
    return TokenRanking(keys, drawn.clamp_min(floor_count(spec.keep_ratio_floor, num_tokens)))
