"""The sheet command: a grid of pictures with captions, from a folder that may not be finished."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image, features

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.captions import CaptionFont, wrapped
from toprovar_batch.orchestrator.commands.sheet import Selection, make_sheet, write_sheet
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
            "error": None if picture else "the prompt is empty",
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
    places = [(20, 20), (92, 20), (214, 70), (20, second + 10), (92, second + 10), (164, second + 10)]
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
    font = CaptionFont(())
    lines = wrapped("a small red cube left of a large blue sphere on a wooden floor", 100, font, 6)
    assert len(lines) > 2
    assert all(font.length(line) <= 100 for line in lines)
    assert " ".join(lines) == "a small red cube left of a large blue sphere on a wooden floor"
    many = wrapped("words " * 500, 100, font, 6)
    assert len(many) == 6
    assert many[-1].endswith("…")
    cut = wrapped("x" * 10_000, 100, font, 6)
    assert len(cut) == 1
    assert font.length(cut[0]) <= 100


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


def dark_columns(sheet, box):
    """Of a part of a sheet: which columns of pixels hold something dark."""
    return (np.asarray(sheet.crop(box).convert("L")) < 120).any(0)


def test_the_reason_of_a_sample_without_a_picture_stands_in_its_cell(output):
    sheet = make_sheet(str(output), columns=6, width=128)
    grey = (8 + 2 * 136, 8, 8 + 2 * 136 + 128, 8 + 128)
    assert dark_columns(sheet, grey).any()
    picture = (8 + 136, 8, 8 + 136 + 128, 8 + 128)
    assert np.unique(np.asarray(sheet.crop(picture)).reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]


def test_small_pictures_are_enlarged_to_their_cells(output):
    sheet = make_sheet(str(output), columns=6, width=200)
    assert sheet.getpixel((8 + 199, 8 + 199)) == COLOURS["red"]
    tall = 8 + 5 * 208  # 32 x 64 pixels, so 100 x 200 here
    assert sheet.getpixel((tall + 99, 8 + 199)) == COLOURS["lime"]
    assert sheet.getpixel((tall + 101, 8 + 100)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ids", "4, 1"], ["lime", "red"]),
        (["--ids", "4", "--ids", "3"], ["blue", "red"]),
        (["--filter", "PROMPT 3"], ["blue"]),
        (["--errors"], ["grey"]),
        (["--filter", "prompt", "--ids", "2,3"], ["grey", "blue"]),
    ],
)
def test_samples_are_chosen(output, tmp_path, arguments, expected):
    file = tmp_path / "sheet.png"
    command = ["sheet", str(output), "--file", str(file), "--width", "64", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    with Image.open(file) as sheet:
        places = [(8 + 72 * index + 60, 8 + 60) for index in range(len(expected))]
        assert colours_at(sheet, places) == [(COLOURS | {"grey": GREY})[name] for name in expected]
        assert sheet.width == 8 + 72 * len(expected)


def test_a_choice_at_random_is_decided_by_its_seed(output):
    def drawn(seed):
        return make_sheet(str(output), width=32, limit=2, selection=Selection(seed=seed)).tobytes()

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(8)}) > 2


def test_nothing_that_is_as_requested_is_one_sentence(output, tmp_path):
    command = ["sheet", str(output), "--file", str(tmp_path / "a.png"), "--ids", "99"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "no sample of a finished part is as requested" in result.stderr


def test_only_row_groups_with_chosen_rows_are_read(output):
    path = output / "data/part-00002-of-00003.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table,
        path,
        row_group_size=1,
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=False,
    )
    picture = table["image"].to_pylist()[0]["bytes"]
    path.write_bytes(path.read_bytes().replace(picture, picture[:-1] + b"X", 1))
    sheet = make_sheet(str(output), width=64, selection=Selection(ids=frozenset("45")))
    assert colours_at(sheet, [(20, 20), (92, 20)]) == [COLOURS["red"], COLOURS["lime"]]
    with pytest.raises(OutputFolderError, match="is damaged"):
        make_sheet(str(output), width=64, selection=Selection(ids=frozenset("3")))


def test_characters_that_no_font_has_are_spelled_and_told_once(output, tmp_path, monkeypatch):
    monkeypatch.setattr("toprovar_batch.orchestrator.commands.captions._files_with", lambda _: ())
    font = CaptionFont(())
    assert font.readable("a 立方\u200d\u4f53 \U0001f9ca") == "a U+7ACB U+65B9 U+4F53 [ice cube]"
    assert font.missing == set("立方体\U0001f9ca")
    path = output / "data/part-00000-of-00003.parquet"
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index("prompt"), "prompt", [["立方体", "b", "c"]])
    pq.write_table(table, path)
    result = CliRunner().invoke(main, ["sheet", str(output), "--file", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("\n") == 1
    assert "no font of this machine has 体, 方, 立; captions show names or code points" in result.stderr


def font_with(path, characters):
    """A font whose glyphs are full squares."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000)
    pen_kind = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    names = [".notdef", *(f"g{index}" for index in range(len(characters)))]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(
        {ord(character): name for character, name in zip(characters, names[1:], strict=True)}
    )
    glyphs = {}
    for name in names:
        pen = pen_kind(None)
        if name != ".notdef":
            for move, place in zip(
                (pen.moveTo, *[pen.lineTo] * 3), ((0, 0), (0, 800), (900, 800), (900, 0)), strict=True
            ):
                move(place)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_a_font_of_the_machine_is_taken_where_the_own_one_lacks_a_character(tmp_path):
    font = CaptionFont((font_with(tmp_path / "squares.ttf", "立方"),))
    assert font.readable("a 立方") == "a 立方"
    assert not font.missing
    sheet = Image.new("RGB", (64, 16), "white")
    font.draw(sheet, 0, 0, 64, "a立方")
    start = round(font.length("a"))
    assert dark_columns(sheet, (start + 2, 0, start + 10, 16)).all()
    assert wrapped("立方立方立方", 40, font, 6) == ["立方立", "方立方"]


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow shapes no scripts here")
def test_scripts_from_right_to_left_end_at_the_right_edge(tmp_path):
    font = CaptionFont((font_with(tmp_path / "squares.ttf", "قطة"),))
    assert font.readable("قطة") == "قطة"
    sheet = Image.new("RGB", (100, 16), "white")
    font.draw(sheet, 0, 0, 100, "قطة")
    assert not dark_columns(sheet, (0, 0, 50, 16)).any()
    assert dark_columns(sheet, (90, 0, 100, 16)).any()


def test_without_shaping_such_scripts_are_spelled(monkeypatch):
    monkeypatch.setattr(features, "check", lambda _: False)
    assert CaptionFont(()).readable("قط") == "U+0642 U+0637"
