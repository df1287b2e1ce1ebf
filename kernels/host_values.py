"""Small numbers on their way from the host to the device."""

from collections.abc import Sequence

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
