"""Classifier-free guidance: the rows of its two branches, and how they become one.

The rows of a batch are its prompts' conditional ones, then, where it is guided, as many unconditional ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .infinity.transformer import Infinity
from .pruning.packing import PackedScale


def text_rows(
    model: Infinity, prompts: Sequence[Tensor], negatives: Sequence[Tensor | None], *, guided: bool
) -> list[Tensor]:
    """Features of every row of a batch: the prompts, then (where guided) what stands in for them.

    Args:
        model: holds the learned unconditional features.
        prompts: [n, Ct5] a prompt.
        negatives: features of negative prompts; None takes the learned ones at the prompt's length.
        guided: whether there is a second half.
    """
    rows = list(prompts)
    if guided:
        rows += [
            model.unconditional_features(len(prompt)) if negative is None else negative
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    return rows


def guide_states(x: Tensor, packed: PackedScale, cfg: float) -> Tensor:
    """Guide a hidden state [A * N, C]; both branches go on with the result."""
    states = x.unflatten(0, (len(packed.rows), -1))
    guided = guide_rows(states, packed, cfg)
    if len(packed.unconditional) == len(packed.prompts):
        return guided.repeat(2, 1, 1).flatten(0, 1)
    return torch.cat((guided, guided[packed.on_device(packed.guided_places)])).flatten(0, 1)


def guide_rows(rows: Tensor, packed: PackedScale, cfg: float) -> Tensor:
    """Cfg * cond + (1 - cfg) * uncond of [A, L, ...] rows; a conditional row without its twin stays as it is.

    Returns:
        [P, L, ...].
    """
    num_prompts = len(packed.prompts)
    cond, uncond = rows[:num_prompts], rows[num_prompts:]
    if len(packed.unconditional) == num_prompts:
        return cfg * cond + (1 - cfg) * uncond
    if not packed.unconditional:
        return cond
    places = packed.on_device(packed.guided_places)
    return cond.index_copy(0, places, cfg * cond[places] + (1 - cfg) * uncond)
