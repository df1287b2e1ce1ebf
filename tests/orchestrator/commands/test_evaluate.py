"""The evaluate command on small datasets of true renders."""

import io
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from toprovar_batch.orchestrator.cli import LazyGroup
from toprovar_batch.orchestrator.commands.evaluate import evaluate, evaluate_command
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.reference.scenes import (
    ground_truth,
    pack,
    render,
    sample_scenes,
    task_prompt,
)
from toprovar_batch.worker.reference.scoring.detector import NUM_FEATURES, Detection, Detector
from toprovar_batch.worker.reference.scoring.image_metrics import feature_statistics
from toprovar_batch.worker.reference.scoring.scorer import Scorer

SIDE = 48
TASKS = ("colours", "position")


class TruthfulDetector(Detector):
    """Knows what is in the pictures of this file, by their content; its features are a picture's first pixels."""

    def __init__(self):
        super().__init__()
        self.known = {}

    def read(self, images):
        keys = [(image * 255).round().byte().numpy().tobytes() for image in images]
        return [self.known.get(key, []) for key in keys], images.flatten(1)[:, :NUM_FEATURES]


def png(image):
    pixels = (image * 255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return pixels.numpy().tobytes(), buffer.getvalue()


@pytest.fixture(scope="module")
def made():
    """Rows of a dataset of true renders, three a task, and the scorer that knows them."""
    detector, rows = TruthfulDetector(), []
    for task in TASKS:
        scenes = sample_scenes(3, 3, "heldout", task)
        rendered = render(pack(scenes), (SIDE, SIDE))
        for row, scene in enumerate(scenes):
            key, content = png(rendered.images[row])
            detector.known[key] = [
                Detection(seen.shape, seen.colour, 1.0, seen.box)
                for seen in ground_truth(scene, rendered, row)
            ]
            prompt = task_prompt(scene)
            wanted = [
                {"shape": want.shape, "colour": want.colour, "count": want.count} for want in prompt.wanted
            ]
            rows.append(
                {
                    "sample_id": f"{task}-{row}",
                    "prompt": prompt.text,
                    "task": task,
                    "wanted": json.dumps(wanted),
                    "relation": prompt.relation,
                    "seed": row,
                    "image": {"bytes": content, "path": f"{task}-{row}.png"},
                    "status": "ok",
                }
            )
    statistics = feature_statistics(torch.rand((10, NUM_FEATURES), generator=torch.Generator()))
    return rows, Scorer(detector, {SIDE: statistics, 512: statistics}, {})


def write(folder, rows, part_size=4):
    """Write rows as a finished output; gives its path."""
    (folder / "data").mkdir(parents=True)
    count = -(-len(rows) // part_size)
    for part in range(count):
        table = pa.Table.from_pylist(rows[part * part_size : (part + 1) * part_size])
        path = folder / "data" / f"part-{part:05d}-of-{count:05d}.parquet"
        pq.write_table(table, path, row_group_size=2)
    return str(folder)


def run(made, *arguments):
    """Run the command as the command line does, with the scorer of this file."""
    group = LazyGroup(name="test", commands={})
    group.get_command = lambda _context, _name: evaluate_command
    return CliRunner().invoke(group, ["evaluate", *arguments], obj=made[1])


def test_true_renders_pass_everything(made, tmp_path):
    result = run(made, write(tmp_path / "a", made[0]), "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert (record["images"], record["errors"]) == (6, 0)
    assert record["overall"] == {"tasks": 2, "score": 1.0, "standard_error": 0.0}
    for task in TASKS:
        assert record["tasks"][task]["images"] == 3
        assert record["tasks"][task]["failures"] == {}
    assert record["frechet"]["reference_side"] == SIDE
    assert record["frechet"]["images"] == 6
    assert record["frechet"]["few_images"]
    assert record["frechet"]["distance"] > 0


def test_error_rows_count_as_fails(made, tmp_path):
    rows = [*made[0][:5], made[0][5] | {"image": None, "status": "error"}]
    output = write(tmp_path / "a", rows)
    record = evaluate(output, scorer=made[1])
    assert record["errors"] == 1
    assert record["tasks"]["position"]["errors"] == 1
    assert record["tasks"]["position"]["score"] == pytest.approx(2 / 3)
    assert record["tasks"]["position"]["failures"] == {"error": 1}
    assert record["overall"]["score"] == pytest.approx(5 / 6)
    assert record["frechet"]["images"] == 5
    result = run(made, output)
    assert result.exit_code == 0
    assert "1 sample without a picture, counted as failed" in result.stdout


def test_a_dataset_of_errors_alone_scores_zero(made, tmp_path):
    rows = [row | {"image": None, "status": "error"} for row in made[0]]
    output = write(tmp_path / "a", rows)
    record = evaluate(output, scorer=made[1])
    assert record["overall"]["score"] == 0
    assert record["frechet"] is None
    assert "needs two pictures" in run(made, output).stdout


def test_against_a_worse_run_says_by_how_much_and_how_alike_pictures_are(made, tmp_path):
    black = png(torch.zeros(3, SIDE, SIDE))[1]
    other = [row | {"image": {"bytes": black, "path": "x"}} if row["seed"] == 0 else row for row in made[0]]
    other.reverse()  # order and parts are no part of a sample's identity
    first, second = write(tmp_path / "a", made[0]), write(tmp_path / "b", other, part_size=5)
    record = evaluate(first, second, scorer=made[1])
    assert record["overall"]["score"] == 1
    assert record["against"]["overall"]["score"] == pytest.approx(2 / 3)
    assert record["difference"]["overall"]["score"] == pytest.approx(1 / 3)
    assert record["difference"]["tasks"]["colours"]["standard_error"] == pytest.approx(1 / 3)
    pictures = record["pictures"]
    assert (pictures["pairs"], pictures["identical"], pictures["skipped"]) == (6, 4, {})
    assert pictures["ssim"]["mean"] > 4 / 6
    assert pictures["ssim"]["percentile_5"] < 0.5
    assert 0 < pictures["psnr_db"]["percentile_5"] <= pictures["psnr_db"]["mean_of_differing"] + 3
    result = run(made, first, "--against", second)
    assert result.exit_code == 0
    assert "+0.333" in result.stdout
    assert "6 pairs of pictures, 4 identical" in result.stdout


def test_each_row_group_with_pictures_is_read_once_whatever_the_order(made, tmp_path, monkeypatch):
    reads = Counter()
    read = pq.ParquetFile.read_row_group

    def counted(part, group, columns=None, **options):
        table = read(part, group, columns=columns, **options)
        if "image" in columns:
            reads[tuple(table["sample_id"].to_pylist()), table["seed"][0].as_py() < 10] += 1
        return table

    shuffled = [made[0][row] | {"seed": 10 + made[0][row]["seed"]} for row in (5, 1, 3, 0, 4, 2)]
    first = write(tmp_path / "a", made[0])
    second = write(tmp_path / "b", shuffled, part_size=3)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    record = evaluate(first, second, scorer=made[1])
    assert record["pictures"]["skipped"] == {"other seed": 6}
    assert set(reads.values()) == {1}
    assert len(reads) == 3 + 4


def test_a_run_against_itself_is_identical(made, tmp_path):
    output = write(tmp_path / "a", made[0])
    record = json.loads(run(made, output, "--against", output, "--json").stdout)
    assert record["pictures"]["identical"] == 6
    assert record["pictures"]["ssim"] == {"mean": 1.0, "percentile_5": 1.0}
    assert record["pictures"]["psnr_db"] == {"mean_of_differing": None, "percentile_5": None}
    assert record["difference"]["overall"] == {"tasks": 2, "score": 0.0, "standard_error": 0.0}


def test_pairs_of_other_seeds_or_without_a_picture_are_left_out_and_counted(made, tmp_path):
    other = [row | {"seed": 99} for row in made[0][:2]]
    other += [made[0][2] | {"image": None, "status": "error"}, made[0][3]]
    other += [made[0][5] | {"sample_id": "new"}]
    record = evaluate(write(tmp_path / "a", made[0]), write(tmp_path / "b", other), scorer=made[1])
    assert record["pictures"]["pairs"] == 1
    assert record["pictures"]["skipped"] == {
        "other seed": 2,
        "no picture": 1,
        "only in the first": 2,
        "only in the second": 1,
    }


def damaged(made, **changes):
    return [made[0][0] | changes, *made[0][1:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wanted": "[{}"}, "sample colours-0: its `wanted` is not a JSON list"),
        ({"wanted": '[{"shape": "cube"}]'}, "sample colours-0: its `wanted` is not a JSON list"),
        ({"wanted": None}, "sample colours-0: its `wanted` is not a JSON list"),
        ({"wanted": "[]"}, "sample colours-0: cannot be scored: no object is wanted"),
        ({"task": "size"}, "sample colours-0: cannot be scored: task 'size' is none of"),
        (
            {"image": {"bytes": b"no picture", "path": "x"}},
            ".parquet is damaged: the image of sample colours-0 is none",
        ),
        ({"sample_id": "colours-1"}, "sample colours-1 is there twice"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_in_one_sentence(made, tmp_path, changes, message):
    result = run(made, write(tmp_path / "a", damaged(made, **changes)))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_folders_without_a_scorable_dataset_are_refused(made, tmp_path):
    result = run(made, str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "no dataset of a job is here" in result.stderr
    plain = [{name: row[name] for name in ("sample_id", "prompt", "image", "status")} for row in made[0]]
    result = run(made, write(tmp_path / "plain", plain))
    assert result.exit_code == 2
    assert "has no column task and no wanted and no relation" in result.stderr
    assert "jobs/geneval.yaml" in result.stderr
    (tmp_path / "broken" / "data").mkdir(parents=True)
    (tmp_path / "broken" / "data" / "part-00000-of-00001.parquet").write_bytes(b"nothing")
    result = run(made, str(tmp_path / "broken"))
    assert result.exit_code == 2
    assert "part-00000-of-00001.parquet is damaged: " in result.stderr


def test_datasets_that_cannot_be_compared_are_refused(made, tmp_path):
    first = write(tmp_path / "a", made[0])
    strangers = write(tmp_path / "b", [row | {"sample_id": f"x{row['sample_id']}"} for row in made[0]])
    with pytest.raises(OutputFolderError, match="share no sample_id"):
        evaluate(first, strangers, scorer=made[1])
    small = png(torch.zeros(3, 32, 40))[1]
    resized = write(tmp_path / "c", [row | {"image": {"bytes": small, "path": "x"}} for row in made[0]])
    with pytest.raises(OutputFolderError, match=r"48 x 48 pixels in .*, 40 x 32 in"):
        evaluate(first, resized, scorer=made[1])
