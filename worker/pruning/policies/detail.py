"""A rule of our own: late scales run only where the codes so far have detail, and without guidance.

The codes of a scale are points on the unit sphere, so they add the same energy everywhere. Where the sum of the earlier
scales is smooth, a finer scale has nothing to say that a picture would miss. At edges and textures it has. How much of a
map has detail is the picture's own: that makes the depth adaptive, with one threshold and no statistics of attention. The
tokens that run do so in every layer, since a hidden state that few layers have seen gives codes that are mostly noise.

What is in the picture is settled by then, so the conditional branch alone is enough, which halves the rest (SkipVAR's
finding).
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet
from toprovar_batch.worker.pruning.saliency import code_detail
from toprovar_batch.worker.pruning.statistics import resize_maps

from .base import BatchContext, Unobserving
from .fit import late_scales
from .specs import DetailSpec


class DetailPolicy(Unobserving):
    """Serves one batch; `plan` waits for the device once per scale, for the counts.

    A prompt of which a scale was skipped stays skipped: nothing was added since that could have given it detail.
    """

    def __init__(self, spec: DetailSpec, context: BatchContext) -> None:
        """Serve one batch.

        Args:
            spec: the settings.
            context: of the batch.
        """
        super().__init__(context)
        self._spec = spec
        self._first, _ = late_scales(spec, len(context.schedule))
        self._detail: Tensor | None = None  # [B, h, w] after the last scale in which a prompt ran
        self._skipped = (False,) * context.num_prompts

    def observe_scale(
        self,
        scale_index: int,
        logits: Tensor | None,  # noqa: ARG002 - not asked for
        summed_codes: Tensor | None,
        prompts: Sequence[int],  # noqa: ARG002 - what is skipped is not looked at again
    ) -> None:
        """Take the sum of codes."""
        if summed_codes is not None:
            size = self.context.schedule[scale_index]
            self._detail = code_detail(summed_codes, size).unflatten(-1, size)

    def plan(self, scale_index: int) -> ScalePlan:
        """The tokens with detail, in all layers."""
        dense = replace(
            self.context.dense(scale_index),
            observe_codes=self._first - 1 <= scale_index < len(self.context.schedule) - 1,
        )
        if scale_index < self._first or self._detail is None:
            return dense
        detail = resize_maps(self._detail[None], self.context.schedule[scale_index])[0]
        mask = detail >= self._spec.detail_threshold  # [B, N]
        counts = tuple(mask.sum(-1).tolist())
        least = max(1, self._spec.keep_ratio_floor * dense.num_tokens)
        self._skipped = tuple(
            skipped or count < least for skipped, count in zip(self._skipped, counts, strict=True)
        )
        tokens = None if min(counts) == dense.num_tokens else TokenSet(counts, mask)
        return replace(
            dense,
            layers=(tokens,) * self.context.depth,
            skipped=self._skipped,
            code_layers=self.context.depth,
        )
