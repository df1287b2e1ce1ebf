"""The command line: one group whose commands are imported when they are called.

A command is a file of `commands/`. `COMMANDS` names it and its line of help. So `--help` imports none of them, and
`validate` never pays for torch or Ray.
"""

import importlib
from typing import Any

import click

from toprovar_batch import __version__
from toprovar_batch.orchestrator.console import echo, printable
from toprovar_batch.orchestrator.forgiving_stream import forgiving
from toprovar_batch.orchestrator.run.stop_signals import signal_of, sigterm_raises
from toprovar_batch.worker.arrow_alone import leave_pandas_out
from toprovar_batch.worker.errors import ToprovarError

# name: (module under toprovar_batch and the command in it, line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "submit": (
        "orchestrator.commands.submit:submit_command",
        "Generate the dataset of a job, or what is missing of it.",
    ),
    "logs": (
        "orchestrator.commands.ray_jobs:logs_command",
        "Print what a job on a cluster has said; --follow until it ends.",
    ),
    "stop": (
        "orchestrator.commands.ray_jobs:stop_command",
        "Stop a job on a cluster.",
    ),
    "status": (
        "orchestrator.commands.status:status_command",
        "Say how far a dataset is; --verify reads it all.",
    ),
    "fsck": (
        "orchestrator.commands.fsck:fsck_command",
        "Find what is wrong in a dataset's folder; --repair sets it right.",
    ),
    "validate": (
        "orchestrator.commands.validate:validate_command",
        "Check a job and its prompts without a GPU.",
    ),
    "verify": (
        "orchestrator.commands.verify:verify_command",
        "Compare with recorded vectors of the official model.",
    ),
    "evaluate": (
        "orchestrator.commands.evaluate:evaluate_command",
        "Score a dataset of known prompts, alone or against another.",
    ),
    "sheet": (
        "orchestrator.commands.sheet:sheet_command",
        "Draw a dataset's pictures with their prompts into one image.",
    ),
    "calibrate": (
        "orchestrator.commands.calibrate:calibrate_command",
        "Find a pruning policy for a requested amount of work.",
    ),
    "bench": (
        "orchestrator.commands.bench:bench_command",
        "Time generation: policies, batches, backends and dtypes side by side.",
    ),
    "bench-attention": (
        "orchestrator.commands.bench_attention:bench_attention_command",
        "Check the attention kernels on this GPU and time them beside PyTorch's.",
    ),
}


class OneLineUsageError(click.ClickException):
    """A command line that click refuses; shown as one line, without click's lines about usage."""

    exit_code = click.UsageError.exit_code

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(printable(" ".join(error.format_message().split())))


class LazyGroup(click.Group):
    """A click group that imports a command on its first use and prints every mistake in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of all commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command called `cmd_name`, or return None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        leave_pandas_out()
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(f"toprovar_batch.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the options that stand before the command."""
        if not args:  # prints the help
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise OneLineUsageError(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; one of our errors becomes one line on stderr and its exit code.

        A signal that stops it gives 128 and its number, as shells have it.
        """
        with forgiving("stderr"), sigterm_raises():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            number = signal_of(stop)
            echo(f"stopped by {number.name}", err=True)
            ctx.exit(128 + number)
        except click.UsageError as error:
            raise OneLineUsageError(error) from error
        except ToprovarError as error:
            echo(f"Error: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toprovar-batch")
def main() -> None:
    """Generate an image dataset from prompts: Infinity with entropy pruning, sharded over GPUs by Ray."""
