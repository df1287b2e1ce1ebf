"""Everything runs; or nothing from a given scale on."""

from toprovar_batch.worker.pruning.plan import ScalePlan

from .base import BatchContext, Unobserving
from .specs import FixedExitSpec


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
