"""The sheet command: a grid of pictures with captions, from a folder that may not be finished."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFont

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.sheet import _wrapped, make_sheet, write_sheet
from toprovar_batch.worker.errors import OutputFolderError, UserError

COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
GREY = (211, 211, 211)


def png(colour, size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "x.png"}


@pytest.fixture
def output(tmp_path):
    """A dataset of three shards, the second not made yet; five pictures, the third row an error."""
    folder = tmp_path / "out"
    (folder / "data").mkdir(parents=True)
    (folder / "_job").mkdir()
    job = {"name": "job", "num_samples": 6, "num_shards": 3, "identity": {}}
    (folder / "_job/job.json").write_text(json.dumps(job))
    pictures = [png("red"), png("lime"), None, png("blue"), png("red"), png("lime", (32, 64))]
    rows = [
        {
            "sample_id": str(index),
            "prompt": f"prompt {index}",
            "image": picture,
            "status": "ok" if picture else "error",
        }
        for index, picture in enumerate(pictures)
    ]
    for shard, part in ((0, rows[:3]), (2, rows[3:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"data/part-{shard:05d}-of-00003.parquet")
    return folder


def colours_at(sheet, places):
    return [sheet.getpixel(place) for place in places]


def test_pictures_stand_in_order_and_missing_ones_are_grey(output):
    sheet = make_sheet(str(output), columns=3, width=64)
    assert sheet.width == 3 * 72 + 8
    second = sheet.height // 2 + 8
    places = [(20, 20), (92, 20), (164, 20), (20, second + 10), (92, second + 10), (164, second + 10)]
    expected = [COLOURS["red"], COLOURS["lime"], GREY, COLOURS["blue"], COLOURS["red"], COLOURS["lime"]]
    assert colours_at(sheet, places) == expected


def test_captions_stand_below_the_pictures(output):
    sheet = np.asarray(make_sheet(str(output), columns=6, width=64).convert("L"))
    below = sheet[8 + 64 :]
    assert (below < 100).any()
    assert all((below[:, left : left + 64] < 100).any() for left in range(8, 8 + 6 * 72, 72))


def test_no_more_is_drawn_than_the_limit(output):
    assert make_sheet(str(output), columns=2, width=64, limit=2).height < 2 * 64
    assert make_sheet(str(output), columns=6, width=64, limit=1).width == 72 + 8


def test_captions_are_wrapped_and_cut_to_the_width():
    font = ImageFont.load_default(13)
    lines = _wrapped("a small red cube left of a large blue sphere on a wooden floor", 100, font)
    assert len(lines) > 2
    assert all(font.getlength(line) <= 100 for line in lines)
    assert " ".join(lines) == "a small red cube left of a large blue sphere on a wooden floor"
    many = _wrapped("words " * 500, 100, font)
    assert len(many) == 6
    assert many[-1].endswith("…")
    cut = _wrapped("x" * 10_000, 100, font)
    assert len(cut) == 1
    assert font.getlength(cut[0]) <= 100


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet.PNG", "sheet.webp"])
def test_the_command_writes_the_format_of_the_extension(output, tmp_path, name):
    result = CliRunner().invoke(main, ["sheet", str(output), "--file", str(tmp_path / name), "--width", "64"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as sheet:
        assert f"{sheet.width} x {sheet.height} pixels" in result.stdout


def test_mistakes_are_one_sentence_and_exit_code_2(output, tmp_path):
    for folder, file, message in (
        (tmp_path / "none", "a.jpg", "no dataset of a job is here"),
        (output, "a.gif", "its extension is none of"),
        (output, "none/a.jpg", "cannot be written"),
    ):
        result = CliRunner().invoke(main, ["sheet", str(folder), "--file", str(tmp_path / file)])
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_folder_without_a_finished_part_and_a_broken_picture_are_named(output):
    for path in (output / "data").iterdir():
        path.unlink()
    with pytest.raises(OutputFolderError, match="no finished part"):
        make_sheet(str(output))
    row = {"sample_id": "7", "prompt": "p", "image": {"bytes": b"no picture", "path": "x"}, "status": "ok"}
    pq.write_table(pa.Table.from_pylist([row]), output / "data/part-00000-of-00003.parquet")
    with pytest.raises(
        OutputFolderError, match=r"part-00000-of-00003\.parquet is damaged: the image of sample 7 is none"
    ):
        make_sheet(str(output))


def test_a_corrupt_picture_is_not_drawn(output):
    path = output / "data/part-00000-of-00003.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table,
        path,
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=False,
    )
    picture = table["image"].to_pylist()[0]["bytes"]
    path.write_bytes(path.read_bytes().replace(picture, picture[:-1] + b"X", 1))
    with pytest.raises(OutputFolderError, match=r"part-00000-of-00003\.parquet is damaged: "):
        make_sheet(str(output))


def test_a_file_that_is_there_outlives_a_sheet_that_cannot_be_written(tmp_path):
    file = tmp_path / "sheet.webp"
    write_sheet(Image.new("RGB", (2, 2)), file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="a sheet of 1 x 16384 cannot be written"):
        write_sheet(Image.new("RGB", (1, 16384)), file)  # one pixel more than WebP takes
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_a_folder_that_cannot_be_written_stays(tmp_path, monkeypatch):
    file = tmp_path / "sheet.png"
    file.write_bytes(b"earlier")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(
        UserError, match=r"sheet\.png: a sheet of 2 x 2 cannot be written: .*Permission denied"
    ):
        write_sheet(Image.new("RGB", (2, 2)), file)
    assert file.read_bytes() == b"earlier"
