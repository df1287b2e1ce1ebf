"""The record of `quality` as tables.

`python -m toprovar_batch.worker.reference.quality_tables quality.json` prints every comparison in Markdown, as the
documentation has them.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from .studies.comparisons import COMPARISONS

Records = Mapping[str, Mapping[str, Any]]
"""Of `QualityBench.compare`: name -> numbers, dense among them."""

_HEAD: Final = ("policy", "work", "score", "s.e.", "seeds", "Frechet", "SSIM", "images/s")


def rows_of(records: Records) -> Iterator[tuple[str, ...]]:
    """The head, then a row a policy.

    Work is that in the scales that may be pruned, relative to dense. Score is the difference to dense in points. After
    it come its standard error over prompts, and the standard deviation of the same difference over single seeds. Images/s
    are of transformer and sampling, where a batch was made twice.
    """
    yield _HEAD
    for name, row in records.items():
        error = row["difference"]["standard_error"]
        yield (
            name,
            f"{row['prunable_fraction']:.1%}",
            f"{100 * row['difference']['score']:+.1f}",
            "" if error is None else f"{100 * error:.1f}",
            f"{100 * _spread(row['seeds'], records['dense']['seeds']):.1f}",
            f"{row['frechet']:.2f}",
            f"{row['ssim']:.3f}",
            "" if row["images_per_second"] is None else f"{row['images_per_second']:.0f}",
        )


def _spread(seeds: Sequence[float], dense: Sequence[float]) -> float:
    """Standard deviation over seeds of the score less dense's."""
    return statistics.stdev(map(float.__sub__, seeds, dense)) if len(seeds) > 1 else 0.0


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with blanks, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with a ruled head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


@click.command()
@click.argument("record", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def tables_command(record: Path) -> None:
    """Print the comparisons of a record of `quality` in Markdown."""
    measured = json.loads(record.read_text())
    click.echo(f"{measured['prompts']} prompts, {measured['images']} pictures each")
    for name in COMPARISONS:
        if name in measured:
            click.echo(f"\n{name}\n\n{as_markdown(list(rows_of(measured[name])))}")


if __name__ == "__main__":
    tables_command()
