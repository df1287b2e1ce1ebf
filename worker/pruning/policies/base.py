"""What a policy is: it watches a batch and decides, before each scale, what runs in it. Scales count from 0."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.infinity.schedule import ScaleSchedule
from toprovar_batch.worker.pruning.plan import ScalePlan


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
        """What runs in a scale; called once per scale, in order. May wait once for the device."""

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

    def measured(self, prompt: int, statistics: ImageStatistics) -> ImageStatistics:
        """Add to the statistics of a prompt's image what the policy has measured of it."""


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

    def measured(self, prompt: int, statistics: ImageStatistics) -> ImageStatistics:  # noqa: ARG002 - of no prompt
        """Nothing was measured."""
        return statistics
