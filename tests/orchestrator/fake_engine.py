"""An engine that misbehaves on order, for tests of what surrounds engines.

Its module is shipped to Ray workers by value, so it imports nothing of the tests.
"""

import os
import signal
import threading
from pathlib import Path

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.request import GenerationResult

# The smallest PNG of one red pixel that every decoder takes.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


class HoldsALockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Done:
    """A batch that is done when it has begun, as on a CPU."""

    def __init__(self, results):
        self._results = results

    def wait_until_made(self):
        pass

    def results(self):
        return self._results


class FakeEngine:
    """Gives a red pixel for every prompt, and obeys prompts that name a disaster.

    `exit`: the process ends at once, every time. `raise`: an exception, every time. `refuse`: an error result.
    `hang`: it never answers, and says so in `hangs.log`. `hang-once NAME`: it does not answer the first time. `kill-once NAME`: SIGKILL, the first time only (a file in `folder` remembers).
    `hiccup-once NAME`: an exception, the first time only. `lock`: an exception that cannot be pickled.
    """

    def __init__(
        self,
        folder,
        batch_size=4,
        broken=None,
        refusing=True,
        in_the_way=None,
        description=None,
        flat_batches=0,
        complaint="no such colour",
    ):
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.broken = broken  # how `setup` fails, or every generation ("gpu", "memory")
        self.refusing = refusing  # whether "refuse" is obeyed
        self.in_the_way = in_the_way  # a folder made where a part shall go
        self.description = description or {}  # more of what `describe` gives
        self.flat_batches = flat_batches  # what `usage` gives
        self.complaint = complaint  # text of the exception of "raise"

    def fetch(self, count):
        pass

    def setup(self):
        if self.broken == "checkpoint":
            raise CheckpointError("weights.pth: truncated")
        if self.broken == "exit":
            os._exit(1)
        if self.in_the_way is not None:
            self.in_the_way.mkdir(parents=True, exist_ok=True)

    def plan_batches(self, requests):
        size = self.batch_size
        return [requests[start : start + size] for start in range(0, len(requests), size)]

    def begin(self, batch):
        for request in batch:
            self._note(request.sample_id)
            if self.broken == "gpu":
                raise RuntimeError(f"CUDA error 700 of process {os.getpid()}")
            self._obey(request.prompt)
        return Done(
            [
                GenerationResult(request.sample_id, "error", "refused")
                if self.broken == "memory" or (request.prompt == "refuse" and self.refusing)
                else GenerationResult(
                    request.sample_id,
                    "ok",
                    image=PIXEL,
                    width=1,
                    height=1,
                    format="png",
                    statistics=ImageStatistics(
                        sample_ms=1.0,
                        batch_size=len(batch),
                        low_entropy_ratio=(None, 0.5),
                        keep_ratio=(1.0, 0.5),
                        token_layer_fraction=0.75,
                    ),
                )
                for request in batch
            ]
        )

    def describe(self):
        return {"device": "fake", "batch_size": self.batch_size, **self.description}

    def usage(self):
        load_seconds = float(os.getpid())  # another in each worker, as a real one
        return {"load_seconds": load_seconds, "flat_batches": self.flat_batches}

    def _note(self, sample_id):
        """Leave a line for every generation, so that a test can count them."""
        with (self.folder / "generated.log").open("a") as log:
            log.write(f"{sample_id}\n")

    def _obey(self, prompt):
        order, _, name = prompt.partition(" ")
        if order == "exit":
            os._exit(3)
        if order == "raise":
            raise ValueError(self.complaint)
        if order == "lock":
            raise HoldsALockError("many\nlines")
        if order == "hang":
            with (self.folder / "hangs.log").open("a") as log:
                log.write(f"{name}\n")
            signal.pause()
        if order == "hang-once" and self._first(name):
            signal.pause()
        if order == "kill-once" and self._first(name):
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "hiccup-once" and self._first(name):
            raise ValueError("hiccup")

    def _first(self, name):
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class PermittedEngine:
    """An engine that takes a permit for each image before it makes it: a byte of a pipe.

    `taken.log` beside the pipe gets the process id for each permit.
    """

    def __init__(self, make_engine, folder):
        self.engine = make_engine()
        self.folder = Path(folder)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def begin(self, batch):
        for _ in batch:
            with (self.folder / "permits").open("rb", buffering=0) as permits:
                if not permits.read(1):
                    raise RuntimeError("the driver was killed")
            with (self.folder / "taken.log").open("a") as log:
                log.write(f"{os.getpid()}\n")
        return self.engine.begin(batch)
