"""Jobs on a cluster through Ray Jobs: how `submit` sends them, and the commands `logs` and `stop`."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.run.job_server import JobServer
from toprovar_batch.orchestrator.run.ray_probe import is_job_server
from toprovar_batch.orchestrator.run.shipment import JOB_NAME, pack, runtime_env
from toprovar_batch.worker.errors import JobSpecError, RunFailedError


def send(
    job_path: str,
    address: str,
    *,
    overrides: Sequence[str] = (),
    output: str | None = None,
    retry_errors: bool = False,
    install: bool = True,
) -> str:
    """Start a job on a cluster, with all that it needs from this machine.

    Args:
        job_path: the job file.
        address: of Ray Jobs.
        overrides: `key=value` each; they win over the file.
        output: stands in for the job's output.
        retry_errors: also generate the error rows of published shards again.
        install: whether nodes install what the package needs, see `requirements`.

    Returns:
        The id of the job there.

    Raises:
        UserError: something in the job or its prompts must be mended, or the server does not take it.
    """
    job = load_job(job_path, overrides, output=output)
    server = JobServer(address)
    with tempfile.TemporaryDirectory(prefix="toprovar-batch-") as folder:
        pack(job, Path(folder))
        command = ["python", "-m", "toprovar_batch", "submit", JOB_NAME]
        command += ["--retry-errors"] if retry_errors else []
        environment = runtime_env(job, Path(folder), install=install)
        return server.submit(shlex.join(command), environment, str(job.name))


class _Log:
    """Prints what another machine said, a line at a time as all that we print: it may be anything."""

    def __init__(self) -> None:
        self._rest = ""

    def tell(self, text: str) -> None:
        """Print the lines that are whole now."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._print(line)

    def end(self) -> None:
        """Print what came after the last end of line."""
        if self._rest:
            self._print(self._rest)
            self._rest = ""

    @staticmethod
    def _print(line: str) -> None:
        # A bar that was drawn in place stands as it was last.
        echo(line.rstrip("\r").rpartition("\r")[2].expandtabs())


def follow(address: str, job_id: str) -> None:
    """Print what a job says until it ends, and leave with its exit code; a signal leaves the job alone.

    Raises:
        JobSpecError: there is no such job.
        RunFailedError: it failed; 1.
    """
    log = _Log()
    try:
        code = JobServer(address).follow(job_id, log.tell)
    except KeyboardInterrupt:
        echo(f"the job goes on; stop it with: {_command('stop', job_id, address)}", err=True)
        raise
    finally:
        log.end()
    if code == 1:
        raise RunFailedError(f"{job_id} failed; its log says why")
    if code:
        sys.exit(code)


def tell_how_to_go_on(job_id: str, address: str) -> None:
    """Say what can be done with a job that was sent."""
    echo(f"sent as {job_id}")
    echo(f"follow it with: {_command('logs', job_id, address)} --follow")
    echo(f"stop it with: {_command('stop', job_id, address)}")


def _command(name: str, job_id: str, address: str) -> str:
    return shlex.join(["toprovar-batch", name, job_id, "--address", address])


def _check_address(address: str) -> str:
    if not is_job_server(address):
        raise JobSpecError(
            f"--address {address}: is no address of Ray Jobs; name the dashboard of the head, such as http://head:8265"
        )
    return address


_ADDRESS = click.option(
    "--address", metavar="URL", required=True, help="Ray Jobs of the cluster, such as http://head:8265."
)


@click.command("logs")
@click.argument("job_id")
@_ADDRESS
@click.option("--follow", "following", is_flag=True, help="Go on until the job ends; exit with its code.")
def logs_command(job_id: str, address: str, following: bool) -> None:
    """Print what JOB_ID has said, a job that `submit --address` sent."""
    if following:
        follow(_check_address(address), job_id)
    else:
        log = _Log()
        log.tell(JobServer(_check_address(address)).logs(job_id))
        log.end()


@click.command("stop")
@click.argument("job_id")
@_ADDRESS
def stop_command(job_id: str, address: str) -> None:
    """Stop JOB_ID on its cluster: shards under way are finished, if the head gives them time."""
    stopped = JobServer(_check_address(address)).stop(job_id)
    echo(f"{job_id} is asked to stop" if stopped else f"{job_id} has ended already")
