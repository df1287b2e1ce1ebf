"""`toprovar-batch submit`: from a job file to a dataset."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

import click

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.forgiving_stream import forgiving
from toprovar_batch.orchestrator.job.checks import check_job, check_memory
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.check import as_in_output, is_begun, plan_in_output
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, OutputFolder, open_output
from toprovar_batch.orchestrator.output.parts import (
    Findings,
    foreign_file_reasons,
    mend_sentence,
    missing_parts,
    read_footers,
)
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan, plan_job
from toprovar_batch.orchestrator.run.outcome import Outcome
from toprovar_batch.orchestrator.run.production import EngineFactory, make_shards
from toprovar_batch.orchestrator.run.ray_probe import cluster_address, is_job_server
from toprovar_batch.orchestrator.run.ray_session import refuse_dead_cluster
from toprovar_batch.orchestrator.run.record import RunLog
from toprovar_batch.orchestrator.run.shards_to_do import hopeless_shards, shards_to_do
from toprovar_batch.orchestrator.run.stop_signals import signal_of
from toprovar_batch.orchestrator.run.summary import RunSummary, total
from toprovar_batch.worker.errors import JobSpecError, RunFailedError, UserError
from toprovar_batch.worker.part_file import dataset_schema
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.words import counted


def submit(
    job_path: str,
    *,
    overrides: Sequence[str] = (),
    output: str | None = None,
    retry_errors: bool = False,
    engine_factory: EngineFactory | None = None,
    on_failure: Callable[[RunSummary], None] | None = None,
) -> RunSummary:
    """Generate a job's dataset, or what is missing of it.

    Args:
        job_path: the job file.
        overrides: `key=value` each; they win over the file.
        output: stands in for the job's output.
        retry_errors: also generate the error rows of published shards again; their good rows stay.
        engine_factory: makes the engine in each worker; None makes the job's own.
        on_failure: gets the summary of a run that an exception ends, before that is raised.

    Returns:
        How it ended; samples that failed and shards that were given up are in it, not raised.

    Raises:
        UserError: something in the job, its prompts, its model or its output must be mended.
        RunFailedError: no worker could be started, or the output could not be written at the end.
    """
    job = as_in_output(load_job(job_path, overrides, output=output))
    _check(job, engine_factory)
    plan = plan_in_output(job, plan_job(job))
    for warning in plan.warnings:
        echo(f"Warning: {warning}", err=True)
    schema = dataset_schema(field for field in plan.schema if field.name not in PLAN_COLUMNS)
    with open_output(job, plan, schema) as folder:
        parts = read_footers(folder, folder.finished(plan.num_shards), plan.num_shards, schema)
        for path, reason in foreign_file_reasons(folder, plan.num_shards).items():
            echo(f"Warning: {path}: {reason}; {mend_sentence(folder.url, 'it')}", err=True)
        hopeless = hopeless_shards(plan, parts) if retry_errors else {}
        if hopeless:
            rows = counted(sum(hopeless.values()), "row")
            echo(
                f"--retry-errors: {rows} in {counted(len(hopeless), 'part')} can never work, as their prompts cannot be used; "
                "these parts are left alone",
                err=True,
            )
        todo = shards_to_do(plan.num_shards, parts, retry_errors=retry_errors, hopeless=hopeless)
        summarise = partial(_summarise, job, plan, folder, parts, retry_errors)
        outcome = Outcome()
        if not todo:
            return summarise(outcome, 0.0, None)
        log, error = RunLog(folder, summarise), None
        try:
            make_shards(job, plan, schema, folder, todo, parts.good, engine_factory, outcome, log.stem)
            outcome = outcome.without(missing_parts(folder, outcome.committed, plan.num_shards))
        except KeyboardInterrupt as stop:  # before the dispatcher listened for it
            outcome.stopped_by = signal_of(stop)
        except BaseException as raised:  # noqa: BLE001 - it is raised again once it is on record
            error = raised
        if folder.is_new and isinstance(error, UserError) and not outcome.begun:
            raise error  # nothing ran, so nothing is left: a record would keep the folder
        summary = log.close(outcome, error)
        if summary.error is not None:
            if on_failure is not None:
                on_failure(summary)
            raise summary.error
    return summary


def _check(job: JobSpec, engine_factory: EngineFactory | None) -> None:
    """Find out in a second what a worker would say in twenty, and before anything is written.

    In a cluster only workers can tell of the model; whether it answers is asked for an output that is to be begun.
    """
    if not cluster_address(job.runtime):
        if engine_factory is None:
            check_job(job)
            check_memory(job)
    elif not is_begun(job):
        refuse_dead_cluster(job.runtime)


def _summarise(
    job: JobSpec,
    plan: SamplePlan,
    folder: OutputFolder,
    parts: Findings[ShardStats],
    retry_errors: bool,
    outcome: Outcome,
    wall_s: float,
    error: BaseException | None,
) -> RunSummary:
    damaged = parts.damaged | outcome.damaged
    published = {shard: stats for shard, stats in parts.good.items() if shard not in damaged}
    published |= outcome.committed
    return RunSummary(
        output=job.output,
        num_samples=plan.num_samples,
        num_shards=plan.num_shards,
        dataset=total(published.values()),
        this_run=total(outcome.committed.values()),
        finished_shards=len(published),
        wall_s=wall_s,
        num_workers=outcome.num_workers,
        num_lost=sum(incident["kind"] != "load" for incident in outcome.incidents),
        num_load_failures=sum(incident["kind"] == "load" for incident in outcome.incidents),
        flat_batches=sum(engine.get("flat_batches", 0) for engine in outcome.engines.values()),
        num_hopeless=plan.num_bad_samples,
        nameless_parts=sum(not stats.job for stats in published.values()),
        failed=outcome.failed,
        damaged=damaged,
        unreachable=parts.unreachable,
        paths={
            shard_id: folder.shown(folder.part(shard_id, plan.num_shards))
            for shard_id in (*damaged, *parts.unreachable)
        },
        retry_errors=retry_errors,
        stopped_by=outcome.stopped_by.name if outcome.stopped_by else None,
        error=error,
    )


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
    summary = submit(
        job,
        overrides=overrides,
        output=output,
        retry_errors=retry_errors,
        on_failure=partial(show, go_on=go_on),
    )
    finish(summary, go_on)


def resume_command(job: str, output: str | None, overrides: Sequence[str]) -> str:
    """Write the command line that continues a job."""
    words = ["toprovar-batch", "submit", job]
    words += ["--output", output] if output else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def show(summary: RunSummary, go_on: str) -> None:
    """Print the summary; `go_on` is the command that continues the job."""
    for line in summary.lines(go_on):
        echo(line)


def finish(summary: RunSummary, go_on: str) -> None:
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
