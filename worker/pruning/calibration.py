"""Settings of ToProVAR for a requested amount of work, from the entropy maps of a few prompts run dense.

Until a prompt is pruned it runs whole, and its plan looks at nothing later. So what any settings would prune follows from
maps recorded once, by the policy itself, without running the model again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.infinity.schedule import ScaleSchedule

from .history import BatchHistory, PromptWork
from .plan import ScalePlan
from .policies.base import BatchContext, Unobserving
from .policies.build import policy_factory
from .policies.fit import representative_scale
from .policies.specs import ToprovarSpec
from .policies.toprovar import round_entropy
from .statistics import low_entropy_ratio, singular_value_ratio

# Drops every token of a Detail layer (R of at least 0.5, in the second half of the scales) but the floor and those whose
# entropy is less than half of the mean.
LARGEST_A_MAX = 8.0
_BISECTIONS = 12


@dataclass
class Recording:
    """Entropy maps of one batch.

    Attributes:
        schedule: token map sizes.
        depth: layers L.
        seeds: [B] int64 on the CPU.
        guided: whether there is an unconditional branch.
        maps: for each scale [L, B, N] float32 nats on the CPU.
    """

    schedule: ScaleSchedule
    depth: int
    seeds: Tensor
    guided: bool
    maps: list[Tensor] = field(default_factory=list)

    def low_entropy_ratios(self) -> Tensor:
        """[S, B] float64 rho."""
        return torch.stack([low_entropy_ratio(round_entropy(maps).mean(0)) for maps in self.maps])

    def singular_value_ratios(self, scale_index: int) -> Tensor:
        """[L, B] float64."""
        maps = round_entropy(self.maps[scale_index])
        return singular_value_ratio(maps.unflatten(-1, self.schedule[scale_index]))


class RecordingPolicy(Unobserving):
    """Runs everything and records every entropy map."""

    def __init__(self, context: BatchContext, *, guided: bool) -> None:
        """Serve one batch.

        Args:
            context: of the batch.
            guided: goes into the recording.
        """
        super().__init__(context)
        self.recording = Recording(context.schedule, context.depth, context.seeds.cpu(), guided)
        self._scale: list[Tensor] = []

    def plan(self, scale_index: int) -> ScalePlan:
        """All of it, observed."""
        dense = self.context.dense(scale_index)
        return replace(dense, entropy_of=dense.prompts)

    def observe(self, scale_index: int, layer: int, attn_entropy: Tensor) -> None:  # noqa: ARG002 - in order
        """Take a layer's maps; those of a scale go to the host together."""
        self._scale.append(attn_entropy)
        if len(self._scale) == self.context.depth:
            self.recording.maps.append(torch.stack(self._scale).float().cpu())
            self._scale = []


def simulate(spec: ToprovarSpec, recording: Recording) -> list[PromptWork]:
    """What each recorded prompt would run.

    Args:
        spec: settings; their saliency is the attention's entropy.
        recording: of a batch.
    """
    schedule, depth = recording.schedule, recording.depth
    policy = policy_factory(spec, len(schedule), depth)(BatchContext(schedule, depth, recording.seeds))
    history = BatchHistory(recording.schedule, guided=recording.guided)
    for scale_index, maps in enumerate(recording.maps):
        plan = policy.plan(scale_index)
        history.add(plan, None)
        for layer in range(recording.depth) if plan.entropy_of else ():
            policy.observe(scale_index, layer, maps[layer, list(plan.entropy_of)])
    return [history.work(prompt) for prompt in range(len(recording.seeds))]


def mean_fraction(spec: ToprovarSpec, recordings: Sequence[Recording]) -> float:
    """Mean `token_layer_fraction` of all recorded prompts."""
    fractions = [work.token_layer_fraction for each in recordings for work in simulate(spec, each)]
    return sum(fractions) / len(fractions)


def mean_pattern(works: Sequence[PromptWork]) -> list[list[float]]:
    """The plan of a replay that does the work of all prompts on average.

    Returns:
        From the first scale in which something was pruned on, the mean keep ratio of each layer; empty where nothing was.
    """
    num_scales = len(works[0].schedule)
    first = min(work.pruning_start_scale for work in works)
    plan = []
    for scale in range(first, num_scales):
        ran = [sum(counts) for counts in zip(*(work.counts[scale] for work in works), strict=True)]
        dense = sum(work.schedule[scale][0] * work.schedule[scale][1] for work in works)
        plan.append([round(tokens / dense, 6) for tokens in ran])
    return plan


@dataclass(frozen=True)
class Recommendation:
    """Settings for a requested amount of work.

    Attributes:
        spec: all settings.
        fraction: the mean `token_layer_fraction` that they give on the recorded prompts.
    """

    spec: ToprovarSpec
    fraction: float


def check_recordable(spec: ToprovarSpec) -> None:
    """Refuse settings whose work does not follow from maps of dense runs.

    Raises:
        ModelSpecError: the saliency looks at pruned scales.
    """
    if spec.token_pruning and spec.saliency != "attn_entropy":
        raise ModelSpecError(
            f"policy.saliency: {spec.saliency} looks at pruned scales, which are not recorded; calibrate with attn_entropy"
        )


def recommend(
    base: ToprovarSpec, recordings: Sequence[Recording], fraction: float, global_share: float
) -> Recommendation:
    """Find beta, the depth threshold and a_max for a requested mean token-layer fraction.

    beta makes `global_share` of the recorded layers Global. The threshold is the one that prunes latest among those that can
    still reach the fraction, since a scale that runs whole is right for certain. Then a_max is what just reaches it.

    Args:
        base: everything else: switches, direction, a_min, selection, floor; `check_recordable` lets it pass.
        recordings: of dense batches.
        fraction: requested, in (0, 1).
        global_share: of the layers, in (0, 1).

    Raises:
        ModelSpecError: the settings cannot reach the fraction; says which they can.
    """
    spec, hardest = _bounds(base, recordings, global_share)
    if base.scale_pruning:
        threshold = _latest_threshold(hardest, recordings, fraction)
        spec, hardest = (_updated(each, depth_threshold=threshold) for each in (spec, hardest))
    least = mean_fraction(hardest, recordings)
    if least > fraction:
        raise ModelSpecError(
            f"--fraction: {fraction:g} cannot be reached with these settings, which run at least {least:.4f}; request more, "
            "or let the policy prune more (policy.representative_scale, policy.keep_ratio_floor, --global-layers)"
        )
    if base.token_pruning:
        reaches = _bisect(
            lambda value: mean_fraction(_updated(spec, a_max=value), recordings) <= fraction,
            base.a_min,
            LARGEST_A_MAX,
        )
        spec = _updated(spec, a_max=math.ceil(1e4 * reaches) / 1e4)  # rounded down it might reach it no more
    return Recommendation(spec, mean_fraction(spec, recordings))


def least_fraction(base: ToprovarSpec, recordings: Sequence[Recording], global_share: float) -> float:
    """The smallest mean token-layer fraction that `recommend` can be asked for."""
    _, hardest = _bounds(base, recordings, global_share)
    if base.scale_pruning:
        hardest = _updated(hardest, depth_threshold=_latest_threshold(hardest, recordings, 0.0))
    return mean_fraction(hardest, recordings)


def _bounds(
    base: ToprovarSpec, recordings: Sequence[Recording], global_share: float
) -> tuple[ToprovarSpec, ToprovarSpec]:
    """The settings with their beta, and the same pruning as many tokens as can be."""
    spec = base
    if base.layer_pruning:
        spec = _updated(spec, beta=_beta(base, recordings, global_share))
    return spec, _updated(spec, a_max=LARGEST_A_MAX) if base.token_pruning else spec


def _updated(spec: ToprovarSpec, **changes: float) -> ToprovarSpec:
    return spec.model_copy(update=changes)


def _beta(base: ToprovarSpec, recordings: Sequence[Recording], global_share: float) -> float:
    """The beta with which R = threshold at the quantile of the ratios above which layers must be Global."""
    ratios = torch.cat(
        [
            each.singular_value_ratios(representative_scale(base, len(each.schedule))).flatten()
            for each in recordings
        ]
    )
    limit = ratios.sort().values[min(len(ratios) - 1, int((1 - global_share) * len(ratios)))].item()
    if not 1 < limit < float("inf") or not 0 < base.layer_threshold < 1:
        return base.beta
    return float(f"{-torch.tensor(base.layer_threshold).log().item() / (limit - 1):.4g}")


def _latest_threshold(spec: ToprovarSpec, recordings: Sequence[Recording], fraction: float) -> float:
    """The depth threshold that prunes latest and still reaches the fraction; else the one that prunes most."""
    at_least = spec.threshold_direction == "at_least"
    rounded = math.floor if at_least else math.ceil  # so that the ratio itself still reaches it
    found = {
        rounded(value * 1e4) / 1e4
        for each in recordings
        for scale in each.low_entropy_ratios()[representative_scale(spec, len(each.schedule)) : -1].tolist()
        for value in scale
        if not math.isnan(value)
    }
    thresholds = sorted(found, reverse=at_least) or [spec.depth_threshold]  # from the latest start on
    low, high = 0, len(thresholds) - 1
    while low < high:  # work falls along the list
        middle = (low + high) // 2
        if mean_fraction(_updated(spec, depth_threshold=thresholds[middle]), recordings) <= fraction:
            high = middle
        else:
            low = middle + 1
    return thresholds[low]


def _bisect(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value that reaches, to a few digits; `high` does."""
    if reached(low):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
