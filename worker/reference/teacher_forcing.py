"""What stage 2 feeds the transformer and asks of it: all scales of a picture in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, scaled_dot_product_attention

from toprovar_batch.kernels.flash_attention import KeyLengths, TokenLayout
from toprovar_batch.worker.infinity.bsq import ResidualSum, code_maps_to_tokens
from toprovar_batch.worker.infinity.rope import rope_2d
from toprovar_batch.worker.infinity.schedule import ScaleSchedule, scale_schedule
from toprovar_batch.worker.infinity.transformer import Infinity, TextContext


class TeacherForcing:
    """Self-attention over all scales at once: a token sees its own scale and the earlier ones."""

    def __init__(self, schedule: ScaleSchedule) -> None:
        self._bounds = list(pairwise((0, *accumulate(h * w for h, w in schedule))))

    def attend(
        self, _layer: int, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SelfAttentionMemory`; every row holds all tokens of all scales, and no entropy is measured."""
        assert not with_entropy
        q, k, v = (layout.by_row(x).transpose(1, 2) for x in (q, k, v))  # [R, H, L, D]
        scales = [
            scaled_dot_product_attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], scale=1.0)
            for start, stop in self._bounds
        ]
        return torch.cat(scales, dim=2).transpose(1, 2).flatten(0, 1), None


@dataclass(frozen=True)
class TrainingTokens:
    """What teacher forcing feeds and asks for.

    Attributes:
        inputs: for each scale after the first, [B, L, D] float32: the resized sum of (partly flipped) codes.
        targets: [B, total L, D] bool: the bits that correct what the flips did.
    """

    inputs: list[Tensor]
    targets: Tensor


def corrupt(
    features: Tensor, schedule: ScaleSchedule, max_flip: float, scales: int | None = None
) -> TrainingTokens:
    """Quantise features with random flips whose errors the later scales must correct (Infinity, sec. 3.3).

    Args:
        features: [B, z, H, W] of the VAE's encoder.
        schedule: token map sizes.
        max_flip: largest flip probability of a sample.
        scales: only so many, the coarsest; they do not depend on the others.
    """
    total = ResidualSum(schedule, features.shape[0], features.shape[1], False, features.device)
    flip = torch.rand(features.shape[0], 1, 1, 1, device=features.device) * max_flip
    inputs, targets = [], []
    for scale_index, size in enumerate(schedule[:scales]):
        if scale_index:
            inputs.append(total.tokens(scale_index))
        bits = interpolate(features - total.summed_codes, size, mode="area") > 0
        targets.append(code_maps_to_tokens(bits, False))
        total.add(scale_index, bits ^ (torch.rand(bits.shape, device=bits.device) < flip))
    return TrainingTokens(inputs, torch.cat(targets, dim=1))


def all_rotations(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> Tensor:
    """[total L, D / 2] complex64: the rotations of all scales, one after the other."""
    largest = scale_schedule(1.0, "1M")[-1]
    return torch.cat([rope_2d(size, largest, head_dim, device) for size in schedule])


class PaddedKeys(KeyLengths):
    """Text lengths as a mask alone: compiled code that knew the numbers would be compiled anew for every batch."""

    def __init__(self, seen: Tensor) -> None:
        """Take [R, N] bool, True where a key is seen."""
        super().__init__((seen.shape[1],) * seen.shape[0], seen.device)
        self.__dict__["mask"] = seen[:, None, None, :]


def teacher_forced_logits(
    model: Infinity, text: TextContext, inputs: Sequence[Tensor], schedule: ScaleSchedule, rotations: Tensor
) -> Tensor:
    """[B * total L, 2D] logits of all scales in one pass."""
    parts = [model.embed_first(text)[:, None]]
    parts += [model.embed(tokens, scale_index) for scale_index, tokens in enumerate(inputs, start=1)]
    x = torch.cat(parts, dim=1)  # [B, total L, C]
    layout = TokenLayout.dense(x.shape[0], x.shape[1], x.device)
    x = x.flatten(0, 1)
    memory = TeacherForcing(schedule)
    for block, context in zip(model.blocks, text.blocks, strict=True):
        # One number for all layers, which this memory ignores: the blocks then share one compiled form.
        x, _ = block(x, context, text.text_lengths, layout, rotations, memory, 0, with_entropy=False)
    return model.logits(x, text.cond, layout)


def scale_weights(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    """[total L] weights of the tokens with mean 1: a scale of n tokens counts as much as sqrt(n).

    The few tokens of the coarse scales decide what is in the picture; equal weights would let the finest scale,
    two fifths of all tokens, drown them.
    """
    weights = torch.cat([torch.full((h * w,), (h * w) ** -0.5) for h, w in schedule])
    return (weights / weights.mean()).to(device)


def bit_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the bits, and which bits are right.

    Args:
        logits: [B * L, 2D].
        targets: [B, L, D] bool.
        weights: [L].

    Returns:
        The loss, and [L] the fraction of right bits of every token.
    """
    zero, one = logits.float().unflatten(-1, (-1, 2)).unbind(-1)
    margin = (one - zero).view(targets.shape)
    losses = binary_cross_entropy_with_logits(margin, targets.float(), reduction="none").mean(dim=(0, 2))
    right = ((margin > 0) == targets).float().mean(dim=(0, 2))
    return (losses * weights).mean(), right.detach()
