"""From a plan to packed tokens: which rows of the batch a scale's hidden state holds, and what each layer takes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_device
from toprovar_batch.kernels.layout import TokenLayout

from .plan import ScalePlan, TokenSet
from .statistics import keep_lowest


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """What a layer runs.

    Attributes:
        layout: over `num_layout_rows` of the scale; rows that run nothing have length 0.
        positions: [T] int64, where the tokens are in the hidden state; None: all of it.
        counts: tokens of each prompt.
    """

    layout: TokenLayout
    positions: Tensor | None
    counts: tuple[int, ...]


class PackedScale:
    """The rows of a batch that run in a scale, and the tokens of each layer.

    The hidden state is [A * N, C]: all tokens of A rows, the conditional rows of the prompts that run first, then the
    unconditional ones. A batch has R rows: B conditional ones, then, where it is guided, B unconditional ones.

    Attributes:
        plan: what runs.
        prompts: P prompts that run.
        unconditional: those whose unconditional branch runs, too.
        rows: the A rows of the batch.
        num_layout_rows: rows of every layout. Where the rows that run are the batch's first, as when guidance is left out,
            there are A, so that what is held by row is viewed and rows that are alike stay so; else all R.
    """

    def __init__(self, plan: ScalePlan, num_rows: int, device: torch.device) -> None:
        """Find the rows of a plan.

        Args:
            plan: of B prompts, of whom at least one runs.
            num_rows: R, B or 2B.
            device: of the hidden state.
        """
        self.plan, self.device = plan, device
        num_prompts = len(plan.skipped)
        self.prompts = plan.prompts
        guided = num_rows > num_prompts
        self.unconditional = tuple(
            prompt for prompt in self.prompts if guided and not plan.conditional_only[prompt]
        )
        self._copied: dict[tuple[int, ...], Tensor] = {}
        self.rows = (*self.prompts, *(num_prompts + prompt for prompt in self.unconditional))
        self.num_layout_rows = len(self.rows) if self.are_first_rows else num_rows

    @property
    def are_first_rows(self) -> bool:
        """Whether the rows that run are the batch's first A, in particular all of them."""
        return self.rows == tuple(range(len(self.rows)))

    def of_rows(self, per_row: Tensor) -> Tensor:
        """[R, ...] of the batch's rows to [A, ...] of those that run; a view where they are the first."""
        return per_row[: len(self.rows)] if self.are_first_rows else per_row[self.row_index]

    @property
    def row_prompts(self) -> tuple[int, ...]:
        """The prompt of each row."""
        return (*self.prompts, *self.unconditional)

    @property
    def guided_places(self) -> tuple[int, ...]:
        """Where the prompts with an unconditional branch are among those that run."""
        return tuple(self.prompts.index(prompt) for prompt in self.unconditional)

    @property
    def row_index(self) -> Tensor:
        """[A] int64: the rows on the device."""
        return self.on_device(self.rows)

    @property
    def prompt_index(self) -> Tensor:
        """[P] int64: the prompts on the device."""
        return self.on_device(self.prompts)

    @cached_property
    def whole(self) -> LayerTokens:
        """All tokens of all rows that run."""
        num_tokens = self.plan.num_tokens
        counts = tuple(0 if skipped else num_tokens for skipped in self.plan.skipped)
        if self.are_first_rows:
            return LayerTokens(TokenLayout.dense(len(self.rows), num_tokens, self.device), None, counts)
        token_indices = torch.arange(num_tokens, device=self.device).repeat(len(self.rows))
        row_ids = self.row_index.repeat_interleave(num_tokens, output_size=len(token_indices))
        running = set(self.rows)
        lengths = tuple(num_tokens if row in running else 0 for row in range(self.num_layout_rows))
        return LayerTokens(TokenLayout(lengths, self.device, token_indices, row_ids), None, counts)

    def chooses_by_state(self, layer: int) -> bool:
        """Whether a layer's tokens depend on its input."""
        tokens = self.plan.layers[layer]
        return tokens is not None and tokens.score is not None

    def layer_tokens(self, layer: int, x: Tensor | None = None) -> LayerTokens | None:
        """What a layer runs; None: nothing.

        Args:
            layer: counted from 0.
            x: [A * N, C] its input, where it `chooses_by_state`.
        """
        tokens = self.plan.layers[layer]
        if tokens is None:
            return self.whole
        counts = self.plan.counts(layer)
        if not any(counts):
            return None
        if all(counts[prompt] == self.plan.num_tokens for prompt in self.prompts):
            return self.whole
        if tokens.score is None:
            return self._from_masks[tokens]
        assert x is not None
        states = x.unflatten(0, (len(self.rows), -1))[: len(self.prompts)]
        wanted = self.on_device(tuple(counts[prompt] for prompt in self.prompts))
        mask = keep_lowest(-tokens.score(states), wanted)  # [P, N]
        # Both branches of a prompt run its tokens.
        places = (*range(len(self.prompts)), *self.guided_places)
        return self._pack([counts], mask[self.on_device(places)][None])[0]

    def on_device(self, values: tuple[int, ...]) -> Tensor:
        """A short list of the host on the device, copied once per scale."""
        if values not in self._copied:
            self._copied[values] = to_device(values, self.device)
        return self._copied[values]

    @cached_property
    def _from_masks(self) -> dict[TokenSet, LayerTokens]:
        """Every token set of the plan that a mask decides, packed in one go."""
        sets = {
            tokens: layer
            for layer, tokens in reversed(list(enumerate(self.plan.layers)))
            if tokens is not None and tokens.mask is not None
        }
        masks = torch.stack([tokens.mask for tokens in sets if tokens.mask is not None])  # [M, B, N]
        packed = self._pack(
            [self.plan.counts(layer) for layer in sets.values()], masks[:, self.on_device(self.row_prompts)]
        )
        return dict(zip(sets, packed, strict=True))

    def _pack(self, counts: Sequence[tuple[int, ...]], masks: Tensor) -> list[LayerTokens]:
        """Index tensors of M token sets: masks [M, A, N] and the counts of each prompt, which say how many are true."""
        num_tokens = self.plan.num_tokens
        num_prompts = len(self.plan.skipped)
        row_lengths = [
            tuple(
                layer_counts[row % num_prompts] if row in self._running else 0
                for row in range(self.num_layout_rows)
            )
            for layer_counts in counts
        ]
        sizes = [sum(lengths) for lengths in row_lengths]
        positions = _true_positions(masks.flatten(1), sum(sizes))
        row_ids = self.row_index[positions // num_tokens]
        token_indices = positions % num_tokens
        return [
            LayerTokens(TokenLayout(lengths, self.device, tokens, rows), places, layer_counts)
            for lengths, tokens, rows, places, layer_counts in zip(
                row_lengths,
                token_indices.split(sizes),
                row_ids.split(sizes),
                positions.split(sizes),
                counts,
                strict=True,
            )
        ]

    @cached_property
    def _running(self) -> frozenset[int]:
        return frozenset(self.rows)


def _true_positions(masks: Tensor, count: int) -> Tensor:
    """Columns of the `count` true values of [M, A * N] masks, row after row; waits for nothing, as nonzero would."""
    flat = masks.flatten()
    columns = torch.arange(masks.shape[1], device=masks.device).expand_as(masks).flatten()
    # Every false value goes to one place past the end.
    targets = torch.where(flat, flat.cumsum(0) - 1, count)
    return columns.new_zeros(count + 1).scatter_(0, targets, columns)[:count]
