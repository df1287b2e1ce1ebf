"""`toprovar-batch validate`: everything about a job that can be checked without a GPU."""

from typing import Any

import click

from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.orchestrator.job.checks import check_job, check_memory, check_remote_files
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.check import as_in_output, check_output, plan_in_output
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan, plan_job
from toprovar_batch.orchestrator.run.ray_probe import check_ray, cluster_address
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.words import counted

_LABEL_WIDTH = 9
_RAY_ANSWER_S = 10.0  # a run waits longer, for a head that is busy


@click.command("validate")
@click.argument("job_file", metavar="JOB")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in sampling.seed=7."
)
@click.option("--output", metavar="DIR", help="Folder or URL of the dataset, instead of the job's.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record.")
def validate_command(job_file: str, overrides: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Check the job file JOB, its prompts, model files, output folder and Ray cluster, without a GPU."""
    try:
        job = as_in_output(load_job(job_file, overrides, output=output))
        model_lines = check_job(job)
        plan = plan_in_output(job, plan_job(job))
        output_state = check_output(job, plan)
        warnings = [
            *plan.warnings,
            *([] if cluster_address(job.runtime) else check_memory(job, elsewhere=True)),
            *check_remote_files(job.resolved.model.files),
            *check_ray(job.runtime, _RAY_ANSWER_S),
        ]
    except UserError as error:
        if as_json:
            echo_json({"valid": False, "error": str(error)})
        raise
    if as_json:
        record = _record(job, plan, model_lines, output_state) | {"warnings": warnings}
        echo_json({"valid": True} | record)
        return
    for label, text in _summary(job, plan, model_lines, output_state):
        echo(f"{label:<{_LABEL_WIDTH}}{text}")
    for warning in warnings:
        echo(f"{'warning':<{_LABEL_WIDTH}}{warning}")
    echo("The job is valid.")


def _record(job: JobSpec, plan: SamplePlan, model_lines: list[str], output_state: str) -> dict[str, Any]:
    """What `--json` prints, but for the warnings."""
    return {
        "job": job.name,
        "prompts": plan.num_prompts,
        "prompts_unusable": plan.num_bad_prompts,
        "prompts_source": job.prompts.source,
        "samples": plan.num_samples,
        "shards": plan.num_shards,
        "shard_size": plan.shard_size,
        "model": job.model.preset,
        "model_files": dict(line.split(": ", 1) for line in model_lines),
        "policy": job.policy.name,
        "output": job.output,
        "output_state": output_state,
    }


def _summary(
    job: JobSpec, plan: SamplePlan, model_lines: list[str], output_state: str
) -> list[tuple[str, str]]:
    """Lines of the report, each with its label."""
    model = [("", line) for line in model_lines]
    shards = f"{counted(plan.num_shards, 'shard')} of up to {plan.shard_size}"
    return [
        ("job", str(job.name)),
        (
            "prompts",
            f"{plan.num_prompts:,} from {job.prompts.source}, {plan.num_bad_prompts:,} of them unusable",
        ),
        ("samples", f"{plan.num_samples:,} in {shards}"),
        ("model", job.model.preset),
        *model,
        ("policy", job.policy.name),
        ("output", f"{job.output} ({output_state})"),
    ]
