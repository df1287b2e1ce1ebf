"""One place that decides which implementation of each operation runs, and says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .bit_sampling import sample_bits
from .flash_attention import attention, attention_entropy
from .qk_norm_rope import qk_norm_rope

__all__ = [
    "Backend",
    "attention",
    "attention_entropy",
    "fastest_attention",
    "qk_norm_rope",
    "resolve_backend",
    "sample_bits",
]


@dataclass(frozen=True)
class Backend:
    """The implementation in use and why, as a run's record states it."""

    name: str
    reason: str


def resolve_backend(setting: str, device: torch.device) -> Backend:
    """Choose the implementation for `device`.

    Args:
        setting: "auto" or "torch".
        device: where the model runs.

    Raises:
        ValueError: `setting` names no backend.
    """
    if setting == "torch":
        return Backend("torch", "asked for")
    if setting == "auto":
        return Backend("torch", f"PyTorch's own operations on {device.type}")
    raise ValueError(f"no backend named {setting!r}; choose auto or torch")


@contextmanager
def fastest_attention(device: torch.device) -> Iterator[None]:
    """Let PyTorch's attention choose in the order of speed measured for this model's shapes on a GPU."""
    if device.type != "cuda":
        yield
        return
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield
