"""What a policy is, and the four that need no statistics: dense, fixed exit, FastVAR, replay.

A policy watches a batch and decides, before each scale, what runs in it. It decides only; `packing` and the sampler act.
Scales are counted from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from toprovar_batch.worker.infinity.schedule import ScaleSchedule

from .draw import pruning_noise
from .plan import ScalePlan, TokenSet, token_sets
from .specs import FastvarSpec, FixedExitSpec, Restoration


@dataclass(frozen=True)
class BatchContext:
    """What a policy knows of its batch beforehand.

    Attributes:
        schedule: token map sizes.
        depth: layers L.
        seeds: [B] int64 of the samples, on the model's device.
        conditional_from: first scale that runs without guidance; None: none does.
    """

    schedule: ScaleSchedule
    depth: int
    seeds: Tensor
    conditional_from: int | None = None

    @property
    def num_prompts(self) -> int:
        """B."""
        return len(self.seeds)

    def num_tokens(self, scale_index: int) -> int:
        """N of a scale."""
        height, width = self.schedule[scale_index]
        return height * width

    def dense(self, scale_index: int) -> ScalePlan:
        """The plan that prunes no token."""
        dense = ScalePlan.dense(self.num_tokens(scale_index), self.depth, self.num_prompts)
        if self.conditional_from is None or scale_index < self.conditional_from:
            return dense
        return replace(dense, conditional_only=(True,) * self.num_prompts)

    def skipped(self, scale_index: int) -> ScalePlan:
        """The plan that skips the scale for all."""
        return replace(self.dense(scale_index), skipped=(True,) * self.num_prompts)


class PruningPolicy(Protocol):
    """Decides what runs, from what it has observed in earlier scales."""

    def plan(self, scale_index: int) -> ScalePlan:
        """What runs in a scale; called once a scale, in order. May wait once for the device."""

    def observe(self, scale_index: int, layer: int, attn_entropy: Tensor) -> None:
        """Take the entropy maps of a layer, [n, N] float32 nats, of the n prompts of the plan's `entropy_of`."""

    def observe_scale(
        self, scale_index: int, logits: Tensor | None, summed_codes: Tensor | None, prompts: Sequence[int]
    ) -> None:
        """Take what the plan asked for of a finished scale.

        Args:
            scale_index: counted from 0.
            logits: [P, N, 2D] guided logits of the P prompts that ran.
            summed_codes: [B, z, H, W], all scales so far.
            prompts: the P prompts.
        """

    def low_entropy_ratio(self, prompt: int) -> list[float | None]:
        """For each scale the fraction of low-entropy tokens; None where it was not measured."""

    def layer_representation_score(self, prompt: int) -> list[float]:
        """R of each layer; empty where it was not measured."""


class Unobserving:
    """A policy that looks at nothing."""

    def __init__(self, context: BatchContext) -> None:
        """Serve one batch."""
        self.context = context

    def observe(self, scale_index: int, layer: int, attn_entropy: Tensor) -> None:
        """Nothing was asked for."""

    def observe_scale(
        self, scale_index: int, logits: Tensor | None, summed_codes: Tensor | None, prompts: Sequence[int]
    ) -> None:
        """Nothing was asked for."""

    def low_entropy_ratio(self, prompt: int) -> list[float | None]:  # noqa: ARG002 - the same for all
        """Nowhere measured."""
        return [None] * len(self.context.schedule)

    def layer_representation_score(self, prompt: int) -> list[float]:  # noqa: ARG002 - the same for all
        """Not measured."""
        return []


class DensePolicy(Unobserving):
    """Every token runs in every layer."""

    def plan(self, scale_index: int) -> ScalePlan:
        """All of it."""
        return self.context.dense(scale_index)


class FixedExitPolicy(Unobserving):
    """Skips every scale from a given one on."""

    def __init__(self, spec: FixedExitSpec, context: BatchContext) -> None:
        """Serve one batch.

        Args:
            spec: the settings.
            context: of the batch.
        """
        super().__init__(context)
        scales = len(context.schedule)
        self._start = scales - 3 if spec.start_scale is None else spec.start_scale

    def plan(self, scale_index: int) -> ScalePlan:
        """All or nothing."""
        if scale_index < self._start:
            return self.context.dense(scale_index)
        return self.context.skipped(scale_index)


def distance_to_mean(states: Tensor) -> Tensor:
    """Squared distance of each token to the mean token (FastVAR's saliency): [P, N, C] to [P, N] float32."""
    states = states.float()
    return (states - states.mean(1, keepdim=True)).square().sum(-1)


class FastvarPolicy(Unobserving):
    """FastVAR at any batch size and schedule.

    The paper names the scales of 1024 x 1024 pixels: 24x24 is kept for restoration, 32x32 and 40x40 run 60% and 50% of
    the tokens in layers 3 to 27 of 32, 48x48 and 64x64 are skipped. Counted from the last scale they have the same
    relative sizes in every schedule, so that is how they are found.
    """

    def __init__(self, spec: FastvarSpec, context: BatchContext) -> None:
        """Serve one batch.

        Args:
            spec: the settings.
            context: of the batch.
        """
        super().__init__(context)
        self._spec = spec
        self._first, self._last = fastvar_layers(spec, context.depth)
        self._skip_from = len(context.schedule) - spec.skipped_scales
        self._prune_from = self._skip_from - len(spec.keep_ratio)

    def plan(self, scale_index: int) -> ScalePlan:
        """Whole, chosen from the hidden state at each layer, or skipped."""
        context, cached = self.context, self._spec.restoration == "cached"
        if scale_index >= self._skip_from:
            return context.skipped(scale_index)
        dense = context.dense(scale_index)
        if scale_index < self._prune_from:
            keep_changes = cached and scale_index == self._prune_from - 1
            return replace(dense, changes_of=dense.prompts if keep_changes else ())
        ratio = self._spec.keep_ratio[scale_index - self._prune_from]
        count = round(ratio * dense.num_tokens)
        if count == dense.num_tokens:
            return dense
        chosen = TokenSet((count,) * context.num_prompts, score=distance_to_mean)
        layers = tuple(
            chosen if self._first <= layer <= self._last else None for layer in range(context.depth)
        )
        return replace(dense, layers=layers, restore=cached)


def fastvar_layers(spec: FastvarSpec, depth: int) -> tuple[int, int]:
    """First and last layer that FastVAR prunes: 3 and 27 of 32, in proportion, where the spec names none."""
    first = round(3 * depth / 32) if spec.first_layer is None else spec.first_layer
    last = min(depth - 1, round(27 * depth / 32)) if spec.last_layer is None else spec.last_layer
    return first, last


class ReplayPolicy(Unobserving):
    """Runs a recorded pattern: of each layer in each of the last scales a fraction of the tokens, drawn by seed."""

    def __init__(
        self, plan: Sequence[Sequence[float]], restoration: Restoration, context: BatchContext
    ) -> None:
        """Serve one batch.

        Args:
            plan: keep ratios, for each of the last scales one a layer.
            restoration: of tokens that do not run.
            context: of the batch.
        """
        super().__init__(context)
        self._plan, self._cached = plan, restoration == "cached"
        self._start = len(context.schedule) - len(plan)

    def plan(self, scale_index: int) -> ScalePlan:
        """The recorded counts, with tokens of the sample's own."""
        context = self.context
        dense = context.dense(scale_index)
        if scale_index < self._start:
            keep_changes = self._cached and scale_index == self._start - 1
            return replace(dense, changes_of=dense.prompts if keep_changes else ())
        num_tokens = dense.num_tokens
        counts = [
            (round(ratio * num_tokens),) * context.num_prompts
            for ratio in self._plan[scale_index - self._start]
        ]
        if not any(count for row in counts for count in row):
            return context.skipped(scale_index)
        noise = pruning_noise(context.seeds, scale_index, context.depth, num_tokens)
        layers = token_sets(counts, noise, num_tokens, context.seeds.device)
        return replace(dense, layers=layers, restore=self._cached)


def paper_2b_plan(depth: int) -> list[list[float]]:
    """What the paper's ablation times of the 2B model imply, for a model of any depth.

    In the last three scales (from 10 of 13 on) 6% of the layers, evenly spread, run whole, the others 3% of the tokens.
    """
    num_whole = max(1, round(0.06 * depth))
    whole = {int((index + 0.5) * depth / num_whole) for index in range(num_whole)}
    return [[1.0 if layer in whole else 0.03 for layer in range(depth)]] * 3
