"""How the kernels are built for a kind of GPU, a head size and a dtype. Pure; the tables hold what was measured.

A row's bits must not depend on its batch, so nothing here looks at lengths: one GPU, head size and dtype have one
configuration.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

import torch

MAX_HEAD_DIM: Final = 256
DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)
# Head sizes that the Hopper kernel is written for; others, padded to the next power of two, take the Triton kernel.
# (A head of 96 channels would be 64 + 32 without padding. Padding costs a quarter of the matrix work there, which is
# hardly more than half of the time, and no second form of every line.)
HOPPER_HEAD_DIMS: Final = (64, 128)


@dataclass(frozen=True)
class KernelConfig:
    """Which kernel, and in which shape.

    Attributes:
        kernel: "hopper" (warp-specialised, in Gluon, sm_90 alone) or "triton" (any GPU, and the interpreter).
        block_m: queries of a tile. The Hopper kernel's is 128.
        block_n: keys of a step.
        num_stages: blocks of keys and values in flight; the Hopper kernel needs two.
        num_warps: of the Triton kernel.
        descriptors: the Triton kernel loads through tensor descriptors, which is bulk copies (TMA) from sm_90 on.
    """

    kernel: Literal["triton", "hopper"] = "triton"
    block_m: int = 128
    block_n: int = 64
    num_stages: int = 2
    num_warps: int = 8
    descriptors: bool = False

    def shared_memory(self, head_dim: int) -> int:
        """Most bytes that queries and the stages of keys and values of a 16-bit dtype take."""
        return 2 * padded_head_dim(head_dim) * (self.block_m + 2 * self.num_stages * self.block_n)

    def __str__(self) -> str:
        """A short name for tables."""
        name = f"{self.kernel} {self.block_m}x{self.block_n} stages {self.num_stages}"
        if self.kernel == "hopper":
            return name
        return f"{name} warps {self.num_warps}{' descriptors' if self.descriptors else ''}"


def padded_head_dim(head_dim: int) -> int:
    """The power of two, 16 at least, that a kernel computes with."""
    return max(16, 1 << (head_dim - 1).bit_length())


@cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability, such as (9, 0); (0, 0) of what is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def choose_config(capability: tuple[int, int], head_dim: int, dtype: torch.dtype) -> KernelConfig:
    """The configuration in use.

    Args:
        capability: of the GPU, such as (9, 0).
        head_dim: D, at most 256.
        dtype: of queries, keys and values.
    """
    if capability == (9, 0) and head_dim in HOPPER_HEAD_DIMS and dtype != torch.float32:
        return KernelConfig("hopper", block_n=128, num_stages=2 if head_dim == 128 else 4)
    return portable_config(capability, head_dim, dtype)


def queries_per_block(device: torch.device, head_dim: int, dtype: torch.dtype) -> int:
    """Queries of a tile, where keys can be described to bulk copies; arguments as of `choose_config`."""
    return choose_config(capability_of(device), head_dim, dtype).block_m


def takes_rows_alike(capability: tuple[int, int], head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel attends even where all rows are alike, for which PyTorch's cuDNN has a call.

    The Hopper kernel does. From 1,024 queries on it is as fast as cuDNN or faster. Below it takes up to 1.2 times as long,
    which is 0.2% of an image's time. In return a row's bits never depend on whether the others are like it. Arguments as
    of `choose_config`.
    """
    return choose_config(capability, head_dim, dtype).kernel == "hopper"


def portable_config(capability: tuple[int, int], head_dim: int, dtype: torch.dtype) -> KernelConfig:
    """The configuration of the Triton kernel; arguments as of `choose_config`."""
    padded = padded_head_dim(head_dim)
    if dtype == torch.float32:  # for completeness: three products in place of one, and twice the registers
        return KernelConfig(block_m=32 if padded > 64 else 64, block_n=32, num_stages=1, num_warps=4)
    if (9, 0) <= capability < (12, 0):
        if padded > 128:
            return KernelConfig(block_n=64, num_stages=2, descriptors=True)
        return KernelConfig(block_n=128, num_stages=2 if padded == 128 else 3, descriptors=True)
    # The 99 KB of shared memory of sm_86, sm_89 and sm_120 bound the stages, 255 registers the tile.
    if padded > 128:
        return KernelConfig(block_m=32, block_n=32, num_warps=4)
    return KernelConfig(block_n=32 if padded == 128 else 64, num_stages=3)


def variants(capability: tuple[int, int], head_dim: int) -> list[KernelConfig]:
    """Configurations worth a try for 16-bit dtypes, the one in use first."""
    chosen = choose_config(capability, head_dim, torch.bfloat16)
    tried = [portable_config(capability, head_dim, torch.bfloat16)]
    if (9, 0) <= capability < (12, 0):
        plain = KernelConfig(descriptors=True)
        tried += [
            replace(plain, block_n=128, num_stages=2),
            replace(plain, block_n=64, num_stages=3),
            replace(plain, block_m=64, block_n=64, num_stages=3, num_warps=4),
            replace(plain, block_n=128, num_stages=2, descriptors=False),
        ]
        if capability == (9, 0) and head_dim in HOPPER_HEAD_DIMS:
            stages = ((128, 2), (64, 4), (64, 5)) if head_dim == 128 else ((128, 3), (128, 4), (64, 6))
            tried += [KernelConfig("hopper", block_n=n, num_stages=s) for n, s in stages]
    else:
        tried += [
            KernelConfig(block_m=m, block_n=n, num_stages=s, num_warps=w)
            for m, n, s, w in (
                (128, 32, 3, 8),
                (128, 64, 2, 8),
                (64, 64, 2, 4),
                (64, 32, 3, 4),
                (128, 64, 3, 8),
            )
        ]
    room = shared_memory_room(capability)
    return [config for config in dict.fromkeys([chosen, *tried]) if config.shared_memory(head_dim) <= room]


def shared_memory_room(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a program may take."""
    kilobytes = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
    return kilobytes.get(capability, 99) * 1024
