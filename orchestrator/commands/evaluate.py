"""`toprovar-batch evaluate`: scores of a dataset made from prompts whose meaning is known, alone or against another."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.worker.words import counted

if TYPE_CHECKING:
    from toprovar_batch.worker.reference.scoring.scorer import Scorer


T = TypeVar("T")


def evaluate(output: str, against: str | None = None, *, scorer: "Scorer | None" = None) -> dict[str, Any]:
    """Score a dataset, and compare it with another.

    Args:
        output: local path or fsspec URL of the dataset.
        against: that of another one of the same prompts, or None.
        scorer: reads the pictures; None takes the shipped one, on a GPU where there is one.

    Returns:
        A JSON-able record: `images`, `errors`, `tasks`, `overall`, `frechet`; with `against` also that dataset's own
        record under `against`, `difference` (this one less the other) and `pictures`.

    Raises:
        OutputFolderError: a dataset is missing, lacks a column, or holds a row that cannot be scored.
        CheckpointError: the scorer's weights are missing or damaged.
    """
    from toprovar_batch.orchestrator.evaluation.data import EvaluationData  # noqa: PLC0415 - likewise
    from toprovar_batch.orchestrator.evaluation.pairs import PictureComparison  # noqa: PLC0415 - imports torch
    from toprovar_batch.orchestrator.evaluation.scores import DatasetReader, summarise  # noqa: PLC0415 - likewise
    from toprovar_batch.worker.reference.scoring.judging import score_difference  # noqa: PLC0415 - likewise

    data = EvaluationData(output)
    if against is None:
        scorer = scorer or _shipped_scorer()
        reader = DatasetReader(data, scorer)
        for group in _progress(data, data.num_groups):
            reader.add(group)
        return summarise(output, reader.reading(), scorer)
    # Both datasets are looked at before the long part begins, which reads each row group once.
    other = EvaluationData(against)
    comparison = PictureComparison(data, other)
    scorer = scorer or _shipped_scorer()
    reader, other_reader = DatasetReader(data, scorer), DatasetReader(other, scorer)
    num_groups = max(data.num_groups, other.num_groups)
    for samples, others in _progress(zip_longest(data, other, fillvalue=()), num_groups):
        reader.add(samples)
        other_reader.add(others)
        comparison.add(samples, others)
    reading, other_reading = reader.reading(), other_reader.reading()
    return summarise(output, reading, scorer) | {
        "against": summarise(against, other_reading, scorer),
        "difference": score_difference(reading.judged, other_reading.judged),
        "pictures": comparison.summary(),
    }


def _progress(groups: Iterable[T], num_groups: int) -> Iterable[T]:
    from tqdm import tqdm  # noqa: PLC0415 - only here

    return tqdm(groups, total=num_groups, desc="scores", unit="group", disable=None)


def _shipped_scorer() -> "Scorer":
    import torch  # noqa: PLC0415 - slow

    from toprovar_batch.worker.reference.scoring.scorer import load_scorer  # noqa: PLC0415 - imports torch

    return load_scorer(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@click.command("evaluate")
@click.argument("output", type=str)
@click.option("--against", type=str, help="Another output of the same prompts to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON record.")
@click.pass_obj
def evaluate_command(scorer: Any, output: str, against: str | None, as_json: bool) -> None:
    """Score the pictures in OUTPUT, a dataset made by jobs/geneval.yaml.

    A detector reads every picture; it passes when it shows exactly what its prompt asks for. Samples without a
    picture count as fails.
    """
    record = evaluate(output, against, scorer=scorer)
    if as_json:
        echo_json(record, allow_nan=False)
        return
    for line in table(record):
        echo(line)


def table(record: dict[str, Any]) -> list[str]:
    """Lines that show a record of `evaluate`."""
    difference = record.get("difference")
    heading = f"{'task':<16}{'n':>6}{'prompts':>9}{'score':>9}{'± s.e.':>9}"
    if difference:
        heading += f"{'against':>10}{'difference':>13}{'± s.e.':>9}"
    lines = [heading]
    for task, row in record["tasks"].items():
        line = f"{task:<16}{row['images']:>6}{row['prompts']:>9}{row['score']:>9.3f}{_error(row):>9}"
        lines.append(line + _difference(record, difference, "tasks", task))
    overall, prompts = record["overall"], sum(row["prompts"] for row in record["tasks"].values())
    line = f"{'overall':<16}{record['images']:>6}{prompts:>9}{overall['score']:>9.3f}{_error(overall):>9}"
    lines += [line + _difference(record, difference, "overall"), ""]
    lines += _notes(record)
    if difference:
        lines += [f"against {record['against']['output']}:", *_notes(record["against"])]
        lines += _picture_lines(record["pictures"])
    return lines


def _error(row: dict[str, Any]) -> str:
    return "-" if row["standard_error"] is None else f"{row['standard_error']:.3f}"


def _difference(record: dict[str, Any], difference: dict[str, Any] | None, *keys: str) -> str:
    if not difference:
        return ""
    change, other = difference, record["against"]
    for key in keys:
        change, other = change.get(key, {}), other.get(key, {})
    if not change:
        return f"{'-':>10}{'-':>13}{'-':>9}"
    return f"{other['score']:>10.3f}{change['score']:>+13.3f}{_error(change):>9}"


def _notes(record: dict[str, Any]) -> list[str]:
    lines = []
    failures: dict[str, int] = {}
    for row in record["tasks"].values():
        for reason, count in row["failures"].items():
            failures[reason] = failures.get(reason, 0) + count
    if failures:
        lines.append("fails by first reason: " + ", ".join(f"{name} {n}" for name, n in failures.items()))
    if record["errors"]:
        lines.append(f"{counted(record['errors'], 'sample')} without a picture, counted as failed")
    frechet = record["frechet"]
    if frechet is None:
        lines.append("Frechet distance: needs two pictures or more")
        return lines
    side = frechet["reference_side"]
    lines.append(
        f"Frechet distance {frechet['distance']:.4g} of the detector's features of {counted(frechet['images'], 'picture')} to those of "
        f"{frechet['reference_images']} held-out renders of {side} x {side}"
    )
    if frechet["renders"]:
        floor = frechet["renders"]
        lines.append(
            f"  ({counted(floor['images'], 'other render is', 'other renders are')} at {floor['distance']:.4g})"
        )
    if frechet["few_images"]:
        lines.append("  (too few pictures to stand alone: compare only with as many others)")
    return lines


def _picture_lines(pictures: dict[str, Any]) -> list[str]:
    skipped = ", ".join(f"{count} {reason}" for reason, count in pictures["skipped"].items())
    note = f" (not compared: {skipped})" if skipped else ""
    if not pictures["pairs"]:
        return [f"no two pictures have the same sample and seed{note}"]
    similar, ratio = pictures["ssim"], pictures["psnr_db"]
    mean = _decibels(ratio["mean_of_differing"])
    return [
        f"{counted(pictures['pairs'], 'pair')} of pictures, {pictures['identical']} identical{note}",
        f"SSIM  mean {similar['mean']:.4f}, 5th percentile {similar['percentile_5']:.4f}",
        f"PSNR  mean of differing pairs {mean}, 5th percentile {_decibels(ratio['percentile_5'])}",
    ]


def _decibels(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2f} dB"
