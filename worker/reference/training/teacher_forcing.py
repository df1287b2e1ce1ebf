"""What stage 2 feeds the transformer and asks of it: all scales of a picture in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, scaled_dot_product_attention

from toprovar_batch.kernels.layout import KeyLengths, PackedRows, TokenLayout
from toprovar_batch.kernels.ops import Backend, qk_norm_rope
from toprovar_batch.worker.infinity.bsq import ResidualSum, code_maps_to_tokens
from toprovar_batch.worker.infinity.rope import rope_2d
from toprovar_batch.worker.infinity.schedule import ScaleSchedule, largest_map
from toprovar_batch.worker.infinity.text_context import TextContext
from toprovar_batch.worker.infinity.transformer import Infinity


class TeacherForcing:
    """Self-attention over all scales at once: a token sees its own scale and the earlier ones."""

    backend = Backend("torch", "training needs gradients")

    def __init__(self, schedule: ScaleSchedule) -> None:
        self._bounds = list(pairwise((0, *accumulate(h * w for h, w in schedule))))

    def attend(
        self,
        _layer: int,
        qkv: Tensor,
        q_scale: Tensor,
        rotation: Tensor,
        layout: PackedRows,
        *,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """See `SelfAttentionMemory`; every row holds all tokens of all scales, and no entropy is measured."""
        assert isinstance(layout, TokenLayout)
        assert not entropy_rows
        q, k = qk_norm_rope(qkv, q_scale, rotation, layout)
        q, k, v = (layout.by_row(x).transpose(1, 2) for x in (q, k, qkv[:, 2]))  # [R, H, L, D]
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
    largest = largest_map(1.0)
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
        x, _ = block(x, context, text.text_lengths, layout, rotations, memory, 0, entropy_rows=())
    return model.logits(x, text.head_modulation, layout, memory.backend)


def scale_weights(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    """[total L] weights of the tokens with mean 1: a scale of n tokens counts as much as sqrt(n).

    The few tokens of the coarse scales decide what is in the picture. Equal weights would let the finest scale,
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


class TransformerLoss(nn.Module):
    """From the captions' features to the loss of all scales: tensors of fixed shapes in, tensors out."""

    def __init__(self, transformer: Infinity, schedule: ScaleSchedule, device: torch.device) -> None:
        """Take the transformer and the scales to train."""
        super().__init__()
        self.transformer = transformer
        self._schedule, self._device = schedule, device
        self._rotations = all_rotations(schedule, transformer.sizes.head_dim, device)
        self._weights = scale_weights(schedule, device)

    def compile_parts(self) -> None:
        """Compile the blocks, which share one compiled form."""
        for block in self.transformer.blocks:
            block.compile(dynamic=False)

    def forward(
        self, features: Tensor, seen: Tensor, dropped: Tensor, targets: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and which bits are right; in bfloat16 on a GPU.

        Args:
            features: [B, N, Ct5] float32 of the captions.
            seen: [B, N] bool, False for padding.
            dropped: [B] bool, True where the unconditional features replace the caption.
            targets: [B, total L, D] bool.
            inputs: see `TrainingTokens`.

        Returns:
            The loss, and [total L] the fraction of right bits of every token.
        """
        unconditional = self.transformer.unconditional_features(features.shape[1])
        features = torch.where(dropped[:, None, None], unconditional, features)
        kind = self._device.type
        # Without the cache of cast weights: a CUDA graph would keep what it held while being recorded.
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            text = self.transformer.encode_padded(features, PaddedKeys(seen))
            logits = teacher_forced_logits(self.transformer, text, inputs, self._schedule, self._rotations)
        return bit_loss(logits, targets, self._weights)


def capture(loss: TransformerLoss, arguments: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same as two CUDA graphs, forward and backward, for tensors shaped as these."""
    samples = tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in arguments)
    torch.cuda.make_graphed_callables(loss, samples, allow_unused_input=True)  # changes `loss` itself
    return loss
