"""Tells a model that is too large for its GPU from a GPU that somebody else has filled."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .worker_errors import DeviceFullError

# What CUDA itself takes for a process is counted with the memory of others.
_OWN_CONTEXT_BYTES = 1 << 30


@contextmanager
def told_from_others() -> Iterator[None]:
    """Name who holds the GPU's memory where the block runs out of it.

    Raises:
        DeviceFullError: other processes hold memory; later there may be enough.
        RuntimeError: the memory ran out and nobody else has any, as PyTorch raises it.
    """
    try:
        yield
    except RuntimeError as error:  # PyTorch's own kind is one, and so is what CUDA raises for a first call
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        held = _held_by_others()
        if held is None:
            raise DeviceFullError("the GPU has no memory left even to begin with") from error
        if held <= _OWN_CONTEXT_BYTES:
            raise
        raise DeviceFullError(
            f"the model does not fit beside {held / 1e9:.1f} GB that other processes hold on the GPU"
        ) from error


def _held_by_others() -> int | None:
    """Bytes of the current GPU that other processes hold, and CUDA for this one; None where it cannot be asked."""
    try:
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()
    except RuntimeError:
        return None
