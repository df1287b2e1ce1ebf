"""`toprovar-batch status`: how far a dataset is. Reads the folder only; needs neither Ray nor the job file."""

import json
import posixpath
from typing import Any

import click

from toprovar_batch.orchestrator.dataset import read_footers, verify_parts
from toprovar_batch.orchestrator.manifest import JOB_FOLDER, OutputFolder, locate_output, storage_errors
from toprovar_batch.orchestrator.summary import error_lines, stats_record, time_lines, total
from toprovar_batch.worker.errors import OutputFolderError, RunFailedError
from toprovar_batch.worker.shard_stats import ShardStats


def read_status(output: str, *, verify: bool = False) -> dict[str, Any]:
    """Look at an output folder.

    Args:
        output: local path or fsspec URL.
        verify: read every part from end to end, too.

    Returns:
        A JSON-able record: the job's size, the shards that are done, sums over their rows, the unreadable
        parts with the reason, and the past runs with their speed.

    Raises:
        OutputFolderError: there is no job's output.
    """
    folder = locate_output(output)
    try:
        job = folder.read_job()
        if job is None:
            raise OutputFolderError(f"{output}: no dataset of a job is here (no _job/job.json)")
        num_shards = job["num_shards"]
        finished = folder.finished(num_shards)
        stats, damaged = read_footers(folder, finished, num_shards)
        if verify:
            damaged |= verify_parts(folder, stats, num_shards)
        runs = _read_runs(folder)
    except storage_errors() as error:
        raise OutputFolderError(f"{output}: cannot be read: {error}") from error
    return {
        "name": job["name"],
        "samples": job["num_samples"],
        "shards": num_shards,
        "shards_done": len(finished),
        "totals": stats_record(total(stats.values())),
        "damaged": {
            folder.part(shard_id, num_shards): reason for shard_id, reason in sorted(damaged.items())
        },
        "verified": verify,
        "runs": runs,
    }


def _read_runs(folder: OutputFolder) -> list[dict[str, Any]]:
    """Read the records of past runs, oldest first, without their engines."""
    try:
        names = sorted(folder.filesystem.ls(folder.inside(JOB_FOLDER, "runs"), detail=False))
    except FileNotFoundError:
        return []
    shown = ("started", "workers", "seconds", "images_per_second", "stopped_by")
    records = [(posixpath.basename(name), json.loads(folder.filesystem.cat_file(name))) for name in names]
    return [{"name": name, **{key: record[key] for key in shown}} for name, record in records]


@click.command()
@click.argument("output", type=str)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record.")
@click.option("--verify", is_flag=True, help="Read every part from end to end; exit 1 if one is damaged.")
def status_command(output: str, as_json: bool, verify: bool) -> None:
    """Say how far the dataset in OUTPUT is."""
    status = read_status(output, verify=verify)
    if as_json:
        click.echo(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        _print(status)
    if status["damaged"]:
        raise RunFailedError(
            f"{len(status['damaged'])} parts are damaged; delete them and submit the job again: "
            + "; ".join(f"{path}: {reason}" for path, reason in list(status["damaged"].items())[:3])
        )


def _print(status: dict[str, Any]) -> None:
    totals = ShardStats.from_json(status["totals"])
    click.echo(f"{status['name']}: {status['shards_done']} of {status['shards']} shards done")
    click.echo(f"{totals.ok:,} images, {totals.errors:,} failed, of {status['samples']:,} samples")
    for line in (*error_lines(totals), *time_lines(totals)):
        click.echo(line)
    for run in status["runs"]:
        ending = f", stopped by {run['stopped_by']}" if run["stopped_by"] else ""
        speed = f"{run['images_per_second']:.2f} images/s with {run['workers']} workers"
        click.echo(f"run of {run['started']}: {run['seconds']:.0f} s, {speed}{ending}")
    if status["verified"]:
        click.echo(
            f"{len(status['damaged'])} damaged parts" if status["damaged"] else "every part reads back whole"
        )
