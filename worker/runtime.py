"""From a runtime's settings to what an engine runs on: its device, dtype and kernels."""

import torch

from toprovar_batch.kernels.ops import Backend, resolve_backend

from .errors import ModelSpecError

# On a CPU, of the products that make an image. PyTorch's library divides small ones (attention of few tokens, and of
# these its sums) by the number of threads, so their last bits depend on it. One thread is also what makes most images
# with the cores of a machine: two workers of one thread are faster than one of two.
_CPU_THREADS = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(setting: str) -> torch.device:
    """The device of a setting: "auto" takes a GPU where there is one.

    Raises:
        ModelSpecError: cuda is requested and there is none.
    """
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise ModelSpecError(
            "runtime.device: cuda is asked for, but PyTorch sees no GPU here; use auto or cpu, or a CUDA build of torch"
        )
    return torch.device("cuda" if available and setting != "cpu" else "cpu")


def set_threads(device: torch.device, num_threads: int) -> None:
    """Set the threads of this process's products.

    Args:
        device: of the model. On a CPU the number is always the same, whatever is reserved, since an image's bits
            depend on it.
        num_threads: beside a GPU, whose images do not depend on it.
    """
    torch.set_num_threads(_CPU_THREADS if device.type == "cpu" else num_threads)


def resolve_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Compute dtype: as requested, else bfloat16 on a GPU and float32 on a CPU."""
    if setting != "auto":
        return _DTYPES[setting]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_kernels(setting: str, device: torch.device, head_dim: int) -> Backend:
    """The kernels of a setting, for attention heads of `head_dim` channels.

    Raises:
        ModelSpecError: kernels are requested that cannot run on the device; says why.
    """
    try:
        return resolve_backend(setting, device, head_dim)
    except ValueError as error:
        raise ModelSpecError(f"runtime.backend: {error}") from error


def backend_fallback(setting: str, device: torch.device, backend: Backend) -> str | None:
    """One sentence for the user where "auto" found a GPU and could not run Triton's kernels on it; else None."""
    if setting != "auto" or device.type != "cuda" or backend.name != "torch":
        return None
    return f"PyTorch attends in place of the Triton kernels, which are faster: {backend.reason}"
