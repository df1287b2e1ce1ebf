"""ToProVAR (arXiv 2602.22948): when to prune by rho, which layers by R, which tokens by P_keep.

The equations count scales from 1, the code from 0: scale index s is the paper's s + 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_host
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.pruning.plan import ScalePlan, token_sets
from toprovar_batch.worker.pruning.saliency import bit_certainty, code_smoothness
from toprovar_batch.worker.pruning.statistics import (
    low_entropy_ratio,
    representation_score,
    singular_value_ratio,
)

from .base import BatchContext
from .fit import representative_scale
from .latest_maps import LatestMaps, of_prompts
from .specs import ToprovarSpec
from .token_ranking import TokenRanking, rank_tokens

# Nats. What differs by less is rounding noise of the model, not information: it would let the same prompt keep other
# tokens in another batch.
_ENTROPY_STEP = 2.0**-10


def round_entropy(maps: Tensor) -> Tensor:
    """Entropies as decisions see them: in multiples of 2**-10 nats."""
    return (maps / _ENTROPY_STEP).round() * _ENTROPY_STEP


def reaches_threshold(spec: ToprovarSpec, ratio: float) -> bool:
    """Whether a low-entropy ratio allows pruning (Eq. 3, or the appendix's Eq. 13); NaN never does."""
    if spec.threshold_direction == "at_least":
        return ratio >= spec.depth_threshold
    return ratio <= spec.depth_threshold


def layer_counts(
    spec: ToprovarSpec, scores: Sequence[float], token_counts: Sequence[int], num_tokens: int
) -> list[int]:
    """Tokens that each layer of a prompt runs in a scale where it is pruned.

    Args:
        spec: which of layers and tokens are pruned, and where Global begins.
        scores: R of each layer; only looked at where layers are pruned.
        token_counts: what P_keep gives each layer; only looked at where tokens are pruned.
        num_tokens: N.

    Returns:
        N for a Global layer; for a Detail layer the token count, or 0 where tokens are not pruned one by one.
    """
    return [
        num_tokens
        if spec.layer_pruning and score < spec.layer_threshold
        else count
        if spec.token_pruning
        else 0
        for score, count in zip(scores, token_counts, strict=True)
    ]


@dataclass(frozen=True)
class _Reading:
    """What a plan needs on the host.

    Attributes:
        ratios: rho of each prompt that was observed in the scale before.
        scores: [L][B] R, where it was measured and not yet read; else None.
        token_counts: [B][L] tokens that P_keep gives; zeros where tokens are not pruned.
    """

    ratios: dict[int, float]
    scores: list[list[float]] | None
    token_counts: list[list[int]]


class ToprovarPolicy:
    """One batch under ToProVAR. Statistics stay on the device; `plan` waits for it once per scale.

    A prompt is *settled* when its pruning start is known: one scale after the first, from the representative scale on,
    whose rho reaches the threshold. Until then it runs whole and its entropy is observed.
    """

    def __init__(self, spec: ToprovarSpec, context: BatchContext) -> None:
        """Serve one batch.

        Args:
            spec: the settings.
            context: of the batch.
        """
        self._spec, self._context = spec, context
        self._num_scales = len(context.schedule)
        self._representative = representative_scale(spec, self._num_scales)
        self._start: list[int | None] = [None] * context.num_prompts
        self._ratios: list[list[float | None]] = [
            [None] * self._num_scales for _ in range(context.num_prompts)
        ]
        self._waiting: list[Tensor] = []  # entropy maps of the last scale, layer after layer
        self._latest = LatestMaps(context)
        # Without layer pruning every layer is Detail.
        self._scores = torch.ones(context.depth, context.num_prompts, device=context.seeds.device)
        self._host_scores: list[list[float]] | None = None  # [L][B], once measured

    def observe(self, scale_index: int, layer: int, attn_entropy: Tensor) -> None:  # noqa: ARG002 - in order
        """Take a layer's maps, [n, N], of the prompts that are not settled."""
        self._waiting.append(attn_entropy)

    def observe_scale(
        self, scale_index: int, logits: Tensor | None, summed_codes: Tensor | None, prompts: Sequence[int]
    ) -> None:
        """Take what the saliency needs of a finished scale."""
        if logits is not None:
            self._latest.update(scale_index, prompts, bit_certainty(logits)[None])
        if summed_codes is not None:
            smooth = code_smoothness(summed_codes, self._context.schedule[scale_index])
            self._latest.update(scale_index, prompts, of_prompts(smooth[None], prompts))

    def measured(self, prompt: int, statistics: ImageStatistics) -> ImageStatistics:
        """Add rho of each scale, of the map averaged over layers and heads, and R of each layer."""
        return replace(
            statistics,
            low_entropy_ratio=tuple(self._ratios[prompt]),
            layer_representation_score=tuple(row[prompt] for row in self._host_scores or ()),
        )

    def plan(self, scale_index: int) -> ScalePlan:
        """What runs in a scale."""
        plan = self._context.dense(scale_index)
        if scale_index > self._representative:
            plan = self._prune(plan, scale_index)
        return self._with_observations(plan, scale_index)

    def _prune(self, dense: ScalePlan, scale_index: int) -> ScalePlan:
        ratios, ranking = self._take_in(scale_index)
        reading = self._read(ratios, ranking)
        self._settle(scale_index, reading)
        if all(start is None for start in self._start):
            return dense
        of_prompt = [
            layer_counts(self._spec, scores, counts, dense.num_tokens)
            if start is not None
            else [dense.num_tokens] * self._context.depth
            for start, scores, counts in zip(
                self._start, self._scores_by_prompt, reading.token_counts, strict=True
            )
        ]
        counts = list(zip(*of_prompt, strict=True))  # [L][B]
        keys = None if ranking is None else ranking.keys
        return replace(
            dense,
            layers=token_sets(counts, keys, dense.num_tokens, self._context.seeds.device),
            skipped=tuple(not any(row) for row in of_prompt),
            restore=self._spec.restoration == "cached",
            code_layers=math.ceil(self._spec.code_layer_fraction * self._context.depth),
        )

    def _take_in(self, scale_index: int) -> tuple[Tensor | None, TokenRanking | None]:
        """Digest what the scale before gave, on the device: rho [n] of the unsettled, and the ranking of tokens."""
        spec, ratios = self._spec, None
        if self._waiting:
            maps = round_entropy(torch.stack(self._waiting))  # [L, n, N]
            self._waiting = []
            ratios = low_entropy_ratio(maps.mean(0))
            if spec.layer_pruning and scale_index - 1 == self._representative:
                ratio = singular_value_ratio(maps.unflatten(-1, self._context.schedule[scale_index - 1]))
                self._scores = representation_score(ratio, spec.beta)
            if spec.saliency == "attn_entropy":
                self._latest.update(scale_index - 1, self._unsettled, maps)
        if not spec.token_pruning:
            return ratios, None
        maps = self._latest.resized(scale_index)
        scores, seeds = self._scores, self._context.seeds
        return ratios, rank_tokens(spec, maps, scores, scale_index, self._num_scales, seeds)

    def _read(self, ratios: Tensor | None, ranking: TokenRanking | None) -> _Reading:
        """Bring rho, R and the counts to the host in one go: the one wait for the device."""
        unread_scores = self._spec.layer_pruning and self._host_scores is None
        wanted = {
            "ratios": ratios,
            "scores": self._scores if unread_scores else None,
            "counts": None if ranking is None else ranking.counts.mT,
        }
        found = to_host({name: tensor for name, tensor in wanted.items() if tensor is not None})
        context = self._context
        return _Reading(
            ratios=dict(zip(self._unsettled, found["ratios"].tolist(), strict=True))
            if "ratios" in found
            else {},
            scores=found["scores"].tolist() if "scores" in found else None,
            token_counts=found["counts"].long().tolist()
            if "counts" in found
            else [[0] * context.depth] * context.num_prompts,
        )

    def _settle(self, scale_index: int, reading: _Reading) -> None:
        """Note what was measured; the prompts that reach the threshold are pruned from this scale on."""
        for prompt, ratio in reading.ratios.items():
            self._ratios[prompt][scale_index - 1] = None if math.isnan(ratio) else ratio
            if self._spec.scale_pruning and reaches_threshold(self._spec, ratio):
                self._start[prompt] = scale_index
        if not self._spec.scale_pruning:
            self._start = [scale_index if start is None else start for start in self._start]
        if reading.scores is not None:
            self._host_scores = reading.scores

    def _with_observations(self, plan: ScalePlan, scale_index: int) -> ScalePlan:
        """Ask for what a later decision needs, and for no more."""
        spec = self._spec
        unsettled = tuple(self._unsettled)
        if not self._representative <= scale_index < self._num_scales - 1:
            return plan
        for_tokens = spec.token_pruning and spec.saliency == "attn_entropy"
        needs_maps = spec.scale_pruning or spec.layer_pruning or for_tokens
        return replace(
            plan,
            entropy_of=unsettled if needs_maps else (),
            changes_of=unsettled if spec.restoration == "cached" else (),
            observe_logits=spec.token_pruning and spec.saliency == "bit_uncertainty",
            observe_codes=spec.token_pruning and spec.saliency == "code_detail",
        )

    @property
    def _unsettled(self) -> list[int]:
        return [prompt for prompt, start in enumerate(self._start) if start is None]

    @property
    def _scores_by_prompt(self) -> list[list[float]]:
        """[B][L]; 1 where layers are not pruned."""
        if self._host_scores is None:
            return [[1.0] * self._context.depth] * self._context.num_prompts
        return [list(column) for column in zip(*self._host_scores, strict=True)]
