"""Which tokens of a scale the head takes: those whose codes may count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout

from .pruning.packing import LayerTokens, PackedScale


@dataclass(frozen=True)
class HeadTokens:
    """T tokens of the P prompts that run in a scale, conditional ones first.

    Attributes:
        positions: [T] int64, where they are in the hidden state; None: its first T.
        layout: their rows, as `rows` numbers them.
        rows: [n] int64, the batch's row of each row of `layout`; None: the batch's own first rows.
        by_prompt: the same tokens in P rows, or in 2P where both branches of a prompt are here. A prompt without an
            unconditional branch has an empty second row.
    """

    positions: Tensor | None
    layout: TokenLayout
    rows: Tensor | None
    by_prompt: TokenLayout

    def of_states(self, x: Tensor) -> Tensor:
        """[A * N, C] hidden states to the [T, C] of these tokens."""
        return x[: self.layout.num_tokens] if self.positions is None else x[self.positions]

    def of_rows(self, per_row: Tensor) -> Tensor:
        """[R, C] of the batch's rows to those of `layout`."""
        return per_row[: self.layout.num_rows] if self.rows is None else per_row[self.rows]


def head_tokens(packed: PackedScale, ran: Sequence[LayerTokens | None], *, both_branches: bool) -> HeadTokens:
    """The tokens of a scale that the head takes.

    Args:
        packed: rows of the scale.
        ran: what each layer ran.
        both_branches: whether the unconditional logits are needed, too.
    """
    layer = packed.plan.head_layer
    tokens = packed.whole if layer is None else ran[layer]
    twins = packed.unconditional if both_branches else ()
    if tokens is None:
        return _no_tokens(packed)
    if tokens.positions is None:
        return _whole_maps(packed, twins)
    lengths, indices = tokens.layout.row_lengths, tokens.layout.token_indices
    assert indices is not None
    num_prompts = len(packed.plan.skipped)
    own = tuple(tokens.counts[prompt] for prompt in packed.prompts)
    second = tuple(tokens.counts[prompt] if prompt in twins else 0 for prompt in packed.prompts)
    count = sum(own) + sum(second)
    rows = lengths if twins else lengths[:num_prompts]
    return HeadTokens(
        tokens.positions[:count],
        TokenLayout(rows, packed.device, indices[:count], tokens.layout.row_ids[:count]),
        None,
        TokenLayout((*own, *second) if twins else own, packed.device, indices[:count]),
    )


def _whole_maps(packed: PackedScale, twins: tuple[int, ...]) -> HeadTokens:
    length, count = packed.plan.num_tokens, len(packed.prompts) + len(twins)
    second = tuple(length if prompt in twins else 0 for prompt in packed.prompts) if twins else ()
    return HeadTokens(
        None,
        TokenLayout.dense(count, length, packed.device),
        None if packed.are_first_rows else packed.row_index[:count],
        TokenLayout((length,) * len(packed.prompts) + second, packed.device),
    )


def _no_tokens(packed: PackedScale) -> HeadTokens:
    none = torch.empty(0, dtype=torch.int64, device=packed.device)
    layout = TokenLayout((0,) * len(packed.prompts), packed.device, none)
    return HeadTokens(none, layout, packed.prompt_index, layout)
