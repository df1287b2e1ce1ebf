"""From a job to a dataset."""

from collections.abc import Callable, Sequence
from functools import partial

from toprovar_batch.orchestrator.console import echo
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
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.part_file import dataset_schema
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.words import counted

from .outcome import Outcome
from .production import EngineFactory, make_shards
from .ray_probe import cluster_address
from .ray_session import refuse_dead_cluster
from .record import RunLog
from .shards_to_do import hopeless_shards, shards_to_do
from .stop_signals import signal_of
from .summary import RunSummary, total


def submit(
    job_path: str,
    *,
    overrides: Sequence[str] = (),
    output: str | None = None,
    retry_errors: bool = False,
    engine_factory: EngineFactory | None = None,
    on_failure: Callable[[RunSummary], None] | None = None,
) -> RunSummary:
    """Load a job, check it, and generate its dataset; see `submit_job`.

    Args:
        job_path: the job file.
        overrides: `key=value` each; they win over the file.
        output: stands in for the job's output.
        retry_errors: see `submit_job`, as all that follow.
        engine_factory: also takes the place of checks of the model.
        on_failure: see there.

    Raises:
        UserError, RunFailedError: see there.
    """
    job = load_job(job_path, overrides, output=output)
    if engine_factory is None or cluster_address(job.runtime):
        check_to_run(job)
    return submit_job(job, retry_errors=retry_errors, engine_factory=engine_factory, on_failure=on_failure)


def check_to_run(job: JobSpec) -> None:
    """Find out in a second what a worker would say in twenty, and before anything is written.

    In a cluster only workers can tell of the model; whether it answers is asked for an output that is to be begun.

    Raises:
        UserError: something in the job or its model must be mended, or the cluster does not answer.
    """
    if not cluster_address(job.runtime):
        check_job(job)
        check_memory(job)
    elif not is_begun(job):
        refuse_dead_cluster(job.runtime)


def submit_job(
    job: JobSpec,
    *,
    retry_errors: bool = False,
    engine_factory: EngineFactory | None = None,
    on_failure: Callable[[RunSummary], None] | None = None,
) -> RunSummary:
    """Generate a job's dataset, or what is missing of it.

    Args:
        job: in which `check_to_run` has found no fault.
        retry_errors: also generate the error rows of published shards again; their good rows stay.
        engine_factory: makes the engine in each worker; None makes the job's own.
        on_failure: gets the summary of a run that an exception ends, before that is raised.

    Returns:
        How it ended; samples that failed and shards that were given up are in it, not raised.

    Raises:
        UserError: something in the job, its prompts, its model or its output must be mended.
        RunFailedError: no worker could be started, or the output could not be written at the end.
    """
    job = as_in_output(job)
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
