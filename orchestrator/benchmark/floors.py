"""The least time that a batch's phases can take on a GPU, from its work and two ceilings that are measured here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.flops import decoder_flops, transformer_flops
from toprovar_batch.worker.infinity.schedule import ScaleSchedule
from toprovar_batch.worker.resolved import ResolvedSpec

_MATMUL_SIZE = 8192  # rows, columns and depth of the product that is timed
_COPY_BYTES = 1 << 30
_CALLS = 10  # timed, after as many that are not
_STEADY_S = 2.0  # how long a card works until its power limit has its say; as long again is timed


@dataclass(frozen=True)
class Ceilings:
    """What a GPU was measured to do at best.

    Attributes:
        matmul_flops: operations a second of a large matrix product in the compute dtype.
        steady_flops: the same where such products follow each other for seconds. A card at its power limit slows down.
        copy_bytes: bytes a second that a large copy on the device reads and writes, both counted.
    """

    matmul_flops: float
    steady_flops: float
    copy_bytes: float


@dataclass(frozen=True)
class ImageWork:
    """What one image ran, as its statistics tell it.

    Attributes:
        keep_ratio: for each scale the fraction of the token-layers that ran, over both branches.
        flops: operations of the transformer and the decoder together.
    """

    keep_ratio: Sequence[float]
    flops: float


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights that a scale reads.

    Attributes:
        blocks: of all blocks.
        ends: of the word embedding and the head.
    """

    blocks: int
    ends: int


@dataclass(frozen=True)
class Floors:
    """Milliseconds of a batch that no implementation with the measured ceilings can undercut.

    Attributes:
        transformer: the sum over the scales.
        decode: the decoder's convolutions.
        scales: of each scale.
    """

    transformer: float
    decode: float
    scales: list[float]


def batch_floors(
    spec: ResolvedSpec, images: Sequence[ImageWork], weights: WeightBytes, ceilings: Ceilings
) -> Floors:
    """The floors of a batch whose images run together.

    A scale takes its operations at the matrix ceiling, and no less than it takes to read its weights once.

    Args:
        spec: sizes, schedule and guidance.
        images: of the batch.
        weights: that a scale reads.
        ceilings: of the GPU.
    """
    schedule = spec.schedule_of(spec.image.h_div_w)
    of_images = [scale_flops(spec, schedule, image) for image in images]
    scales = []
    for scale, flops in enumerate(zip(*of_images, strict=True)):
        kept = max(image.keep_ratio[scale] for image in images)
        read = _weights_read(weights, kept, spec.model.transformer.depth)
        scales.append(1e3 * max(sum(flops) / ceilings.matmul_flops, read / ceilings.copy_bytes))
    decoding = len(images) * decoder_flops(spec.model.vae, schedule)
    return Floors(sum(scales), 1e3 * decoding / ceilings.matmul_flops, scales)


def scale_flops(spec: ResolvedSpec, schedule: ScaleSchedule, image: ImageWork) -> list[float]:
    """The transformer's operations in each scale of one image.

    Their sum is exact. A pruned image's share of each scale takes its token-layers as even over layers and branches,
    since the statistics give no more; this moves only attention between scales.

    Args:
        spec: sizes and guidance.
        schedule: token map sizes.
        image: what ran.
    """
    total = image.flops - decoder_flops(spec.model.vae, schedule)
    even = _even_flops(spec.model.transformer, schedule, image.keep_ratio, guided=spec.settings.guided)
    return [total * share / sum(even) for share in even]


def _even_flops(
    sizes: TransformerArchitecture, schedule: ScaleSchedule, keep_ratio: Sequence[float], *, guided: bool
) -> list[float]:
    """Operations of each scale if every layer and branch ran the same number of tokens."""
    tokens = [round(kept * h * w) for kept, (h, w) in zip(keep_ratio, schedule, strict=True)]
    branches = 2 if guided else 1
    until = [
        transformer_flops(
            sizes,
            [[count] * sizes.depth for count in tokens[:end]],
            [branches] * end,
            [count * branches for count in tokens[:end]],
        )
        for end in range(len(schedule) + 1)
    ]
    return [after - before for before, after in pairwise(until)]


def _weights_read(weights: WeightBytes, kept: float, depth: int) -> float:
    """Bytes that a scale reads at least: as few layers as can hold the fraction of token-layers that ran."""
    if not kept:
        return 0.0
    return weights.blocks * math.ceil(round(kept * depth, 6)) / depth + weights.ends


def weight_bytes(transformer: nn.Module) -> WeightBytes:
    """The weights that every scale reads; those that meet the text alone are read once and left out."""
    blocks = ends = 0
    for name, parameter in transformer.named_parameters():
        if name.startswith("blocks.") and ".ca.mat_kv." not in name:
            blocks += parameter.nbytes
        elif name.startswith(("word_embed.", "head.")):
            ends += parameter.nbytes
    return WeightBytes(blocks, ends)


def measure_ceilings(dtype: torch.dtype, device: torch.device) -> Ceilings:
    """Time a large matrix product of random numbers and a large copy; the fastest call of each counts.

    The steady rate of the product takes some seconds.

    Args:
        dtype: of the product.
        device: a GPU with 3 GB free.
    """
    ceilings = Ceilings(*_matmul_flops(dtype, device), _copy_bytes(device))
    torch.cuda.empty_cache()
    return ceilings


def _matmul_flops(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """At best, and steadily."""
    shape = (_MATMUL_SIZE, _MATMUL_SIZE)
    left, right, product = (torch.randn(shape, device=device).to(dtype) for _ in range(3))

    def call() -> None:
        torch.mm(left, right, out=product)

    seconds = _fastest(call)
    return 2 * _MATMUL_SIZE**3 / seconds, 2 * _MATMUL_SIZE**3 / _steady(call, seconds)


def _copy_bytes(device: torch.device) -> float:
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _fastest(lambda: target.copy_(source))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls that follow each other on the GPU."""
    for _ in range(_CALLS):
        call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_CALLS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return min(first.elapsed_time(second) for first, second in pairwise(marks)) / 1e3


def _steady(call: Callable[[], object], seconds: float) -> float:
    """Seconds of a call of about `seconds` among many that follow each other on the GPU."""
    count = max(1, round(_STEADY_S / seconds))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(count):
        call()
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count
