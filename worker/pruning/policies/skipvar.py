"""SkipVAR: an early scale's high frequencies decide what a prompt's late scales are worth."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.resize import resize
from toprovar_batch.worker.pruning.plan import ScalePlan

from .base import BatchContext, Unobserving
from .fit import decision_scale
from .specs import SkipvarSpec


def high_frequency_energy(summed_codes: Tensor, size: tuple[int, int]) -> Tensor:
    """Fraction of the energy of the codes, their mean left out, above half of the highest frequency.

    Args:
        summed_codes: [B, z, H, W].
        size: (h, w) of the token map at which it is measured.

    Returns:
        [B] float64 in [0, 1]; 0 where nothing varies, NaN where a code is no finite number.
    """
    codes = resize(summed_codes, size, "area").double()
    energy = torch.fft.fft2(codes).abs().square().sum(1)  # [B, h, w]
    energy[:, 0, 0] = 0
    rows, columns = (torch.fft.fftfreq(length, device=codes.device).abs() for length in size)
    high = (rows[:, None] > 0.25) | (columns[None, :] > 0.25)
    total = energy.sum((-2, -1))
    share = (energy * high).sum((-2, -1)) / torch.where(total > 0, total, 1.0)
    return torch.where(total.isfinite(), share, torch.nan)


class SkipvarPolicy(Unobserving):
    """SkipVAR at any batch size: each prompt's late scales run, run without guidance, or are skipped."""

    def __init__(self, spec: SkipvarSpec, context: BatchContext) -> None:
        """Serve one batch.

        Args:
            spec: the settings.
            context: of the batch.
        """
        super().__init__(context)
        self._spec = spec
        scales = len(context.schedule)
        self._decision = decision_scale(spec, scales)
        self._late = max(scales - spec.late_scales, self._decision + 1)
        self._energy: Tensor | None = None
        self._skipped = self._conditional = (False,) * context.num_prompts

    def observe_scale(
        self,
        scale_index: int,
        logits: Tensor | None,  # noqa: ARG002 - of the protocol
        summed_codes: Tensor | None,
        prompts: Sequence[int],  # noqa: ARG002 - of the protocol
    ) -> None:
        """Measure the decision scale."""
        if summed_codes is not None:
            self._energy = high_frequency_energy(summed_codes, self.context.schedule[scale_index])

    def plan(self, scale_index: int) -> ScalePlan:
        """Whole before the late scales; then what the energy says."""
        dense = self.context.dense(scale_index)
        if scale_index < self._late:
            return replace(dense, observe_codes=scale_index == self._decision)
        if self._energy is not None:
            energy = self._energy.tolist()
            self._energy = None
            spec = self._spec  # NaN is below nothing
            self._skipped = tuple(value < spec.skip_below for value in energy)
            self._conditional = tuple(spec.skip_below <= value < spec.conditional_below for value in energy)
        return replace(dense, skipped=self._skipped, conditional_only=self._conditional)
