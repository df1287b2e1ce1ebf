"""Values on their way between the host and the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Copy whole numbers to the device without waiting for the work that is queued there.

    A plain `torch.tensor(values, device="cuda")` copies from pageable memory and waits for the whole stream.

    Returns:
        [n] int64.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    return torch.tensor(values, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring small tensors of one device to the host in one copy, which waits for the device once.

    Args:
        tensors: by name, of any shapes; none: nothing is waited for.

    Returns:
        Each under its name and in its shape as float64, which holds whole numbers up to 2**53 exactly.
    """
    if not tensors:
        return {}
    joined = torch.cat([tensor.double().flatten() for tensor in tensors.values()]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device without waiting for the work that is queued there."""
    if device.type != "cuda":
        return values.to(device)
    # Pinning keeps strides, and an expanded tensor could not be filled.
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def queue_copy_to_host(values: Tensor) -> Tensor:
    """Start a copy to the host, behind all that the current stream has to do; on a CPU the tensor itself.

    From a GPU it goes into pinned memory, and what it holds means nothing before the stream is past the copy. `values`
    may be freed at once: its memory goes only to work that the same stream does later.
    """
    if not values.is_cuda:
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def copy_to_host(values: Tensor) -> Tensor:
    """Bring a large tensor to the host and wait for it; from a GPU into pinned memory, which is the faster copy."""
    host = queue_copy_to_host(values)
    if values.is_cuda:
        torch.cuda.current_stream(values.device).synchronize()
    return host
