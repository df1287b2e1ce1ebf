"""Which implementation of the operations can run on a device, and why."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flash_attention.config import MAX_HEAD_DIM


@dataclass(frozen=True)
class Backend:
    """The implementation in use and why, as a run's record states it.

    Attributes:
        name: "torch" or "triton".
        reason: why this one.
    """

    name: str
    reason: str


PYTORCH = Backend("torch", "asked for")


def resolve_backend(setting: str, device: torch.device, head_dim: int) -> Backend:
    """Choose the implementation for `device`.

    Args:
        setting: "auto", "torch" or "triton".
        device: where the model runs.
        head_dim: of its attention heads.

    Raises:
        ValueError: `setting` names no backend, or one that cannot run here; says why.
    """
    if setting == "torch":
        return PYTORCH
    if setting not in {"auto", "triton"}:
        raise ValueError(f"no backend named {setting!r}; choose auto, torch or triton")
    obstacle = _obstacle_to_triton(device, head_dim)
    if obstacle is None:
        return Backend("triton", "asked for" if setting == "triton" else "a small kernel ran")
    if setting == "triton":
        raise ValueError(f"the triton backend cannot run here: {obstacle}; choose auto or torch")
    return Backend("torch", obstacle)


def _obstacle_to_triton(device: torch.device, head_dim: int) -> str | None:
    """Why Triton's kernels cannot run, or None where they can, which a small one has then shown."""
    if device.type != "cuda":
        return f"Triton's kernels need a GPU, and this is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"Triton's kernels need compute capability 8.0, and {torch.cuda.get_device_name(device)} is older"
        )
    if head_dim > MAX_HEAD_DIM:
        return f"Triton's attention takes heads of up to {MAX_HEAD_DIM} channels, and these have {head_dim}"
    try:
        from .flash_attention.launch import mean_over_heads  # noqa: PLC0415 - imports Triton

        mean_over_heads(torch.zeros(1, 1, device=device))
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail in many ways, and each is a reason
        return f"Triton fails on a small kernel: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


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
