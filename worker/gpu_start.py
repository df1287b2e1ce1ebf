"""What the first work on a GPU waits for, begun while Python imports PyTorch."""

import ctypes
import importlib
from contextlib import suppress
from threading import Thread

# Where Triton hashes its own files for the keys of its cache, in the versions that we know.
_HASHES = ("triton.runtime.cache", "triton.compiler.compiler")


def begin_gpu_start() -> Thread:
    """Start the driver, and let Triton look at its own files, in a thread: 0.6 s on an H200's host, which need no Python.

    A failure is left to who needs them next, and can say what it means.

    Returns:
        The thread.
    """
    thread = Thread(target=_start, name="gpu start", daemon=True)
    thread.start()
    return thread


def _start() -> None:
    with suppress(OSError, AttributeError):  # no driver, or another one
        cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        # The context of the first GPU that this process may see is the one that PyTorch takes.
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0:
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    for name in _HASHES:
        with suppress(ImportError, AttributeError):
            importlib.import_module(name).triton_key()
            return
