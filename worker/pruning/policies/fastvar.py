"""FastVAR: late scales run the tokens farthest from the mean token, the last ones are skipped."""

from dataclasses import replace

from torch import Tensor

from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet

from .base import BatchContext, Unobserving
from .fit import fastvar_layers
from .specs import FastvarSpec


def distance_to_mean(states: Tensor) -> Tensor:
    """Squared distance of each token to the mean token (FastVAR's saliency): [P, N, C] to [P, N] float32.

    Added up in float64: a GPU's sums depend on the number of prompts in their last digits, and this decides who runs.
    """
    states = states.double()
    return (states - states.mean(1, keepdim=True)).square().sum(-1).float()


class FastvarPolicy(Unobserving):
    """FastVAR at any batch size and schedule.

    The paper names the scales of 1024 x 1024 pixels. 24x24 is kept for restoration. 32x32 and 40x40 run 60% and 50% of
    the tokens in layers 3 to 27 of 32. 48x48 and 64x64 are skipped. Counted from the last scale they have the same
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
