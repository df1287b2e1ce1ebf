"""Host side of the group norm's kernels: checks, chunks and launches."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .triton_kernel import combination_kernel, normalisation_kernel, statistics_kernel

_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 4096  # values of a tile: 32 per thread
_BUILD = {"num_warps": 4, "enable_fp_fusion": True}
# Enough chunks for every multiprocessor to hold several; few enough to be joined in no time.
_MAX_CHUNKS = 2048
_MIN_STEPS = 2
# The second pass has nothing to join, and short programs end together.
_MAX_NORMALISATION_STEPS = 4
_CHUNKS_AT_ONCE = 1024


@dataclass(frozen=True)
class Chunks:
    """How the pixels of one image are dealt out; decided by its size alone, never by its batch.

    Attributes:
        block: pixels of a tile.
        steps: tiles of a chunk.
        count: chunks of the image.
    """

    block: int
    steps: int
    count: int

    @classmethod
    def of(cls, width: int, num_pixels: int) -> "Chunks":
        """Of an image of `num_pixels`, with tiles `width` channels wide."""
        block = max(1, _TILE // width)
        tiles = -(-num_pixels // block)
        steps = max(_MIN_STEPS, -(-tiles // _MAX_CHUNKS))
        return cls(block, steps, -(-tiles // steps))


def obstacle(x: Tensor, num_groups: int) -> str | None:
    """Why the kernels cannot take these maps, or None where they can.

    Args:
        x: [B, C, H, W].
        num_groups: of neighbouring channels.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"maps of shape {tuple(x.shape)} with strides {x.stride()} are not channels-last"
    if x.dtype not in _DTYPES:
        return f"maps of {x.dtype} are not float32, bfloat16 or float16"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the kernels give no gradient"
    if num_groups & (num_groups - 1):
        return f"{num_groups} groups are not a power of two"
    if x.shape[1] % num_groups:
        return f"{num_groups} groups do not divide {x.shape[1]} channels"
    return None


def residual_add(hidden: Tensor, bias: Tensor, shortcut: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The sum of `hidden`, `bias` and `shortcut`, rounded once, and what a group norm of it needs to know.

    Args:
        hidden: [B, C, H, W] channels-last; float32, bfloat16 or float16.
        bias: [C] in any floating dtype.
        shortcut: as `hidden`.
        num_groups: of that norm; a power of two that divides C.

    Returns:
        The sum, as `hidden`; the statistics, for `group_norm_swish`.

    Raises:
        ValueError: tensors that the kernels cannot take; says which.
    """
    maps = _Maps(hidden, num_groups)
    _check_vectors(hidden.shape[1], bias=bias)
    if shortcut.shape != hidden.shape or shortcut.dtype != hidden.dtype:
        raise ValueError(
            f"the shortcut must be {tuple(hidden.shape)} in {hidden.dtype}, "
            f"not {tuple(shortcut.shape)} in {shortcut.dtype}"
        )
    _raise(obstacle(shortcut, num_groups))
    total = torch.empty_like(hidden, memory_format=torch.channels_last)
    return total, maps.statistics(bias, shortcut, total)


def group_norm_swish(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    *,
    swish: bool = True,
    input_bias: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """The naive form's operation, computed in float32 and rounded once.

    Args:
        x: [B, C, H, W] channels-last; float32, bfloat16 or float16.
        weight: [C] in any floating dtype, as are the other vectors.
        bias: [C].
        num_groups: a power of two that divides C.
        eps: added to the variance.
        swish: whether y sigmoid(y) follows.
        input_bias: [C], added to `x` first.
        statistics: of `x`, where `residual_add` made it; then there is no `input_bias`.

    Returns:
        [B, C, H, W] channels-last in the dtype of `x`, without a gradient. An image's bits do not depend on its batch.

    Raises:
        ValueError: tensors that the kernels cannot take; says which.
    """
    maps = _Maps(x, num_groups)
    _check_vectors(x.shape[1], weight=weight, bias=bias, input_bias=input_bias)
    if statistics is None:
        statistics = maps.statistics(input_bias)
    elif input_bias is not None or statistics.shape != maps.statistics_shape:
        raise ValueError("the statistics are not those of these maps")
    return maps.normalise(statistics, weight, bias, input_bias, eps, swish=swish)


class _Maps:
    """Maps of one shape, and the launches over them."""

    def __init__(self, x: Tensor, num_groups: int) -> None:
        _raise(obstacle(x, num_groups))
        self.x = x
        self.batch, self.channels, height, width = x.shape
        self.num_pixels, self.num_groups = height * width, num_groups
        per_group = self.channels // num_groups
        padded = 1 << (per_group - 1).bit_length()
        self.chunks = Chunks.of(num_groups * padded, self.num_pixels)
        self.sizes = {"GROUPS": num_groups, "PER_GROUP": per_group, "PADDED": padded}

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Mean, drift and squares of each chunk."""
        return self.batch, 3, self.num_groups, self.chunks.count

    def statistics(
        self, added: Tensor | None, shortcut: Tensor | None = None, total: Tensor | None = None
    ) -> Tensor:
        """The first pass: of x, of x + added, or of x + added + shortcut, which is written to `total`."""
        x, chunks = self.x, self.chunks
        partials = x.new_empty(self.statistics_shape, dtype=torch.float32)
        if x.numel():
            statistics_kernel[chunks.count, self.batch](
                x, *(x if each is None else each for each in (added, shortcut, total)), partials,  # absent: not read
                self.num_pixels, chunks.count, chunks.steps,
                **self.sizes, BLOCK=chunks.block,
                INPUT_BIAS=added is not None and shortcut is None, RESIDUAL=shortcut is not None,
                INTERPRETED=not x.is_cuda, **_BUILD,
            )  # fmt: skip
        return partials

    def normalise(
        self,
        partials: Tensor,
        weight: Tensor,
        bias: Tensor,
        input_bias: Tensor | None,
        eps: float,
        *,
        swish: bool,
    ) -> Tensor:
        """Join the chunks, then the second pass."""
        x, chunks = self.x, self.chunks
        out = torch.empty_like(x, memory_format=torch.channels_last)
        if not x.numel():
            return out
        affine = x.new_empty((self.batch, 4, self.channels), dtype=torch.float32)
        joined = 1 if x.is_cuda else self.num_groups  # the interpreter takes as long for one group as for all
        combination_kernel[self.num_groups // joined, self.batch](
            partials, weight if input_bias is None else input_bias, weight, affine,
            self.num_pixels, chunks.count, chunks.steps * chunks.block, eps,
            **self.sizes, JOINED=joined, BLOCK=_CHUNKS_AT_ONCE, INPUT_BIAS=input_bias is not None, **_BUILD,
        )  # fmt: skip
        steps = min(chunks.steps, _MAX_NORMALISATION_STEPS)
        normalisation_kernel[-(-self.num_pixels // (chunks.block * steps)), self.batch](
            x, affine, bias, out, self.num_pixels, steps,
            **self.sizes, BLOCK=chunks.block, SWISH=swish, INTERPRETED=not x.is_cuda, **_BUILD,
        )  # fmt: skip
        return out


def _check_vectors(channels: int, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and (vector.shape != (channels,) or not vector.is_contiguous()):
            raise ValueError(f"{name} must be a contiguous [{channels}], not {list(vector.shape)}")


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise ValueError(f"the kernel cannot run: {problem}")
