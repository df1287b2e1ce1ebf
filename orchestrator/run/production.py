"""A run, put together: Ray, workers, the ledger of shards, and who hears of them."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import pyarrow as pa

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.folder import OutputFolder
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.orchestrator.prompts.shard_size import idle_sentence
from toprovar_batch.worker.actor import GenerationEngine, build_engine
from toprovar_batch.worker.shard_events import ShardTask
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.words import counted

from .dispatch import Dispatcher
from .engine_watch import EngineWatch
from .fleet import Fleet
from .handing_out import shards_together
from .journal import Journal
from .ledger import Assignment, ShardLedger
from .load_guard import LoadGuard
from .metrics import RunMetrics
from .observer import Observers
from .outcome import Outcome
from .progress import ProgressBar
from .published import PublishedParts
from .ray_probe import cluster_address
from .ray_session import is_joined, ray_session, uses_gpus
from .summary import total

EngineFactory = Callable[[], GenerationEngine]


def make_shards(
    job: JobSpec,
    plan: SamplePlan,
    schema: pa.Schema,
    folder: OutputFolder,
    todo: Sequence[int],
    published: dict[int, ShardStats],
    engine_factory: EngineFactory | None,
    outcome: Outcome,
    stem: str,
) -> None:
    """Make shards with workers of Ray, under a progress bar.

    Args:
        job: what to make, and where it runs.
        plan: its samples.
        schema: of the dataset.
        folder: the output, whose lock is held.
        todo: ids of the shards to make.
        published: what the parts say that are there already.
        engine_factory: makes the engine in each worker; None makes the job's own.
        outcome: filled as things happen.
        stem: name of the run's log, without its ending.

    Raises:
        UserError: Ray, the model or the output must be mended.
        RunFailedError: the run cannot go on.
    """
    runtime = job.runtime
    labels = {"model": job.model.preset, "policy": job.policy.name}

    def make_task(assignment: Assignment) -> ShardTask:
        shard_id = assignment.shard_id
        target = folder.part_url(shard_id, plan.num_shards)
        return ShardTask(
            shard_id=shard_id,
            samples=plan.shard(shard_id),
            schema=schema,
            target=target,
            scratch=folder.scratch,
            labels=labels,
            attempt=assignment.attempt,
            suspects=assignment.suspects,
            poisoned=assignment.poisoned,
            kept=target if shard_id in published else None,
            job=folder.job,
            record=folder.job_url,
        )

    kept = total(published.values())
    errors_again = total(stats for shard_id, stats in published.items() if shard_id in set(todo)).errors
    done = kept.rows - errors_again
    address = cluster_address(runtime)
    begin = f"job {job.name}: {counted(len(todo), 'shard')} to do of {plan.num_shards}"
    with closing(ProgressBar(plan.num_samples, done, kept.errors - errors_again)) as bar:
        if not is_joined():
            bar.starts(f"joining Ray at {address}" if address else "starting Ray")
        with ray_session(runtime):
            on_gpus = uses_gpus(runtime)
            fleet = Fleet(
                engine_factory or engine_of(job, on_gpus=on_gpus),
                on_gpus=on_gpus,
                num_workers=runtime.num_workers,
                cpus_per_worker=runtime.cpus_per_worker,
                stall_timeout_s=runtime.stall_timeout_s,
                load_timeout_s=runtime.load_timeout_s,
                may_grow=address is not None,
            )
            # What is left of a dataset may be too little for all, and nothing is to mend.
            if len(todo) == plan.num_shards:
                idle = idle_sentence(plan.num_samples, plan.shard_size, fleet.room())
                bar.say(f"Warning: {idle}") if idle else None
            ledger = ShardLedger(todo, runtime.max_shard_attempts)
            guard = LoadGuard(runtime.max_load_failures)
            watch = EngineWatch(kept.computed_with)
            parts = PublishedParts(folder, plan.num_shards, schema, published)
            together = shards_together(plan.shard_size)
            with Journal(folder, stem, begin, bar.say) as journal:
                observers = Observers([bar, journal, RunMetrics(str(job.name))])
                Dispatcher(ledger, fleet, guard, make_task, observers, watch, parts, outcome, together).run()


def engine_of(job: JobSpec, *, on_gpus: bool) -> EngineFactory:
    """What makes a job's engine in a worker."""
    # "auto" is settled here, for all workers alike: a worker with a GPU must not fall back to its CPU unseen.
    runtime = job.runtime.model_copy(update={"device": "cuda" if on_gpus else "cpu"})
    return partial(build_engine, job.resolved, runtime, job.runtime.cpus_per_worker)
