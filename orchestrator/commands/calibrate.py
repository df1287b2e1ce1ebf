"""The `calibrate` command: from a few prompts of a job to a policy file for a requested amount of work, or of loss."""

import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from toprovar_batch import __version__
from toprovar_batch.orchestrator.commands.finite_range import FiniteRange
from toprovar_batch.orchestrator.commands.local_file import LocalFile
from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.job.checks import check_job, check_memory
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.policy_file import PROVENANCE
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan, plan_job
from toprovar_batch.orchestrator.steps import ToldSteps
from toprovar_batch.worker.errors import JobSpecError, OutputFolderError
from toprovar_batch.worker.pruning.policies.specs import PolicySpec
from toprovar_batch.worker.whole_file import write_whole

if TYPE_CHECKING:
    from toprovar_batch.orchestrator.calibration.search import Found, Goal


_HEADER = """\
# Found by toprovar-batch calibrate. Use it in a job as
#   policy: {file: PATH-OF-THIS-FILE}
"""


@click.command("calibrate")
@click.argument("job_file", metavar="JOB", type=str)
@click.option("--file", "target", type=LocalFile(), required=True, help="Policy file (YAML) to write.")
@click.option(
    "--fraction",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    help="Goal: token-layers over those of the dense model, mean over the prompts; 0.5 where no goal is named.",
)
@click.option(
    "--score-loss",
    type=FiniteRange(0),
    help="Goal: points of score that may be lost; for prompts that say what to expect, like jobs/geneval.yaml's.",
)
@click.option(
    "--ssim-loss",
    type=FiniteRange(0, 1),
    help="Goal: how much less than 1 the mean SSIM to the dense pictures may be.",
)
@click.option("--prompts", type=click.IntRange(1), default=32, show_default=True, help="Samples to look at.")
@click.option(
    "--global-layers",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.06,
    show_default=True,
    help="Share of the layers that must run whole, of toprovar.",
)
@click.option(
    "--replay",
    "replay_target",
    type=LocalFile(),
    help="Also write the mean pattern of work, as a replay policy: for timing.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
def calibrate_command(
    job_file: str,
    target: str,
    prompts: int,
    global_layers: float,
    replay_target: str | None,
    overrides: tuple[str, ...],
    **goals: float | None,
) -> None:
    """Run some samples of the job file JOB dense and write the policy that prunes as much as is requested.

    Where the job's policy is toprovar or detail, its switches and other settings are kept.
    """
    wished = _wished(goals)
    for option, path in (("--file", target), ("--replay", replay_target)):
        if path is not None:
            _check_target(option, path)
    job = load_job(job_file, overrides)
    _check_distinct(target, replay_target, job_file, job.prompts.source)
    if job.policy.name not in {"dense", "toprovar", "detail"}:
        raise JobSpecError(
            f"{job_file}: policy.name: {job.policy.name} cannot be calibrated; use toprovar or detail"
        )
    if replay_target is not None and job.policy.name == "detail":
        raise JobSpecError("--replay: it is written for toprovar alone; leave it out")
    sample = choose_sample(plan_job(job), prompts)
    if not sample.num_rows:
        raise JobSpecError(f"{job_file}: the job has no usable prompt to calibrate with")
    check_job(job)
    check_memory(job)
    from toprovar_batch.orchestrator.calibration.search import Calibration, Goal  # noqa: PLC0415 - imports torch

    goal = Goal(*wished)
    calibration = Calibration(job, sample, global_layers, ToldSteps())
    found = calibration.find(goal)
    for line in calibration.report(found):
        echo(line)
    provenance = _provenance(job, sample, goal, found) | calibration.circumstances()
    write_policy(found.policy, target, provenance)
    echo(f"written to {target}; a job uses it as policy: {{file: {target}}}")
    if replay_target is None:
        return
    replay = calibration.replay(found)
    if replay is None:
        echo(f"--replay: nothing is pruned, so there is no pattern of work; {replay_target} is not written")
        return
    write_policy(replay, replay_target, provenance)
    echo(f"its mean pattern of work is in {replay_target}")


def _check_target(option: str, path: str) -> None:
    """Raises now what writing the file would raise after all the work."""
    if not path:
        raise OutputFolderError(f"{option}: the name of the file is empty; give one")
    try:
        problem = _obstacle(path)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
    if problem:
        raise OutputFolderError(f"{option}: {problem}")


def _obstacle(path: str) -> str | None:
    file = Path(path)
    if file.is_dir():
        return f"{path} is a folder; name a file in it"
    parent = file.absolute().parent
    if not parent.is_dir():
        return f"the folder of {path} does not exist; make it first"
    # A file is written beside the one that is there, and takes its place; what is no file is written itself.
    places = (
        [file]
        if file.exists() and not file.is_file()
        else [file.resolve().parent, *([file] if file.exists() else [])]
    )
    if not all(os.access(place, os.W_OK) for place in places):
        return f"{path} may not be written; name another place, or change its permissions"
    if places[0].is_dir():  # permissions alone do not tell of read-only or special file systems
        tempfile.TemporaryFile(dir=places[0]).close()
    return None


def _check_distinct(target: str, replay_target: str | None, *inputs: str) -> None:
    """Keep what is written from taking the place of what is read, or of each other.

    Raises:
        OutputFolderError: two names are of one file.
    """
    written = {"--file": target} | ({} if replay_target is None else {"--replay": replay_target})
    known = {os.path.realpath(path): path for path in inputs}
    for option, path in written.items():
        place = os.path.realpath(path)
        if place in known:
            raise OutputFolderError(f"{option}: {path} would replace {known[place]}; name another file")
        known[place] = f"what {option} names"


def _wished(goals: Mapping[str, float | None]) -> tuple[str, float]:
    named = [(name, limit) for name, limit in goals.items() if limit is not None]
    if len(named) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name, _ in named)
        raise JobSpecError(f"{options} are {len(named)} goals; name one")
    return named[0] if named else ("fraction", 0.5)


def choose_sample(plan: SamplePlan, count: int) -> pa.Table:
    """Rows of the good samples of a plan, spread evenly."""
    good = plan.samples.filter(pc.is_null(plan.samples["prompt_error"]))
    count = min(count, good.num_rows)
    return good.take([index * good.num_rows // count for index in range(count)])


def _provenance(job: JobSpec, sample: pa.Table, goal: "Goal", found: "Found") -> dict[str, Any]:
    import torch  # noqa: PLC0415 - takes seconds

    identity = job_identity(job)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"toprovar-batch": __version__, "torch": str(torch.__version__)},
        "job": job.name,
        "prompts": sample.num_rows,
        "sample_ids": sample["sample_id"].to_pylist(),
        "goal": goal.name,
        "wished": goal.limit,
        "found_fraction": round(found.fraction, 6),
        **found.measured,
        "resolution": identity["image.resolution"],
        **{
            group: {
                key.removeprefix(f"{group}."): value
                for key, value in identity.items()
                if key.startswith(f"{group}.") and value is not None
            }
            for group in ("sampling", "model")
        },
    }


def write_policy(spec: PolicySpec, target: str, provenance: dict[str, Any]) -> None:
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
        write_whole(Path(target), text)
    except OSError as error:
        raise OutputFolderError(f"{target}: the policy file cannot be written: {error.strerror}") from error
