"""Tables of a record: what they print, in both forms."""

import json

from click.testing import CliRunner

from toprovar_batch.worker.reference.quality_tables import as_text, rows_of, tables_command


def _row(work, score, seeds, error):
    return {
        "prunable_fraction": work,
        "difference": {"score": score, "standard_error": error},
        "seeds": seeds,
        "frechet": 0.5,
        "ssim": 0.9,
        "images_per_second": 12.3,
    }


RECORD = {
    "prompts": 3,
    "images": 2,
    "directions": {"dense": _row(1.0, 0.0, [0.5, 0.75], 0.0)},
    "ladder": {
        "dense": _row(1.0, 0.0, [0.5, 0.75], 0.0),
        "detail": _row(0.333, -0.02, [0.5, 0.55], None),
    },
}


def test_the_spread_over_seeds_is_of_the_difference_to_dense():
    head, dense, detail = rows_of(RECORD["ladder"])
    assert head[:5] == ("policy", "work", "score", "s.e.", "seeds")
    assert dense[1:5] == ("100.0%", "+0.0", "0.0", "0.0")
    assert detail == ("detail", "33.3%", "-2.0", "", "14.1", "0.50", "0.900", "12")


def test_one_seed_has_no_spread():
    _, row = rows_of({"dense": _row(1.0, 0.0, [0.5], 0.0)})
    assert row[4] == "0.0"


def test_text_stands_in_columns():
    assert as_text([("policy", "work"), ("a", "100.0%")]) == "policy    work\na       100.0%"


def test_every_comparison_of_a_record_is_printed(tmp_path):
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(RECORD))
    result = CliRunner().invoke(tables_command, [str(path)], catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[0] == "3 prompts, 2 pictures each"
    assert lines.index("ladder") < lines.index("directions")
    assert lines[4:6] == [
        "| policy | work | score | s.e. | seeds | Frechet | SSIM | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    assert "| detail | 33.3% | -2.0 |  | 14.1 | 0.50 | 0.900 | 12 |" in lines
