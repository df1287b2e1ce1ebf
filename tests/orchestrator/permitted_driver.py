"""A driver as a process of its own, whose engines make an image only when the test permits one.

So a test decides what has been made when something dies. A pipe with a name holds a byte for each permit.
"""

import os
import subprocess
import sys
from pathlib import Path

FAKE_DRIVER = Path(__file__).with_name("fake_driver.py")


class PermittedDriver:
    """`toprovar-batch submit` of a job under test.

    Args:
        job: the job file.
        folder: where FakeEngine keeps its notes.
        own: a new folder for what this driver alone reads and writes.
        engine: "fake" or "real".
    """

    def __init__(self, job, folder, own, engine):
        own.mkdir()
        self._taken, self._said = own / "taken.log", own / "stderr.txt"
        os.mkfifo(own / "permits")
        # For reading too: to open a pipe for writing alone waits for a reader.
        self._permits = os.open(own / "permits", os.O_RDWR)
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(FAKE_DRIVER), job, str(folder), str(own), engine],
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,  # as a shell would
            )

    def permit(self, count):
        """Let the engines make some images more."""
        os.write(self._permits, bytes(count))

    @property
    def takers(self):
        """Process id of the worker that took each permit."""
        return [int(line) for line in self._taken.read_text().split()] if self._taken.exists() else []

    @property
    def said(self):
        """Its stderr so far."""
        return self._said.read_text(encoding="utf-8")

    def wait_until(self, condition):
        """Let it run until something is true. It must not end before; how long it takes does not matter."""
        while not condition():
            try:
                self.process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"the driver ended early: {self.said}")

    def wait_until_taken(self, count):
        """Let it run until this many permits are taken."""
        self.wait_until(lambda: len(self.takers) >= count)

    def finish(self):
        """Permit all that may be left, and wait for the exit code."""
        self.permit(1000)
        return self.process.wait()

    def kill(self):
        """End it at once. Workers that outlive it get no permit any more, and raise."""
        self.process.kill()
        self.process.wait()
        if self._permits is not None:
            os.close(self._permits)
            self._permits = None
