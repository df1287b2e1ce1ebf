"""`toprovar-batch sheet`: the pictures of a dataset side by side in one image, each above its prompt."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from toprovar_batch.orchestrator.commands.local_file import LocalFile
from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output
from toprovar_batch.orchestrator.output.parts import open_own_part, planned_schema
from toprovar_batch.worker.errors import OutputFolderError, UserError
from toprovar_batch.worker.part_identity import PartOwner
from toprovar_batch.worker.storage import storage_errors
from toprovar_batch.worker.whole_file import whole_file

_COLUMNS: Final = ("sample_id", "prompt", "image", "status")
_MARGIN: Final = 8
_FONT_SIZE: Final = 13
_LINE_HEIGHT: Final = 16
_MOST_LINES: Final = 6
_FORMATS: Final = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a sheet.

    Attributes:
        picture: RGB, at most `width` pixels in each direction; None for a sample without a picture.
        caption: the lines below it.
    """

    picture: Image.Image | None
    caption: tuple[str, ...]


def make_sheet(output: str, *, columns: int = 6, width: int = 256, limit: int = 60) -> Image.Image:
    """Draw the first samples of a dataset, in the order of its parts, as a grid.

    Args:
        output: local path or fsspec URL of the dataset, which need not be finished.
        columns: pictures per row, at least 1.
        width: largest side of a picture in pixels, at least 32; larger pictures are shrunk to it.
        limit: most samples to draw, at least 1.

    Returns:
        An RGB image; samples without a picture are grey.

    Raises:
        OutputFolderError: no dataset is there, or it or a picture of it cannot be read.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    cells = list(_cells(output, width, limit, font))
    if not cells:
        raise OutputFolderError(f"{output}: no finished part with a sample is here yet (no data/*.parquet)")
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    pitch = width + _MARGIN
    heights = [_row_height(row, width) for row in rows]
    sheet = Image.new("RGB", (_MARGIN + pitch * len(rows[0]), _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN + column * pitch
            if cell.picture is None:
                draw.rectangle((left, top, left + width - 1, top + width - 1), fill="lightgrey")
            else:
                sheet.paste(cell.picture, (left, top))
            draw.multiline_text(
                (left, top + _picture_height(row, width) + 2),
                "\n".join(cell.caption),
                fill="black",
                font=font,
                spacing=_LINE_HEIGHT - _FONT_SIZE,
            )
        top += height
    return sheet


def _picture_height(row: list[Cell], width: int) -> int:
    """Pixels of the tallest picture of a row."""
    return max(width if cell.picture is None else cell.picture.height for cell in row)


def _row_height(row: list[Cell], width: int) -> int:
    """Pixels of a row of cells with its captions and the margin below."""
    lines = max(len(cell.caption) for cell in row)
    return _picture_height(row, width) + lines * _LINE_HEIGHT + _MARGIN


def _cells(output: str, width: int, limit: int, font: Font) -> Iterator[Cell]:
    """The first cells of a dataset; no more than their row groups are read."""
    folder = locate_output(output)
    try:
        job = folder.read_job()
        if job is None:
            raise OutputFolderError(f"{output}: no dataset of a job is here (no _job/job.json)")
        for path, row in _rows(folder.owned_by(job), job["num_shards"], limit):
            yield _cell(path, row, width, font)
    except storage_errors() as error:
        raise OutputFolderError(f"{output} cannot be read now: {error}; try again later") from error


def _rows(folder: OutputFolder, num_shards: int, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first rows, each with the path of its part."""
    owner = PartOwner(folder.job, planned_schema(folder))
    for shard_id in folder.finished(num_shards):
        path = folder.part(shard_id, num_shards)
        with open_own_part(folder, path, shard_id, owner) as part:
            for batch in part.iter_batches(batch_size=8, columns=list(_COLUMNS)):
                for row in batch.to_pylist()[:limit]:
                    limit -= 1
                    yield folder.shown(path), row
                if not limit:
                    return


def _cell(path: str, row: dict[str, Any], width: int, font: Font) -> Cell:
    caption = tuple(_wrapped(row["prompt"] or row["sample_id"], width, font))
    if row["status"] != "ok" or row["image"] is None:
        return Cell(None, caption)
    try:
        with Image.open(io.BytesIO(row["image"]["bytes"] or b"")) as file:
            picture = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise OutputFolderError(
            f"{path} is damaged: the image of sample {row['sample_id']} is none; delete it and submit the job again"
        ) from error
    picture.thumbnail((width, width))
    return Cell(picture, caption)


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is cut, and so is what would be too many lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        lines[-1] = _cut(word, width, font)
        if len(lines) > _MOST_LINES:
            return [*lines[: _MOST_LINES - 1], _cut(f"{lines[_MOST_LINES - 1]} …", width, font)]
    return lines


def _cut(word: str, width: int, font: Font) -> str:
    """The word, or as much of its beginning as fits, with an ellipsis."""
    if font.getlength(word) <= width:
        return word
    word = word[:width]  # no letter is narrower than a pixel
    while word and font.getlength(f"{word}…") > width:
        word = word[:-1]
    return f"{word}…"


def write_sheet(sheet: Image.Image, file: Path) -> None:
    """Write a sheet in the format of the file's extension; a file that is there stays if that fails.

    Raises:
        UserError: an unknown extension, or a file that cannot be written.
    """
    kind = _FORMATS.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"{file}: its extension is none of {', '.join(_FORMATS)}")
    try:
        with whole_file(file) as path:
            sheet.save(path, kind, quality=92)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: a sheet of {sheet.width} x {sheet.height} cannot be written: {error}"
        ) from error


@click.command("sheet")
@click.argument("output", type=str)
@click.option(
    "--file",
    type=LocalFile(dir_okay=False, path_type=Path),
    required=True,
    help="Image to write: .jpg, .png, .webp.",
)
@click.option("--columns", type=click.IntRange(1, 50), default=6, show_default=True, help="Pictures per row.")
@click.option(
    "--width", type=click.IntRange(32, 2048), default=256, show_default=True, help="Of a picture, in pixels."
)
@click.option("--limit", type=click.IntRange(1, 2000), default=60, show_default=True, help="Most pictures.")
def sheet_command(output: str, file: Path, columns: int, width: int, limit: int) -> None:
    """Draw the first pictures of OUTPUT with their prompts into one image."""
    sheet = make_sheet(output, columns=columns, width=width, limit=limit)
    write_sheet(sheet, file)
    click.echo(f"{file}: {sheet.width} x {sheet.height} pixels")
