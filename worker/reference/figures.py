"""Figures of the documentation, from the records of `complexity_study` and `quality`.

`python -m toprovar_batch.worker.reference.figures complexity complexity.json docs/images/complexity.svg`
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from toprovar_batch.worker.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATISTICS: Final[Mapping[str, str]] = {
    "bit_entropy": "uncertainty of the bits",
    "attn_entropy": "entropy of the attention",
    "low_entropy_ratio": "low-entropy ratio (the paper's)",
    "change": "change of the sum of codes",
}
_FAMILIES: Final[Sequence[tuple[str, str, str, str]]] = (
    ("pareto", "toprovar", "o", "toprovar"),
    ("unguided", "toprovar", "^", "toprovar, guided to 6 or 7"),
    ("pareto", "as printed", "v", "toprovar, as printed"),
    ("pareto", "fastvar", "s", "fastvar"),
    ("unguided", "fastvar", "P", "fastvar, guided to 6"),
    ("pareto", "skipvar", "D", "skipvar"),
    ("pareto", "fixed exit", "X", "fixed exit"),
    ("pareto", "detail", "*", "detail"),
)
"""A comparison, with what names of policies in it begin, and the marker and label that stand for them."""


def complexity_figure(record: Mapping[str, Any]) -> "Figure":
    """What each scale's statistics tell of a scene's known complexity.

    Args:
        record: of `complexity_study`.

    Returns:
        Left the statistic and scale that go best with complexity, a point a scene; right the rank correlation of
        every statistic at every scale.
    """
    figure, (points, lines) = _panels()
    correlation = {name: [row["complexity"] for row in record["correlation"][name]] for name in STATISTICS}
    name, scale = max(
        ((name, scale) for name, row in correlation.items() for scale in range(len(row))),
        key=lambda place: abs(correlation[place[0]][place[1]] or 0.0),
    )
    points.plot(record["complexity"], record["statistics"][name][scale], ".", markersize=4, alpha=0.6)
    points.set(
        xlabel="known complexity of the scene",
        ylabel=f"{STATISTICS[name]}, scale {scale}",
        title=f"rank correlation {correlation[name][scale]:+.2f}, {len(record['complexity'])} scenes",
    )
    for each, label in STATISTICS.items():
        known = [(index, value) for index, value in enumerate(correlation[each]) if value is not None]
        lines.plot(*zip(*known, strict=True), "o-", markersize=3, label=label)
    lines.axhline(0, color="black", linewidth=0.5)
    lines.set(xlabel="scale, counted from 0", ylabel="rank correlation with complexity", ylim=(-1, 1))
    lines.legend(fontsize=7)
    return figure


def pareto_figure(record: Mapping[str, Any]) -> "Figure":
    """Score and likeness over work.

    Args:
        record: of `quality`, with the comparison "pareto" and, if it is to be drawn, "unguided".

    Returns:
        Left the score less dense's: of all pictures with the standard error of the paired difference, and, faint, of
        the pictures of each seed. Right the SSIM to dense. Both are over the work in the scales that may be pruned.
    """
    figure, (score, likeness) = _panels()
    dense = record["pareto"]["dense"]["seeds"]
    for comparison, family, mark, label in _FAMILIES:
        rows = sorted(
            (row for name, row in record.get(comparison, {}).items() if name.startswith(family + " ")),
            key=lambda row: row["prunable_fraction"],
        )
        if not rows:
            continue
        work = [100 * row["prunable_fraction"] for row in rows]
        errors = [100 * (row["difference"]["standard_error"] or 0.0) for row in rows]
        score.errorbar(
            work, [100 * row["difference"]["score"] for row in rows], errors, fmt=mark, markersize=4,
            linewidth=0.7, label=label,
        )  # fmt: skip
        colour = likeness.plot(work, [row["ssim"] for row in rows], mark, markersize=4, label=label)[0]
        seeds = [
            [100 * (seed - whole) for seed, whole in zip(row["seeds"], dense, strict=True)] for row in rows
        ]
        score.plot(work, seeds, "_", color=colour.get_color(), markersize=3, alpha=0.35)
    _name_pareto(score, likeness)
    return figure


def _name_pareto(score: "Axes", likeness: "Axes") -> None:
    score.axhline(-1, color="black", linewidth=0.5, linestyle="--")
    score.set_yscale("symlog", linthresh=4)  # what costs little is told apart, what costs much is still shown
    score.set_yticks(ticks := [2, 0, -1, -2, -4, -10, -20, -40], labels=[str(tick) for tick in ticks])
    score.set(xlabel="work in prunable scales, % of dense", ylabel="score less dense, points")
    likeness.set(xlabel="work in prunable scales, % of dense", ylabel="SSIM to dense")
    handles, labels = likeness.get_legend_handles_labels()
    likeness.figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)


def _panels() -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only figures need it

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    return figure, figure.subplots(1, 2)


@click.command()
@click.argument("kind", type=click.Choice(["complexity", "pareto"]))
@click.argument("record", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def figure_command(kind: str, record: Path, output: Path) -> None:
    """Draw a figure of a record into an SVG or PNG file."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - only figures need it
    except ImportError as error:
        click.echo("Error: figures need another package: pip install toprovar-batch[figures]", err=True)
        raise SystemExit(2) from error

    drawn = {"complexity": complexity_figure, "pareto": pareto_figure}[kind](json.loads(record.read_text()))
    output.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed names inside, the same record gives the same file.
    with rc_context({"svg.hashsalt": kind}):
        kind = output.suffix.lower().removeprefix(".") or "png"
        with whole_file(output) as path:
            drawn.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


if __name__ == "__main__":
    figure_command()
