"""`make chaos`: faults at seeded random moments of small jobs, and a table of what they did.

Every try has a seed of its own. It decides all moments, and whether another process keeps a core busy meanwhile.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import cluster_faults
import dataset_faults
import faults
import loading_faults
import secret_faults
import storage_faults
from scene import Scene, Skipped, Verdict, read_rows, stable

FAULTS = {
    function.__name__.replace("_", "-"): function
    for function in (
        faults.worker_kill,
        faults.driver_kill,
        faults.raylet_kill,
        faults.gcs_kill,
        faults.sigint,
        faults.sigint_twice,
        faults.sigterm,
        faults.closed_stderr,
        faults.worker_stop,
        faults.driver_stop,
        faults.other_cores,
        faults.poison_prompt,
        faults.exception_prompt,
        faults.broken_environment,
        faults.broken_from_the_start,
        faults.broken_worker,
        faults.begun_again,
        faults.two_drivers,
        loading_faults.dead_address,
        loading_faults.loading_kill,
        loading_faults.loading_hang,
        loading_faults.loading_error,
        loading_faults.nan_weights,
        loading_faults.raylet_and_worker_kill,
        cluster_faults.node_kill,
        cluster_faults.cluster_raylet_kill,
        cluster_faults.head_raylet_kill,
        cluster_faults.head_node_kill,
        cluster_faults.cluster_gcs_kill,
        cluster_faults.late_node,
        cluster_faults.node_without_output,
        storage_faults.disk_full,
        storage_faults.disk_full_for_good,
        storage_faults.read_only_disk,
        storage_faults.s3_failing,
        storage_faults.s3_slow,
        storage_faults.slow_upload,
        storage_faults.s3_refusing,
        storage_faults.s3_dead,
        storage_faults.two_drivers_on_s3,
        storage_faults.two_jobs_on_s3,
        storage_faults.no_output,
        storage_faults.truncated_weights,
        dataset_faults.foreign_part,
        dataset_faults.damaged_part,
        dataset_faults.damaged_record,
        dataset_faults.fsck_repair,
        dataset_faults.corrupt_kept_rows,
        dataset_faults.retry_errors_kill,
        dataset_faults.read_meanwhile,
        dataset_faults.sheet_on_full_disk,
        secret_faults.secrets,
    )
}
HEADING = (
    "fault",
    "tries",
    "lost",
    "doubled",
    "wrong error rows",
    "byte-equal",
    "recovery s",
    "failed checks",
)


class Undisturbed:
    """The rows of undisturbed datasets, each job made once."""

    def __init__(self, folder):
        self.folder, self._rows = folder, {}

    def __call__(self, prompts, seed, engine):
        """Rows by sample id, of a run that nothing disturbed and in which prompts order nothing."""
        key = (prompts, seed, engine)
        if key not in self._rows:
            scene = Scene(self.folder / f"undisturbed-{len(self._rows)}", 0, engine, self)
            try:
                scene.prompts, scene.job_seed, scene.obedient = prompts, seed, False
                scene.complete()
                if scene.problems:
                    raise click.ClickException(f"the undisturbed run failed: {scene.problems}")
                self._rows[key] = {row["sample_id"]: stable(row) for row in read_rows(scene.output)}
                if len(self._rows[key]) != len(prompts):
                    raise click.ClickException("the undisturbed run is not whole")
            finally:
                scene.close()
        return self._rows[key]


@contextlib.contextmanager
def load(busy):
    """Keep a core busy for the length of the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def attempt(fault, seed, folder, engine, undisturbed):
    """Try a fault once."""
    scene = Scene(folder / f"{fault}-{seed}", f"{fault} {seed}", engine, undisturbed)
    try:
        with load(busy=seed % 2):
            return FAULTS[fault](scene)
    except Skipped as reason:
        return Verdict(skipped=str(reason))
    except Exception as error:  # noqa: BLE001 - one try more or less; it is told
        scene.problems.append(f"{type(error).__name__}: {error}")
        return Verdict(problems=scene.problems)
    finally:
        scene.close()  # what it cannot end is a problem, too


def row(fault, verdicts):
    """A fault's line of the table."""
    tried = [verdict for verdict in verdicts if not verdict.skipped]
    times = [verdict.recovery_s for verdict in tried if verdict.recovery_s is not None]
    return {
        "fault": fault,
        "tries": len(tried),
        "lost": sum(verdict.lost for verdict in tried),
        "doubled": sum(verdict.doubled for verdict in tried),
        "wrong error rows": sum(verdict.wrong_errors for verdict in tried),
        "byte-equal": f"{sum(verdict.is_equal for verdict in tried)} of {len(tried)}",
        "recovery s": f"{statistics.median(times):.1f} (at most {max(times):.1f})" if times else "",
        "failed checks": sum(not verdict.is_good for verdict in tried),
    }


@click.command()
@click.option("--only", multiple=True, type=click.Choice(sorted(FAULTS)), help="This fault; may be repeated.")
@click.option("--tries", default=2, show_default=True, help="Tries of each fault.")
@click.option("--seed", default=0, show_default=True, help="Of the first try; later ones count on.")
@click.option("--engine", type=click.Choice(["drawn", "model"]), default="drawn", show_default=True)
@click.option("--limit", default=3600.0, show_default=True, help="Seconds after which no try begins.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of the table.")
def main(only, tries, seed, engine, limit, as_json):
    """Strike small jobs with faults, and compare every dataset with the undisturbed one."""
    start = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started it in the background
        signal.signal(number, signal.default_int_handler)
    # Ray's sockets lie below this folder, and their paths have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["RAY_TMPDIR"] = str(folder / "ray")
    os.environ.pop("RAY_ADDRESS", None)
    undisturbed, rows, good = Undisturbed(folder), [], True
    if not as_json:
        click.echo("| " + " | ".join(HEADING) + " |\n" + "| --- " * len(HEADING) + "|")
    try:
        for fault in only or FAULTS:
            verdicts = []
            for number in range(seed, seed + tries):
                if time.monotonic() - start > limit:
                    break
                verdict = attempt(fault, number, folder, engine, undisturbed)
                verdicts.append(verdict)
                good &= verdict.is_good
                if verdict.skipped:
                    click.echo(f"{fault}: skipped: {verdict.skipped}", err=True)
                elif not verdict.is_good:
                    click.echo(
                        f"{fault} failed: {verdict}\n  repeat: --only {fault} --seed {number} --tries 1",
                        err=True,
                    )
            rows.append(row(fault, verdicts))
            if not as_json:
                click.echo("| " + " | ".join(str(cell) for cell in rows[-1].values()) + " |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - start)
    if as_json:
        click.echo(json.dumps({"engine": engine, "seed": seed, "seconds": seconds, "faults": rows}, indent=2))
    else:
        click.echo(f"engine {engine}, seeds {seed} to {seed + tries - 1}, {seconds} s")
    sys.exit(not good)


if __name__ == "__main__":
    main()
