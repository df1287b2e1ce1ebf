"""`toprovar-batch submit`: options in, the summary and the exit code out."""

import importlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.forgiving_stream import forgiving
from toprovar_batch.orchestrator.job.checks import check_job, check_memory
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.run.ray_probe import cluster_address, is_job_server
from toprovar_batch.worker.errors import JobSpecError, RunFailedError
from toprovar_batch.worker.words import counted

if TYPE_CHECKING:
    from toprovar_batch.orchestrator.run.summary import RunSummary


@click.command()
@click.argument("job", type=str)
@click.option("--output", metavar="DIR", help="Output folder or URL, in place of the job's.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the job; may be repeated.",
)
@click.option("--retry-errors", is_flag=True, help="Generate the error rows of finished shards again.")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Where: Ray Jobs (http://head:8265) takes job and package along; any other is as runtime.ray_address.",
)
@click.option("--detach", is_flag=True, help="With Ray Jobs: do not wait for the end.")
@click.option("--no-install", is_flag=True, help="With Ray Jobs: nodes have all packages already.")
@forgiving("stdout")  # a dataset is whole, whether or not anybody reads so
def submit_command(
    job: str,
    output: str | None,
    overrides: tuple[str, ...],
    retry_errors: bool,
    address: str | None,
    detach: bool,
    no_install: bool,
) -> None:
    """Generate the dataset of a JOB file; run it again to go on where it stopped."""
    if address is not None and is_job_server(address):
        # Takes a second, which no other run should wait for.
        from toprovar_batch.orchestrator.commands.ray_jobs import (  # noqa: PLC0415
            follow,
            send,
            tell_how_to_go_on,
        )

        job_id = send(
            job,
            address,
            overrides=overrides,
            output=output,
            retry_errors=retry_errors,
            install=not no_install,
        )
        tell_how_to_go_on(job_id, address)
        if not detach:
            follow(address, job_id)
        return
    if detach or no_install:
        option = "--detach" if detach else "--no-install"
        raise JobSpecError(f"{option} goes with Ray Jobs only; name them with --address http://head:8265")
    if address is not None:
        overrides = (*overrides, f"runtime.ray_address={json.dumps(address)}")
    go_on = resume_command(job, output, overrides)
    failed: list[RunSummary] = []
    try:
        summary = _submit(load_job(job, overrides, output=output), retry_errors, failed.append)
    finally:
        for each in failed:
            show(each, go_on)
    finish(summary, go_on)


def _submit(job: JobSpec, retry_errors: bool, on_failure: "Callable[[RunSummary], None]") -> "RunSummary":
    """Submit a job; a Ray of this machine's own starts beside the imports, where it is all but sure to be needed."""
    with ExitStack() as stack:
        if _begins_here(job):
            check_job(job)
            check_memory(job)
            stack.enter_context(_ray_beside_imports(job))
            from toprovar_batch.orchestrator.run.submission import submit_job  # noqa: PLC0415 - takes a second
        else:
            from toprovar_batch.orchestrator.run.submission import check_to_run, submit_job  # noqa: PLC0415

            check_to_run(job)
        return submit_job(job, retry_errors=retry_errors, on_failure=on_failure)


def _begins_here(job: JobSpec) -> bool:
    """Whether a job begins a dataset on this machine, and with a Ray of its own."""
    is_local = "://" not in job.output and not cluster_address(job.runtime)
    return is_local and not Path(job.output).expanduser().exists()


@contextmanager
def _ray_beside_imports(job: JobSpec) -> Iterator[None]:
    """Start Ray for the length of the block, and import the rest in a thread: Ray waits for its own processes most of the time.

    Nothing is said of it: a mistake that is found only now is still to be the one sentence.
    """
    from toprovar_batch.orchestrator.run.ray_session import ray_session  # noqa: PLC0415 - Ray takes a second

    module = "toprovar_batch.orchestrator.run.submission"
    thread = Thread(target=importlib.import_module, args=(module,), daemon=True)
    thread.start()
    with ray_session(job.runtime):
        thread.join()
        yield


def resume_command(job: str, output: str | None, overrides: Sequence[str]) -> str:
    """Write the command line that continues a job."""
    words = ["toprovar-batch", "submit", job]
    words += ["--output", output] if output else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def show(summary: "RunSummary", go_on: str) -> None:
    """Print the summary; `go_on` is the command that continues the job."""
    for line in summary.lines(go_on):
        echo(line)


def finish(summary: "RunSummary", go_on: str) -> None:
    """Print the summary and leave with the run's exit code.

    0: every sample has its row, and one an image at least; 128 + the signal's number: stopped by it, as shells have it; else 1.

    Raises:
        RunFailedError: shards were given up, parts are damaged, or cannot be read now; or no sample has an image.
    """
    show(summary, go_on)
    if summary.stopped_by:
        sys.exit(128 + signal.Signals[summary.stopped_by])
    if not summary.is_complete:
        raise RunFailedError(
            f"{counted(len(summary.failed), 'shard was', 'shards were')} given up, "
            f"{counted(len(summary.damaged), 'part is', 'parts are')} damaged, "
            f"{counted(len(summary.unreachable), 'part')} cannot be read now"
        )
    if summary.only_errors:
        raise RunFailedError(f"none of {counted(summary.dataset.errors, 'sample')} has an image")
