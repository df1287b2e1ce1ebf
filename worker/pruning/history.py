"""What a batch has run: from the plans of its scales to each prompt's statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.schedule import ScaleSchedule

from .packing import LayerTokens, PackedScale
from .plan import ScalePlan


@dataclass(frozen=True)
class PromptWork:
    """What one prompt ran.

    Attributes:
        schedule: token map sizes.
        counts: [S][L] tokens of each layer in each scale, in one branch; all 0 where the scale was skipped.
        branches: [S] guidance branches that ran: 2, 1, or 0 where the scale was skipped.
        num_branches: 2 with guidance, else 1.
        head_counts: [S] tokens that the head took in one branch.
    """

    schedule: ScaleSchedule
    counts: tuple[tuple[int, ...], ...]
    branches: tuple[int, ...]
    num_branches: int
    head_counts: tuple[int, ...]

    @property
    def _token_layers(self) -> list[int]:
        """Token-layers of each scale, over both branches."""
        return [sum(row) * ran for row, ran in zip(self.counts, self.branches, strict=True)]

    @property
    def _dense_token_layers(self) -> list[int]:
        layers = len(self.counts[0]) * self.num_branches
        return [height * width * layers for height, width in self.schedule]

    def head_tokens(self, guides_logits: Sequence[bool]) -> list[int]:
        """For each scale the tokens that the head took, over both branches where their logits are guided."""
        return [
            count * (ran if both else min(ran, 1))
            for count, ran, both in zip(self.head_counts, self.branches, guides_logits, strict=True)
        ]

    @property
    def keep_ratio(self) -> list[float]:
        """For each scale the fraction of its token-layers that ran, over both branches."""
        return [ran / dense for ran, dense in zip(self._token_layers, self._dense_token_layers, strict=True)]

    @property
    def token_layer_fraction(self) -> float:
        """Token-layers that ran over those of the dense model."""
        return sum(self._token_layers) / sum(self._dense_token_layers)

    @property
    def pruning_start_scale(self) -> int:
        """The first scale in which a layer left a token out, guidance aside; the number of scales where none did."""
        sizes = (height * width for height, width in self.schedule)
        pruned = (min(row) < size for row, size in zip(self.counts, sizes, strict=True))
        return next((scale for scale, some in enumerate(pruned) if some), len(self.schedule))


class BatchHistory:
    """Collects the plans of a batch's scales, all on the host but the maps of which tokens ran."""

    def __init__(self, schedule: ScaleSchedule, *, guided: bool) -> None:
        """Start with none.

        Args:
            schedule: token map sizes.
            guided: whether there is an unconditional branch.
        """
        self._schedule, self._guided = schedule, guided
        self._plans: list[ScalePlan] = []
        self.layers_run: list[Tensor | None] = []
        """For each scale [P, N] int64, the layers that each token of the prompts that ran has run, where counted."""

    def add(self, plan: ScalePlan, layers_run: Tensor | None) -> None:
        """Add a scale."""
        self._plans.append(plan)
        self.layers_run.append(layers_run)

    def work(self, prompt: int) -> PromptWork:
        """What a prompt ran."""
        counts, branches, head_counts = [], [], []
        for plan in self._plans:
            counts.append(tuple(plan.counts(layer)[prompt] for layer in range(len(plan.layers))))
            both = self._guided and not plan.conditional_only[prompt]
            branches.append(0 if plan.skipped[prompt] else 2 if both else 1)
            head_counts.append(plan.head_counts[prompt])
        return PromptWork(
            self._schedule, tuple(counts), tuple(branches), 2 if self._guided else 1, tuple(head_counts)
        )

    def pruning_maps(self) -> Tensor:
        """[B, tokens of all scales] uint8: how many layers each token ran (255: as many or more).

        They are on the device, and nothing waits for them.
        """
        num_prompts = len(self._plans[0].skipped)
        maps: list[list[Tensor]] = [[] for _ in range(num_prompts)]
        device = next(
            (counted.device for counted in self.layers_run if counted is not None), torch.device("cpu")
        )
        for plan, counted in zip(self._plans, self.layers_run, strict=True):
            rows = {prompt: place for place, prompt in enumerate(plan.prompts)}
            for prompt in range(num_prompts):
                if counted is None or prompt not in rows:
                    maps[prompt].append(torch.zeros(plan.num_tokens, dtype=torch.uint8, device=device))
                else:
                    maps[prompt].append(counted[rows[prompt]].clamp_max(255).to(torch.uint8))
        return torch.stack([torch.cat(scales) for scales in maps])


def count_layers(packed: PackedScale, layer_tokens: list[LayerTokens | None]) -> Tensor:
    """[P, N] int64: how many layers each token of the conditional branches ran."""
    num_tokens, num_prompts = packed.plan.num_tokens, len(packed.prompts)
    run = torch.zeros(num_prompts * num_tokens, dtype=torch.int64, device=packed.device)
    for tokens in layer_tokens:
        if tokens is None:
            continue
        if tokens.positions is None:
            run += 1
        else:
            of_cond = tokens.positions[: sum(tokens.counts)]  # the conditional rows come first
            run[of_cond] += 1  # no position twice
    return run.view(num_prompts, num_tokens)
