"""A recorded pattern of work, run again whatever the prompt."""

from collections.abc import Sequence
from dataclasses import replace

from toprovar_batch.worker.pruning.draw import pruning_noise
from toprovar_batch.worker.pruning.plan import ScalePlan, token_sets

from .base import BatchContext, Unobserving
from .specs import Restoration


class ReplayPolicy(Unobserving):
    """Runs a recorded pattern: of each layer in each of the last scales a fraction of the tokens, drawn by seed."""

    def __init__(
        self, plan: Sequence[Sequence[float]], restoration: Restoration, context: BatchContext
    ) -> None:
        """Serve one batch.

        Args:
            plan: keep ratios, for each of the last scales one per layer.
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
