"""What runs in a scale: one plan for all layers and prompts, decided before the scale.

Both guidance branches of a prompt share its plan. How many tokens run where is known on the host; which ones, on the
device only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_device

from .statistics import keep_lowest


@dataclass(frozen=True, eq=False)
class TokenSet:
    """The tokens that each prompt runs in a layer; layers that share the object share its index tensors.

    Attributes:
        counts: tokens of each prompt, on the host.
        mask: [B, N] bool with as many true values; None where the hidden state decides, or no token runs.
        score: from the conditional branches' hidden states at the layer's input, [P, N, C] of the P prompts that
            run, to [P, N]: the highest are kept. None where `mask` decides.
    """

    counts: tuple[int, ...]
    mask: Tensor | None = None
    score: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class ScalePlan:
    """One scale of a batch.

    Attributes:
        num_tokens: N, of the whole token map.
        layers: what each layer runs; None: all tokens of every prompt that runs.
        skipped: for each prompt, whether the whole scale is: it adds no codes, the sum is resized on.
        conditional_only: for each prompt, whether the conditional branch stands in for the unconditional one.
        restore: a token that does not run in a layer gets the layer's change of an earlier whole scale, area-resized,
            instead of passing unchanged.
        code_layers: a token that ran in fewer layers adds no codes.
        entropy_of: prompts whose attention entropy is observed, in every layer; they run all tokens everywhere.
        changes_of: prompts whose layers' changes are kept for later restoration; they run all tokens everywhere.
        observe_logits: whether the policy wants to see the scale's logits.
        observe_codes: whether it wants to see the sum of codes after the scale.
    """

    num_tokens: int
    layers: tuple[TokenSet | None, ...]
    skipped: tuple[bool, ...]
    conditional_only: tuple[bool, ...]
    restore: bool = False
    code_layers: int = 0
    entropy_of: tuple[int, ...] = ()
    changes_of: tuple[int, ...] = ()
    observe_logits: bool = False
    observe_codes: bool = False

    @classmethod
    def dense(cls, num_tokens: int, depth: int, num_prompts: int) -> "ScalePlan":
        """Every token of every prompt runs in every layer."""
        no = (False,) * num_prompts
        return cls(num_tokens, (None,) * depth, no, no)

    @property
    def prompts(self) -> tuple[int, ...]:
        """Prompts that run at all."""
        return tuple(prompt for prompt, skipped in enumerate(self.skipped) if not skipped)

    @property
    def head_layer(self) -> int | None:
        """The layer of fewest tokens where all must run it for their codes to count; None: the head takes every token."""
        depth = len(self.layers)
        if self.observe_logits or self.code_layers < depth:
            return None
        return min(range(depth), key=lambda layer: sum(self.counts(layer)))

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Tokens of each prompt that the head takes."""
        layer = self.head_layer
        if layer is None:
            return tuple(0 if skipped else self.num_tokens for skipped in self.skipped)
        return self.counts(layer)

    def counts(self, layer: int) -> tuple[int, ...]:
        """Tokens that each prompt runs in a layer."""
        tokens = self.layers[layer]
        whole = tokens.counts if tokens else (self.num_tokens,) * len(self.skipped)
        return tuple(0 if skipped else count for count, skipped in zip(whole, self.skipped, strict=True))


def token_sets(
    counts: Sequence[Sequence[int]], keys: Tensor | None, num_tokens: int, device: torch.device
) -> tuple[TokenSet | None, ...]:
    """Turn counts into token sets: of each layer and prompt the tokens of lowest key run.

    Layers with the same tokens share one set, so that its index tensors are built once.

    Args:
        counts: [L][B] tokens.
        keys: [L, B, N], or [1, B, N] for all layers; None where every count is 0 or N.
        num_tokens: N.
        device: of the masks.

    Returns:
        For each layer its set, None where all prompts run all tokens.
    """
    patterns: dict[tuple[tuple[int, ...], int], int] = {}  # (counts, row of keys) -> position
    pattern_of: list[int | None] = []
    for layer, row in enumerate(tuple(layer_counts) for layer_counts in counts):
        if all(count == num_tokens for count in row):
            pattern_of.append(None)
            continue
        partial = any(count not in {0, num_tokens} for count in row)
        key_row = layer if partial and keys is not None and keys.shape[0] > 1 else 0
        pattern_of.append(patterns.setdefault((row, key_row), len(patterns)))
    if not patterns:
        return (None,) * len(pattern_of)
    shape = (len(patterns), len(counts[0]))
    wanted = to_device([count for row, _ in patterns for count in row], device).view(shape)
    if keys is None:
        masks = (wanted > 0)[..., None].expand(*shape, num_tokens)
    else:
        masks = keep_lowest(keys[to_device([key_row for _, key_row in patterns], device)], wanted)
    sets = [TokenSet(row, mask) for (row, _), mask in zip(patterns, masks.unbind(0), strict=True)]
    return tuple(None if position is None else sets[position] for position in pattern_of)
