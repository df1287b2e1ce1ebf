"""Kernels compiled beside each other, before a batch asks for one after the other.

A batch of the 2B model takes 34 of them, and Triton half a second for most. Run once without launching any, it tells which.
Then threads compile and load them all. They share Python, which reads a kernel; the compilers behind it do without. Measured in
docs/benchmarks.md, "A worker's pipeline".
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

# Python's part is a third of the work, so more gain nothing, and each takes memory.
_MOST_THREADS = 6

Noted = dict[str, Callable[[], Any]]
"""What compiles each kernel that was noted, by kernel and key."""
_noted: ContextVar[Noted | None] = ContextVar("noted", default=None)


def is_noting() -> bool:
    """Whether kernels are noted and not launched here, so that nothing computed means anything."""
    return _noted.get() is not None


@contextmanager
def noting_kernels() -> Iterator[Noted]:
    """Let Triton note what the block launches and this process has not compiled, in place of compiling and launching it.

    What these kernels would have written is left as it was. Other threads go on as usual.

    Yields:
        What is noted; nothing where this version of Triton does not ask before it compiles.
    """
    try:
        from triton.knobs import runtime  # noqa: PLC0415 - slow to import, and not everywhere
    except ImportError:
        yield {}
        return
    noted: Noted = {}
    former = runtime.jit_cache_hook

    def note(*, key: str, fn: Any, compile: dict[str, Any], **others: Any) -> bool | None:  # noqa: A002 - Triton's name
        if not is_noting():
            return None if former is None else former(key=key, fn=fn, compile=compile, **others)
        data, kernel = compile["specialization_data"], fn.jit_function
        # `run` of what is compiled is its launcher, which a C compiler makes, and loads the kernel into the device.
        noted[f"{fn.module}.{fn.name} {key}"] = lambda: kernel.preload(data).run
        return True

    token = _noted.set(noted)
    runtime.jit_cache_hook = note
    try:
        yield noted
    finally:
        runtime.jit_cache_hook = former
        _noted.reset(token)


def compile_ahead(work: str, device: torch.device, steps: Sequence[Callable[[], object]]) -> None:
    """Compile the kernels that some work launches, for this process and into Triton's cache, unless that was done before.

    What cannot be compiled is left to who launches it, and hears why.

    Args:
        work: names it; kernels, versions and device are added.
        device: a GPU.
        steps: the work, of which none is done; those that refuse what they see end early.
    """
    mark = _mark(work, device)
    with suppress(OSError):  # nobody may look there, so it was not left there
        if mark.exists():
            return
    with noting_kernels() as noted:
        for step in steps:
            with suppress(Exception):
                step()

    own_device = torch.cuda.current_device()

    def attempt(compile_one: Callable[[], Any]) -> None:
        with suppress(Exception):
            torch.cuda.set_device(own_device)  # a thread begins without one
            compile_one()

    num_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(num_threads, "compile") as threads:
        list(threads.map(attempt, noted.values()))
    with suppress(OSError):  # a cache that cannot be written is compiled anew each time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(work: str, device: torch.device) -> Path:
    """A file in Triton's cache that is there once the kernels of some work are."""
    import triton  # noqa: PLC0415 - slow to import, and not everywhere

    digest = hashlib.blake2b(digest_size=16)
    parts = [work, torch.__version__, triton.__version__, torch.cuda.get_device_name(device)]
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    for part in (*(part.encode() for part in parts), *(path.read_bytes() for path in sources)):
        digest.update(len(part).to_bytes(8, "little") + part)
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111 - as Triton does: a user may have none
    folder = os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton/cache")
    return Path(folder) / f"toprovar-batch-{digest.hexdigest()}"
