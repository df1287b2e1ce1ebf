"""`toprovar-batch status`: how far a dataset is. Reads the folder only; needs neither Ray nor the job file."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output
from toprovar_batch.orchestrator.output.names import LOCK_FILE
from toprovar_batch.orchestrator.output.parts import (
    damaged_sentence,
    foreign_file_reasons,
    mend_sentence,
    planned_schema,
    read_footers,
    unreachable_sentence,
    verify_parts,
)
from toprovar_batch.orchestrator.output.run_lock import last_holder
from toprovar_batch.orchestrator.run.rates import growth
from toprovar_batch.orchestrator.run.record import read_log, read_records
from toprovar_batch.orchestrator.run.summary import (
    computation_lines,
    error_lines,
    nameless_lines,
    stats_record,
    time_lines,
    total,
    truncation_lines,
)
from toprovar_batch.worker.errors import OutputFolderError, RunFailedError
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.storage import explain_storage, storage_errors
from toprovar_batch.worker.words import counted


def read_status(output: str, *, verify: bool = False) -> dict[str, Any]:
    """Look at an output folder.

    Args:
        output: local path or fsspec URL.
        verify: read every part from end to end, too.

    Returns:
        A JSON-able record: the job's size, the shards that are done, sums over their rows, the damaged parts
        and those that the storage does not give now, each with the reason, and the past runs with their speed.

    Raises:
        OutputFolderError: there is no job's output, or no plan to verify it by.
    """
    folder = locate_output(output)
    try:
        job = folder.need_job()
        folder = folder.owned_by(job)
        num_shards = job["num_shards"]
        finished = folder.finished(num_shards)
        parts = read_footers(folder, finished, num_shards, planned_schema(folder))
        damaged, unreachable = parts.damaged, parts.unreachable
        if verify:
            verified = verify_parts(folder, parts.good, num_shards)
            damaged, unreachable = damaged | verified.damaged, unreachable | verified.unreachable
        foreign = foreign_file_reasons(folder, num_shards)
        runs, log = read_records(folder), read_log(folder)
    except storage_errors() as error:
        raise OutputFolderError(
            f"{output} cannot be read now: {explain_storage(error)}; try again later"
        ) from error
    return {
        "name": job["name"],
        "samples": job["num_samples"],
        "shards": num_shards,
        "shards_done": len(finished),
        "nameless_parts": sum(not stats.job for stats in parts.good.values()),
        "totals": stats_record(total(parts.good.values())),
        "damaged": _by_path(folder, num_shards, damaged) | foreign,
        "unreachable": _by_path(folder, num_shards, unreachable),
        "verified": verify,
        "runs": runs,
        "log": log,
        "driver": _driver(folder, runs) if len(finished) < num_shards else None,
        "speed": _speed(parts.good.values(), job["num_samples"], runs),
    }


def _driver(folder: OutputFolder, runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Who runs the job now, or died over it; None where nobody is known to: object storage has no lock."""
    holder = last_holder(Path(folder.inside(*LOCK_FILE))) if folder.is_local else None
    ended = [datetime.fromisoformat(run["started"]) for run in runs if "started" in run]
    # A run ends with a record of its own, which begins no earlier than its lock.
    if holder is None or any(start >= datetime.fromisoformat(holder.since) for start in ended):
        return None
    return {"host": holder.host, "pid": holder.pid, "since": holder.since, "alive": holder.is_alive}


def _speed(
    parts: Iterable[ShardStats], num_samples: int, runs: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """How fast the parts of the present run come; those of runs that ended do not count."""
    ends = [
        datetime.fromisoformat(run["started"])
        + timedelta(seconds=run["seconds"] + 1)  # told in whole seconds
        for run in runs
        if "started" in run
    ]
    parts = list(parts)
    left = num_samples - sum(part.rows for part in parts)
    rates = growth(parts, left, datetime.now(UTC), max(ends, default=None)) if left else None
    if rates is None:
        return None
    return asdict(rates) | {"since": rates.since.isoformat(timespec="seconds")}


def _by_path(folder: OutputFolder, num_shards: int, reasons: dict[int, str]) -> dict[str, str]:
    """Reasons by the paths of the parts, instead of by shard."""
    return {
        folder.shown(folder.part(shard_id, num_shards)): reason
        for shard_id, reason in sorted(reasons.items())
    }


@click.command()
@click.argument("output", type=str)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record.")
@click.option("--verify", is_flag=True, help="Read every part from end to end; exit 1 if one is damaged.")
@click.option("--watch", is_flag=True, help="Look again and again, until all shards are done or Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(1),
    default=10,
    show_default=True,
    help="Seconds between looks of --watch.",
)
def status_command(output: str, as_json: bool, verify: bool, watch: bool, every: float) -> None:
    """Say how far the dataset in OUTPUT is."""
    status = read_status(output, verify=verify)
    while watch and status["shards_done"] < status["shards"]:
        if as_json:
            echo_json(status, indent=None)
        else:
            click.clear()  # of a terminal; elsewhere it does nothing
            _print(status)
        time.sleep(every)
        status = read_status(output, verify=verify)
    if as_json:
        echo_json(status)
    else:
        _print(status)
    troubles = []
    if status["damaged"]:
        troubles.append(
            f"{counted(len(status['damaged']), 'part is', 'parts are')} damaged; {mend_sentence(output)}: "
            + _first(status["damaged"], damaged_sentence)
        )
    if status["unreachable"]:
        troubles.append(
            f"{counted(len(status['unreachable']), 'part')} cannot be read now; try again later: "
            + _first(status["unreachable"], unreachable_sentence)
        )
    if troubles:
        raise RunFailedError("; ".join(troubles))


def _first(parts: dict[str, str], sentence: Callable[[str, str], str]) -> str:
    """Name the first few parts with what is the matter with them."""
    return "; ".join(sentence(path, reason) for path, reason in list(parts.items())[:3])


def _present(status: dict[str, Any]) -> Iterator[str]:
    """Say who works on the dataset now, and how fast."""
    driver, speed = status["driver"], status["speed"]
    if driver is not None:
        state = {True: "running", False: "dead", None: "running, or dead"}[driver["alive"]]
        yield f"{state}: process {driver['pid']} on {driver['host']} since {driver['since']}"
    if speed is None:
        return
    left = "" if speed["left_s"] is None else f", {timedelta(seconds=round(speed['left_s']))} left"
    yield f"{speed['now']:.2f} images/s now, {speed['average']:.2f} on average since {speed['since']}{left}"
    for name, worker in speed["workers"].items():
        silent = "" if worker["active"] else ", overdue"
        yield (
            f"  {name}: {worker['images_per_second']:.2f} images/s, {counted(worker['images'], 'image')} in "
            f"{counted(worker['shards'], 'shard')}, the last {worker['silent_s']:.0f} s ago{silent}"
        )


def _print(status: dict[str, Any]) -> None:
    totals = ShardStats.from_json(status["totals"])
    echo(f"{status['name']}: {status['shards_done']} of {counted(status['shards'], 'shard')} done")
    echo(
        f"{counted(totals.ok, 'image')}, {totals.errors:,} failed, of {counted(status['samples'], 'sample')}"
    )
    nameless = nameless_lines(status["nameless_parts"])
    for line in (
        *error_lines(totals),
        *truncation_lines(totals),
        *computation_lines(totals),
        *nameless,
        *time_lines(totals),
    ):
        echo(line)
    for line in _present(status):
        echo(line)
    for run in status["runs"]:
        if "error" in run:
            echo(f"{run['name']}: {run['error']}")
            continue
        ending = f", stopped by {run['stopped_by']}" if run["stopped_by"] else ""
        ending += f", ended by {run['failure']['message']}" if run["failure"] else ""
        speed = f"{run['images_per_second']:.2f} images/s with {counted(run['workers'], 'worker')}"
        echo(f"run of {run['started']}: {run['seconds']:.0f} s, {speed}{ending}")
    if status["log"]:
        echo(f"log of the last run: {status['log'][-1]}")
    if status["verified"]:
        bad = [
            f"{counted(len(status[kind]), 'part')} {words}"
            for kind, words in (("damaged", "damaged"), ("unreachable", "cannot be read now"))
            if status[kind]
        ]
        echo(", ".join(bad) or "every part reads back whole")
