"""The engine under faults: it keeps a pace, counts what it makes, and fails where a prompt or a file orders it.

Its module is shipped to Ray workers by value, so it imports nothing of this folder.
"""

import contextlib
import hashlib
import io
import os
import time
from pathlib import Path

from PIL import Image

from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.request import GenerationResult

SIDE = 16  # pixels of a drawn image


class _Done:
    """A batch that is done when it has begun, as on a CPU."""

    def __init__(self, results):
        self._results = results

    def wait_until_made(self):
        pass

    def results(self):
        return self._results


class DrawnEngine:
    """Images of noise that prompt and seed alone decide, as those of the model; no weights and no PyTorch."""

    def fetch(self, count):
        pass

    def setup(self):
        pass

    def plan_batches(self, requests):
        return [requests[start : start + 2] for start in range(0, len(requests), 2)]

    def begin(self, batch):
        return _Done([self._draw(request) for request in batch])

    def describe(self):
        return {"device": "drawn"}

    def usage(self):
        return {}

    def _draw(self, request):
        text = f"{request.seed}\n{request.prompt}\n{request.negative_prompt}"
        noise = hashlib.shake_256(text.encode()).digest(3 * SIDE * SIDE)
        file = io.BytesIO()
        Image.frombytes("RGB", (SIDE, SIDE), noise).save(file, "PNG")
        return GenerationResult(
            request.sample_id, "ok", image=file.getvalue(), width=SIDE, height=SIDE, format="png"
        )


class OrderedEngine:
    """An engine that obeys.

    A prompt `exit` ends the process, and one that begins with `raise` raises, each time. The file `broken` in the folder breaks every engine
    as long as it is there, and `broken-one` the first engine that takes it.

    Args:
        make_engine: makes the engine inside.
        folder: of orders, and of `made.log`, which gets a line for every image.
        pace_s: seconds to wait for an image.
        obedient: whether prompts are obeyed.
    """

    def __init__(self, make_engine, folder, pace_s, obedient=True):
        self.engine = make_engine()
        self.folder = Path(folder)
        self.pace_s = pace_s
        self.obedient = obedient
        self.broken = False

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def fetch(self, count):
        """Fetch weights where the file `weights` names their URL and SHA-256; leave a file if they are wrong."""
        self.engine.fetch(count)
        order = self.folder / "weights"
        if order.exists():
            url, wanted = order.read_text(encoding="utf-8").split()
            if hashlib.sha256(fetch(url).read_bytes()).hexdigest() != wanted:
                (self.folder / "wrong-weights").touch()

    def setup(self):
        """Load, as long as the file `slow-load` says in seconds; `unloadable` breaks that, `hang-one` stops the first."""
        slow = self.folder / "slow-load"
        if slow.exists():
            with (self.folder / "loading.log").open("a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(float(slow.read_text(encoding="ascii")))
        if self._is_first("hang-one"):
            time.sleep(3600)
        if (self.folder / "unloadable").exists():
            raise RuntimeError("CUDA error: out of memory")
        self.engine.setup()
        self.broken = self._is_first("broken-one")

    def _is_first(self, order):
        """Whether an order to one engine is there, and no other engine has taken it."""
        if (self.folder / order).exists():
            with contextlib.suppress(FileExistsError):
                (self.folder / f"{order}.taken").touch(exist_ok=False)
                return True
        return False

    def begin(self, batch):
        time.sleep(self.pace_s * len(batch))
        if self.broken or (self.folder / "broken").exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for request in batch:
            if self.obedient and request.prompt == "exit":
                os._exit(3)
            if self.obedient and request.prompt.startswith("raise"):
                raise ValueError("no such colour")
        with (self.folder / "made.log").open("a") as log:
            log.write("".join(f"{os.getpid()} {request.sample_id}\n" for request in batch))
        return self.engine.begin(batch)
