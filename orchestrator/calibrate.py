"""The `calibrate` command: from a few prompts of a job, run dense, to a policy file for a wished amount of work."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow.compute as pc
import yaml

from toprovar_batch import __version__
from toprovar_batch.orchestrator.job import JobSpec, load_job
from toprovar_batch.orchestrator.plan import Plan, plan_job
from toprovar_batch.orchestrator.policy_file import PROVENANCE
from toprovar_batch.worker.errors import JobSpecError, OutputFolderError
from toprovar_batch.worker.pruning.specs import ReplaySpec, ToprovarSpec
from toprovar_batch.worker.request import GenerationRequest

if TYPE_CHECKING:
    from toprovar_batch.worker.pruning.calibration import Recommendation, Recording

_CHART_WIDTH = 40
_HEADER = """\
# Found by toprovar-batch calibrate. Use it in a job as
#   policy: {file: PATH-OF-THIS-FILE}
"""


@click.command("calibrate")
@click.argument("job_file", metavar="JOB", type=str)
@click.option("--file", "target", required=True, help="Policy file (YAML) to write.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Wished token-layers over those of the dense model, mean over the prompts.",
)
@click.option("--prompts", type=click.IntRange(1), default=32, show_default=True, help="Samples to look at.")
@click.option(
    "--global-layers",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.06,
    show_default=True,
    help="Share of the layers that shall run whole.",
)
@click.option(
    "--replay", "replay_target", help="Also write the mean pattern of work, as a replay policy: for timing."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
def calibrate_command(
    job_file: str,
    target: str,
    fraction: float,
    prompts: int,
    global_layers: float,
    replay_target: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run some samples of the job file JOB dense and write the policy that prunes as much as is wished.

    Where the job's policy is toprovar, its switches and other settings are kept.
    """
    from toprovar_batch.worker.pruning.calibration import (  # noqa: PLC0415 - imports torch
        mean_pattern,
        recommend,
        simulate,
    )

    for option, path in (("--file", target), ("--replay", replay_target)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise OutputFolderError(f"{option}: the folder of {path} does not exist; make it first")
    job = load_job(job_file, overrides)
    if job.policy.name not in {"dense", "toprovar"}:
        raise JobSpecError(f"{job_file}: policy.name: {job.policy.name} cannot be calibrated; use toprovar")
    base = job.policy if isinstance(job.policy, ToprovarSpec) else ToprovarSpec()
    requests = choose_requests(plan_job(job), prompts)
    if not requests:
        raise JobSpecError(f"{job_file}: the job has no usable prompt to calibrate with")
    recordings = record(job, requests)
    found = recommend(base, recordings, fraction, global_layers)
    for line in report(found, recordings):
        click.echo(line)
    provenance = _provenance(job, len(requests), fraction, global_layers, found)
    write_policy(found.spec, target, provenance)
    click.echo(f"written to {target}; a job uses it as policy: {{file: {target}}}")
    if replay_target is not None:
        plan = mean_pattern([work for each in recordings for work in simulate(found.spec, each)])
        replay = ReplaySpec(plan=tuple(map(tuple, plan)), restoration=found.spec.restoration)
        write_policy(replay, replay_target, provenance)
        click.echo(f"its mean pattern of work is in {replay_target}")


def choose_requests(plan: Plan, count: int) -> list[GenerationRequest]:
    """Samples spread evenly over the good ones of a plan."""
    good = plan.samples.filter(pc.is_null(plan.samples["prompt_error"]))
    count = min(count, good.num_rows)
    places = [index * good.num_rows // count for index in range(count)]
    columns = ["sample_id", "prompt", "negative_prompt", "seed", "h_div_w"]
    return [GenerationRequest(**row) for row in good.take(places).select(columns).to_pylist()]


def record(job: JobSpec, requests: Sequence[GenerationRequest]) -> "list[Recording]":
    """Run samples dense on this machine and record the entropy of their attention."""
    from toprovar_batch.worker.engine import Engine  # noqa: PLC0415 - imports torch
    from toprovar_batch.worker.pruning.calibration import RecordingPolicy  # noqa: PLC0415
    from toprovar_batch.worker.pruning.policy import BatchContext  # noqa: PLC0415

    engine = Engine(job.engine_spec(), job.runtime)
    engine.setup()
    policies: list[RecordingPolicy] = []

    def make_policy(context: BatchContext) -> RecordingPolicy:
        policies.append(RecordingPolicy(context, guided=engine.settings.guided))
        return policies[-1]

    batches = engine.plan_batches(requests)
    with click.progressbar(batches, label="running dense") as bar:
        for batch in bar:
            engine.observe(batch, make_policy)
    return [policy.recording for policy in policies]


def report(found: "Recommendation", recordings: "Sequence[Recording]") -> Iterator[str]:
    """Draw rho of each scale and say what the found settings do."""
    from toprovar_batch.worker.pruning.calibration import simulate  # noqa: PLC0415 - imports torch

    yield "low-entropy ratio of each scale: lowest, mean and highest of the prompts"
    num_scales = len(recordings[0].schedule)
    for scale in range(num_scales):
        values = [value for each in recordings for value in each.low_entropy_ratios()[scale].tolist()]
        values = [value for value in values if not math.isnan(value)] or [0.0]
        low, mean, high = min(values), sum(values) / len(values), max(values)
        yield f"{scale:4d}  {low:.2f} {mean:.2f} {high:.2f}  |{_bar(low, mean, high)}|"
    works = [work for each in recordings for work in simulate(found.spec, each)]
    starts = Counter(work.pruning_start_scale for work in works)
    told = [
        f"{'none' if start == num_scales else f'scale {start}'} in {count}"
        for start, count in sorted(starts.items())
    ]
    yield f"pruning would start at {', '.join(told)} of {len(works)} prompts"
    spec = found.spec
    yield (
        f"depth_threshold {spec.depth_threshold:g}, beta {spec.beta:g}, a_min {spec.a_min:g}, a_max {spec.a_max:g}: "
        f"{found.fraction:.1%} of the dense token-layers"
    )


def _bar(low: float, mean: float, high: float) -> str:
    cells = [" "] * (_CHART_WIDTH + 1)
    first, middle, last = (round(value * _CHART_WIDTH) for value in (low, mean, high))
    cells[first : last + 1] = "-" * (last + 1 - first)
    cells[middle] = "#"
    return "".join(cells)


def _provenance(
    job: JobSpec, num_prompts: int, fraction: float, global_layers: float, found: "Recommendation"
) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - takes seconds

    identity = job.identity()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"toprovar-batch": __version__, "torch": str(torch.__version__)},
        "job": job.name,
        "prompts": num_prompts,
        "wished_fraction": fraction,
        "found_fraction": round(found.fraction, 6),
        "global_layers": global_layers,
        "resolution": identity["image.resolution"],
        "model": {
            key.removeprefix("model."): value
            for key, value in identity.items()
            if key.startswith("model.") and value is not None
        },
    }


def write_policy(spec: ToprovarSpec | ReplaySpec, target: str, provenance: dict[str, Any]) -> None:
    """Write a policy file.

    Raises:
        OutputFolderError: it cannot be written.
    """
    content = {**spec.model_dump(mode="json", exclude={"pruning_map"}), PROVENANCE: provenance}
    content = {
        "name": content.pop("name"),
        **{key: value for key, value in content.items() if value is not None},
    }
    text = _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputFolderError(f"{target}: the policy file cannot be written: {error.strerror}") from error
