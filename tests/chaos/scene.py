"""One try of a fault: a job in a folder of its own, its drivers, and the comparison with the undisturbed dataset."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from toprovar_batch.orchestrator.commands.status import read_status
from toprovar_batch.orchestrator.output.folder import locate_output

DRIVER = Path(__file__).with_name("driver.py")
MARK = "TOPROVAR_CHAOS"  # every process of a try has it in its environment, with the try's folder
PROMPTS = tuple(f"prompt {number}" for number in range(48))
SHARD_SIZE = 4
RANDOM_MODEL = "{random_weights: true, architecture: {depth: 2, width: 64, num_heads: 2}}"
PACE_S = 0.1
CLEANING_S = 30.0  # most seconds to wait for killed processes
LIMIT_S = 240.0  # no run may take longer, whatever happens to it
# Columns that time, place or attempt decide, not the job.
VOLATILE = {"attempt", "worker", "total_ms", "text_ms", "sample_ms", "decode_ms", "encode_ms", "batch_size"}


@dataclass
class Verdict:
    """What a try did to its dataset. `problems` are sentences; `skipped` says why there was no try."""

    lost: int = 0
    doubled: int = 0
    wrong_errors: int = 0
    differing: int = 0
    recovery_s: float | None = None
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def is_equal(self):
        """Whether the rows are those of the undisturbed dataset."""
        return not (self.lost or self.doubled or self.wrong_errors or self.differing)

    @property
    def is_good(self):
        """Whether nothing was wrong."""
        return self.is_equal and not self.problems


class Skipped(Exception):  # noqa: N818 - no error
    """This machine cannot make the fault."""


class Driver:
    """A process of `toprovar-batch` in a session of its own."""

    def __init__(self, command, environment, said, stderr):
        self.started = time.monotonic()
        self.said_path = said
        with said.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stderr, env=environment, start_new_session=True
            )

    @property
    def said(self):
        """Its output so far."""
        return self.said_path.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self):
        """Whether it has not ended."""
        return self.process.poll() is None


class Scene:
    """A job and what happens to it.

    Args:
        folder: new, of this try alone.
        seed: decides every random moment.
        engine: "drawn" or "model".
        undisturbed: gives the rows of the undisturbed dataset by sample id, for prompts, seed and engine.
    """

    def __init__(self, folder, seed, engine, undisturbed):
        folder.mkdir(parents=True)
        self.folder, self.engine, self.undisturbed = folder, engine, undisturbed
        self.rng = random.Random(seed)
        self.prompts, self.job_seed, self.output = PROMPTS, 0, str(folder / "out")
        self.environment, self.settings = {}, {"num_workers": 2, "device": "cpu", "stall_timeout_s": 60}
        self.source, self.model, self.image = "prompts.txt", RANDOM_MODEL, "{resolution: 0.06M}"
        self.drivers, self.problems = [], []
        self.fault_at, self.whole_at, self.obedient = None, None, True
        self.closing = contextlib.ExitStack()

    def expect(self, holds, problem):
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)

    def start(self, *options, seed=None, command="submit", stderr=subprocess.STDOUT):
        """Start a driver of the job, or a command that reads its output."""
        seed = self.job_seed if seed is None else seed
        job = self.folder / f"job-{seed}.yaml"
        (self.folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        runtime = "".join(f"  {name}: {value}\n" for name, value in self.settings.items())
        job.write_text(
            f"prompts: {{source: '{self.source}'}}\noutput: {self.output}\nshard_size: {SHARD_SIZE}\n"
            f"model: {self.model}\nimage: {self.image}\nsampling: {{seed: {seed}}}\nruntime:\n{runtime}",
            encoding="utf-8",
        )
        orders = "obey" if self.obedient else "ignore"
        line = [sys.executable, str(DRIVER), str(self.folder), self.engine, str(PACE_S), orders]
        environment = (
            os.environ
            | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
            | self.environment
            | {MARK: str(self.folder)}
        )
        said = self.folder / f"said-{len(self.drivers)}.txt"
        subject = str(job) if command in ("submit", "validate") else self.output
        driver = Driver([*line, command, subject, *options], environment, said, stderr)
        self.drivers.append(driver)
        return driver

    @property
    def made(self):
        """How many images the engines have made."""
        log = self.folder / "made.log"
        return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0

    def wait_for(self, driver, condition, what):
        """Let a driver run until something is true; say whether that came before its end and its limit."""
        while driver.running and time.monotonic() - driver.started < LIMIT_S:
            if condition():
                return True
            time.sleep(0.02)
        self.expect(False, f"the driver ended before {what}: {driver.said[-300:]}")
        return False

    def wait_until_made(self, driver, more):
        """Let a driver run until its engines have made some images more, and a random moment longer."""
        wanted = self.made + more
        there = self.wait_for(driver, lambda: self.made >= wanted, f"{wanted} images were made")
        time.sleep(self.rng.uniform(0, 2 * PACE_S))
        return there

    def under_way(self, *options):
        """Start a driver and let it run to a random moment of its work."""
        driver = self.start(*options)
        self.wait_until_made(driver, self.rng.randrange(1, len(self.prompts) * 2 // 3))
        return driver

    def fault(self):
        """The fault happens now."""
        self.fault_at = self.fault_at or time.monotonic()

    def finish(self, driver, *codes):
        """Wait for a driver's end; it must be in time, with one of the exit codes, and in sentences."""
        try:
            driver.process.wait(max(1.0, driver.started + LIMIT_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            driver.process.send_signal(signal.SIGABRT)  # then Python says where its threads are
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.process.wait(CLEANING_S)
            self.problems.append(f"a run did not end within {LIMIT_S:g} s: {driver.said[-3000:]}")
            driver.process.kill()
            driver.process.wait()
            return None
        code = driver.process.returncode
        self.expect(
            code in codes, f"exit code {code}, not {' or '.join(map(str, codes))}: {driver.said[-300:]}"
        )
        self.expect("Traceback" not in driver.said, f"a traceback: {driver.said[-600:]}")
        self.expect("will terminate" not in driver.said, f"Ray ended the run: {driver.said[-600:]}")
        return code

    def complete(self):
        """Submit the job once more: it must bring the dataset to its end."""
        self.finish(self.start(), 0)
        self.whole_at = time.monotonic()

    def processes(self):
        """Ids and command lines of all processes of this try."""
        wanted, found = f"{MARK}={self.folder}\0".encode(), {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes() + b"\0":
                        line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = line
        return found

    def pids(self, name):
        """Ids of this try's processes whose command line holds a name."""
        return [pid for pid, line in self.processes().items() if name in line and "driver.py" not in line]

    def workers(self):
        """Ids of the processes of Ray actors."""
        return self.pids("ray::GenerationWorker")

    def strike(self, pids, number=signal.SIGKILL):
        """Send a signal to processes of this try; those that have ended by themselves do not matter."""
        self.fault()
        pids = list(pids)
        self.expect(pids or number == signal.SIGCONT, "there was nothing to strike")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def parts(self):
        """The parts of a local output, by shard."""
        return sorted(Path(self.output, "data").glob("part-*.parquet"))

    def verdict(self, errors=()):
        """Compare the dataset with the undisturbed one, row by row.

        Args:
            errors: prompts whose rows must be error rows.
        """
        verdict = compare(
            read_rows(self.output), self.undisturbed(self.prompts, self.job_seed, self.engine), errors
        )
        verdict.problems = self.problems
        status = read_status(self.output, verify=True)
        self.expect(not status["damaged"] and not status["unreachable"], f"status --verify: {status}"[:300])
        scratch = Path(self.output, "_job/tmp")
        if scratch.is_dir():
            self.expect(not list(scratch.iterdir()), "unfinished files are left in _job/tmp")
        if self.fault_at is not None and self.whole_at is not None:
            verdict.recovery_s = self.whole_at - self.fault_at
        return verdict

    def close(self):
        """End whatever is left of this try."""
        for driver in self.drivers:
            if driver.running:
                driver.process.kill()
            driver.process.wait()
        try:
            self.closing.close()
        except Exception as error:  # noqa: BLE001 - the processes are ended all the same
            self.problems.append(f"cleaning up: {error}")
        until = time.monotonic() + CLEANING_S
        while (left := self.processes()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.expect(not left, f"processes that cannot be killed: {left}")
        shutil.rmtree(self.folder, ignore_errors=True)


def read_rows(output):
    """All rows of all parts of an output."""
    folder = locate_output(output)
    folder.filesystem.invalidate_cache()
    names = list(folder.filesystem.ls(folder.inside("data"), detail=False))
    return [
        row
        for name in sorted(names)
        for row in pq.ParquetFile(folder.filesystem.open(name)).read().to_pylist()
    ]


def compare(rows, wanted, errors=()):
    """Compare the rows of a dataset with the stable rows of the undisturbed one, by sample id.

    Args:
        rows: all of the dataset.
        wanted: by sample id.
        errors: prompts whose rows must be error rows.
    """
    counts = Counter(row["sample_id"] for row in rows)
    good = [row for row in rows if row["status"] != "error"]
    return Verdict(
        lost=len(wanted.keys() - counts.keys()),
        doubled=sum(counts.values()) - len(counts),
        wrong_errors=sum((row["status"] == "error") != (row["prompt"] in errors) for row in rows),
        differing=sum(stable(row) != wanted.get(row["sample_id"]) for row in good),
    )


def stable(row):
    """What the job alone decides of a row."""
    return {name: value for name, value in row.items() if name not in VOLATILE}
