"""`toprovar-batch fsck`: what is wrong in a dataset's folder. Reads the folder only; needs neither Ray nor the job file."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import click

from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.orchestrator.output.fsck import Examination, examine
from toprovar_batch.orchestrator.run.summary import error_lines, hopeless_sentence, stats_record, total
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.words import counted

_MOST_RANGES = 20  # of missing shards named in a line; the JSON record has them all


def fsck_record(examination: Examination) -> dict[str, Any]:
    """Put what was found into a JSON-able record."""
    totals = total(examination.good.values())
    return {
        "name": examination.job["name"],
        "shards": examination.job["num_shards"],
        "shards_good": len(examination.good),
        "missing": examination.missing,
        "failed_rows": totals.errors,
        "hopeless_rows": examination.num_hopeless,
        "error_kinds": stats_record(totals)["error_kinds"],
        "compared_with_plan": examination.has_plan,
        "findings": [asdict(finding) for finding in examination.findings],
    }


@click.command()
@click.argument("output", type=str)
@click.option(
    "--repair", is_flag=True, help="Move what is damaged or foreign to _job/removed; delete stale files."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record.")
def fsck_command(output: str, repair: bool, as_json: bool) -> None:
    """Find what is wrong in OUTPUT, reading all of it; no run may be going on there."""
    examination = examine(output, repair=repair)
    if as_json:
        echo_json(fsck_record(examination))
    else:
        for line in _lines(examination):
            echo(line)
    left = [finding for finding in examination.findings if not finding.is_done]
    if left:
        raise RunFailedError(
            f"{output}: {counted(len(left), 'thing is', 'things are')} wrong with what is there, the first: "
            f"{left[0].path}: {left[0].reason}; {left[0].repair}"
        )


def _lines(examination: Examination) -> Iterator[str]:
    job, totals = examination.job, total(examination.good.values())
    yield f"{job['name']}: {len(examination.good):,} of {counted(job['num_shards'], 'shard')} good"
    if not examination.findings:
        yield "nothing is wrong with what is there"
    for finding in examination.findings:
        yield f"{finding.kind}: {finding.path}: {finding.reason}; {finding.repair}"
    if examination.missing:
        yield (
            f"missing: {counted(len(examination.missing), 'shard')} ({_ranges(examination.missing)}); "
            "submit the job again, which makes them"
        )
    if totals.errors:
        yield f"failed: {counted(totals.errors, 'row')}; {_advice(totals.errors, examination.num_hopeless)}"
        yield from error_lines(totals)
    if not examination.has_plan:
        yield "samples and seeds were not compared: there is no whole plan, and the next submit writes a lost one"


def _advice(num_errors: int, num_hopeless: int | None) -> str:
    """Say what helps failed rows: another try, or other prompts."""
    if num_hopeless is None:
        return "submit --retry-errors makes those again whose prompts can be used"
    if not num_hopeless:
        return "submit --retry-errors makes them again"
    if num_hopeless >= num_errors:
        return hopeless_sentence("them")
    again = f"submit --retry-errors makes {num_errors - num_hopeless:,} of them again"
    return f"{again}; {hopeless_sentence(f'the other {num_hopeless:,}')}"


def _ranges(numbers: Iterable[int]) -> str:
    """The first of ascending numbers, those in a row as one range: "0, 4-7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in spans[:_MOST_RANGES]]
    return ", ".join(shown) + (", ..." if len(spans) > _MOST_RANGES else "")
