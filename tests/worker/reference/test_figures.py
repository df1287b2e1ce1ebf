"""Figures show every row of their record, and the same record gives the same file."""

import json
import sys

import pytest
from click.testing import CliRunner

from toprovar_batch.worker.reference.figures import (
    STATISTICS,
    complexity_figure,
    figure_command,
    pareto_figure,
)


def _complexity():
    correlation = {
        name: [{"complexity": None}, {"complexity": 0.1}, {"complexity": -0.2}] for name in STATISTICS
    }
    correlation["attn_entropy"][2] = {"complexity": -0.7}
    return {
        "complexity": [0.1, 0.5, 0.9],
        "statistics": {name: [[None] * 3, [1.0, 2.0, 3.0], [3.0, 2.0, 1.5]] for name in STATISTICS},
        "correlation": correlation,
    }


def _pareto():
    def row(work, score):
        return {
            "prunable_fraction": work,
            "difference": {"score": score, "standard_error": 0.01},
            "ssim": 1 + score,
            "seeds": [0.9 + score, 0.8 + 2 * score],
        }

    return {
        "pareto": {
            "dense": row(1.0, 0.0),
            "detail 0.2 from 7": row(0.4, -0.01),
            "detail 0.1 from 7": row(0.3, -0.02),
            "fastvar (0.5,) skip 1": row(0.5, -0.03),
        },
        "unguided": {"dense": row(1.0, 0.0), "fastvar (0.5,) skip 1 guided to 6": row(0.25, -0.04)},
    }


def test_the_statistic_that_tells_most_is_drawn_against_complexity():
    points, lines = complexity_figure(_complexity()).axes
    assert points.get_ylabel() == f"{STATISTICS['attn_entropy']}, scale 2"
    assert points.lines[0].get_ydata().tolist() == [3.0, 2.0, 1.5]
    assert "-0.70" in points.get_title()
    assert [list(line.get_xdata()) for line in lines.lines[:4]] == [[1, 2]] * 4


def test_families_of_policies_are_told_apart():
    score, likeness = pareto_figure(_pareto()).axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in likeness.lines}
    assert drawn == {"detail": [30, 40], "fastvar": [50], "fastvar, guided to 6": [25]}
    assert len(score.containers) == 3
    seeds = [line.get_ydata().tolist() for line in score.lines if line.get_marker() == "_"]
    expected = [[-3], [-6], [-4], [-8], [-2, -1], [-4, -2]]  # a line a seed, from little work to much
    assert seeds == [pytest.approx(line) for line in expected]


@pytest.mark.parametrize(("kind", "record"), [("complexity", _complexity()), ("pareto", _pareto())])
def test_the_same_record_gives_the_same_file(kind, record, tmp_path):
    source = tmp_path / "record.json"
    source.write_text(json.dumps(record))
    written = []
    for name in ("one.svg", "two.svg"):
        target = tmp_path / "new" / name
        result = CliRunner().invoke(figure_command, [kind, str(source), str(target)], catch_exceptions=False)
        assert result.exit_code == 0
        written.append(target.read_bytes())
    assert written[0] == written[1]
    assert b"<svg" in written[0]


def test_a_plain_installation_is_told_what_figures_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = tmp_path / "record.json"
    source.write_text(json.dumps(_pareto()))
    result = CliRunner().invoke(figure_command, ["pareto", str(source), str(tmp_path / "a.svg")])
    assert result.exit_code == 2
    assert result.stderr == "Error: figures need another package: pip install toprovar-batch[figures]\n"
