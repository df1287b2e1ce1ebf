"""`toprovar-batch sheet`: the pictures of a dataset side by side in one image, each above its prompt."""

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from toprovar_batch.orchestrator.commands.captions import CaptionFont, wrapped
from toprovar_batch.orchestrator.commands.local_file import LocalFile
from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output
from toprovar_batch.orchestrator.output.parts import open_own_part, planned_schema
from toprovar_batch.worker.errors import OutputFolderError, UserError
from toprovar_batch.worker.part_identity import PartOwner
from toprovar_batch.worker.storage import explain_storage, storage_errors
from toprovar_batch.worker.whole_file import whole_file

_COLUMNS: Final = ("sample_id", "prompt", "image", "status", "error")
_CHOOSING: Final = ("sample_id", "prompt", "status")
_MARGIN: Final = 8
_LINE_HEIGHT: Final = 16
_INSET: Final = 6  # of the reason in a grey cell
_MOST_LINES: Final = 6
_FORMATS: Final = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples a sheet shows; all that is given must hold.

    Attributes:
        text: what the prompt contains, in any case; empty: anything.
        ids: ids of samples; empty: any.
        errors: only samples without a picture.
        seed: of a choice at random; None: the first ones.
    """

    text: str = ""
    ids: frozenset[str] = frozenset()
    errors: bool = False
    seed: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether any sample will do."""
        return not (self.text or self.ids or self.errors)

    def takes(self, row: dict[str, Any]) -> bool:
        """Whether a sample is asked for, by its id, prompt and status."""
        return (
            (not self.ids or row["sample_id"] in self.ids)
            and (not self.errors or row["status"] != "ok")
            and self.text.casefold() in (row["prompt"] or "").casefold()
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a sheet.

    Attributes:
        picture: RGB, its longer side `width` pixels; None for a sample without a picture.
        reason: the lines in place of the picture.
        caption: the lines below it.
    """

    picture: Image.Image | None
    reason: tuple[str, ...]
    caption: tuple[str, ...]


def make_sheet(
    output: str,
    *,
    columns: int = 6,
    width: int = 256,
    limit: int = 60,
    selection: Selection = Selection(),
    font: CaptionFont | None = None,
) -> Image.Image:
    """Draw samples of a dataset, in the order of its parts, as a grid.

    Args:
        output: local path or fsspec URL of the dataset, which need not be finished.
        columns: pictures per row, at least 1.
        width: the longer side of a picture in pixels, at least 32; pictures are shrunk or enlarged to it.
        limit: most samples to draw, at least 1.
        selection: of the samples.
        font: of the captions; knows afterwards which characters it lacks.

    Returns:
        An RGB image; samples without a picture are grey, with the reason.

    Raises:
        OutputFolderError: no dataset is there, or it or a picture of it cannot be read.
        UserError: no sample is as requested.
    """
    font = font or CaptionFont()
    cells = list(_cells(output, width, limit, selection, font))
    if not cells and selection.is_everything:
        raise OutputFolderError(f"{output}: no finished part with a sample is here yet (no data/*.parquet)")
    if not cells:
        raise UserError(f"{output}: no sample of a finished part is as requested")
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    pitch = width + _MARGIN
    heights = [_row_height(row, width) for row in rows]
    sheet = Image.new("RGB", (_MARGIN + pitch * len(rows[0]), _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        below = top + _picture_height(row, width) + 2
        for column, cell in enumerate(row):
            left = _MARGIN + column * pitch
            if cell.picture is None:
                draw.rectangle((left, top, left + width - 1, top + width - 1), fill="lightgrey")
            else:
                sheet.paste(cell.picture, (left, top))
            for number, line in enumerate(cell.reason):
                place = top + _INSET + number * _LINE_HEIGHT
                font.draw(sheet, left + _INSET, place, width - 2 * _INSET, line)
            for number, line in enumerate(cell.caption):
                font.draw(sheet, left, below + number * _LINE_HEIGHT, width, line)
        top += height
    return sheet


def _picture_height(row: list[Cell], width: int) -> int:
    """Pixels of the tallest picture of a row."""
    return max(width if cell.picture is None else cell.picture.height for cell in row)


def _row_height(row: list[Cell], width: int) -> int:
    """Pixels of a row of cells with its captions and the margin below."""
    lines = max(len(cell.caption) for cell in row)
    return _picture_height(row, width) + lines * _LINE_HEIGHT + _MARGIN


def _cells(output: str, width: int, limit: int, selection: Selection, font: CaptionFont) -> Iterator[Cell]:
    """The cells of a sheet; of no more than their row groups are the pictures read."""
    folder = locate_output(output)
    try:
        job = folder.need_job()
        folder = folder.owned_by(job)
        owner = PartOwner(folder.job, planned_schema(folder))
        candidates = _candidates(folder, owner, job["num_shards"], selection)
        if selection.seed is None:
            chosen = list(islice(candidates, limit))
        else:
            everything = list(candidates)
            count = min(limit, len(everything))
            chosen = sorted(random.Random(selection.seed).sample(everything, count))
        for shard_id, places in groupby(chosen, itemgetter(0)):
            path = folder.part(shard_id, job["num_shards"])
            with open_own_part(folder, path, shard_id, owner) as part:
                for row in _rows(part, [place for _, place in places]):
                    yield _cell(folder.shown(path), row, width, font)
    except storage_errors() as error:
        raise OutputFolderError(
            f"{output} cannot be read now: {explain_storage(error)}; try again later"
        ) from error


def _candidates(
    folder: OutputFolder, owner: PartOwner, num_shards: int, selection: Selection
) -> Iterator[tuple[int, int]]:
    """Shard and place in its part of each sample that is asked for; without their pictures being read."""
    for shard_id in folder.finished(num_shards):
        with open_own_part(folder, folder.part(shard_id, num_shards), shard_id, owner) as part:
            if selection.is_everything:
                places: Iterable[int] = range(part.metadata.num_rows)
            else:
                rows = part.read(columns=list(_CHOOSING)).to_pylist()
                places = [place for place, row in enumerate(rows) if selection.takes(row)]
        yield from ((shard_id, place) for place in places)


def _rows(part: pq.ParquetFile, places: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of a part by their places, ascending; only row groups with one of them are read."""
    columns = [name for name in _COLUMNS if name in part.schema_arrow.names]
    begin = 0
    for group in range(part.num_row_groups):
        end = begin + part.metadata.row_group(group).num_rows
        wanted = {place - begin for place in places if begin <= place < end}
        place = 0
        batches = part.iter_batches(batch_size=8, row_groups=[group], columns=columns) if wanted else ()
        for batch in batches:
            inside = [at for at in range(batch.num_rows) if place + at in wanted]
            yield from batch.take(pa.array(inside, pa.int64())).to_pylist()
            place += batch.num_rows
            if place > max(wanted):
                break
        begin = end


def _cell(path: str, row: dict[str, Any], width: int, font: CaptionFont) -> Cell:
    caption = tuple(wrapped(font.readable(row["prompt"] or row["sample_id"]), width, font, _MOST_LINES))
    if row["status"] != "ok" or row["image"] is None:
        most = max(1, (width - 2 * _INSET) // _LINE_HEIGHT)
        reason = wrapped(font.readable(row.get("error") or ""), width - 2 * _INSET, font, most)
        return Cell(None, tuple(reason), caption)
    try:
        with Image.open(io.BytesIO(row["image"]["bytes"] or b"")) as file:
            picture = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise OutputFolderError(
            f"{path} is damaged: the image of sample {row['sample_id']} is none; delete it and submit the job again"
        ) from error
    return Cell(ImageOps.contain(picture, (width, width)), (), caption)


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
@click.option(
    "--filter", "text", default="", metavar="TEXT", help="Only prompts that contain this, in any case."
)
@click.option("--ids", multiple=True, metavar="ID,ID", help="Only these samples; may be repeated.")
@click.option("--errors", is_flag=True, help="Only samples without a picture, with the reasons.")
@click.option(
    "--random", "seed", type=click.IntRange(0), metavar="SEED", help="Samples at random, the same for a seed."
)
def sheet_command(
    output: str,
    file: Path,
    columns: int,
    width: int,
    limit: int,
    text: str,
    ids: tuple[str, ...],
    errors: bool,
    seed: int | None,
) -> None:
    """Draw the first pictures of OUTPUT with their prompts into one image."""
    names = frozenset(filter(None, (name.strip() for several in ids for name in several.split(","))))
    selection, font = Selection(text, names, errors, seed), CaptionFont()
    sheet = make_sheet(output, columns=columns, width=width, limit=limit, selection=selection, font=font)
    write_sheet(sheet, file)
    echo(f"{file}: {sheet.width} x {sheet.height} pixels")
    if font.missing:
        shown = ", ".join(sorted(font.missing)[:5])
        more = f" and {len(font.missing) - 5} more" if len(font.missing) > 5 else ""
        echo(
            f"Warning: no font of this machine has {shown}{more}; captions show names or code points. "
            "Noto fonts have nearly all scripts.",
            err=True,
        )
