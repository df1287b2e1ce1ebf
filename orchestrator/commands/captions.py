"""Text of any script in a picture: a font for each character, and its code point where no font has it."""

import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIZE: Final = 13
_BASELINE: Final = 12  # pixels from the top of a line
_FOLDERS: Final = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
)
_BITMAP_SIZES: Final = (109, 136, 128)  # of fonts of colour pictures, which know one size alone
_NO_CHARACTER: Final = "\U0010fffe"  # no font has it: drawn, it is the font's box
_JOINERS: Final = "\u200c\u200d\ufe0e\ufe0f"


class CaptionFont:
    """Draws and measures lines of text with the fonts of Pillow and of this machine.

    Args:
        files: fonts to look in, besides Pillow's own; None: those of this machine.

    Attributes:
        missing: characters that `readable` replaced, as no font has them.
    """

    def __init__(self, files: tuple[Path, ...] | None = None) -> None:
        self.missing: set[str] = set()
        self._files = files
        self._fonts: list[Font] = [ImageFont.load_default(_SIZE)]
        self._font_of: dict[str, int | None] = {}
        self._shapes = features.check("raqm")

    def readable(self, text: str) -> str:
        """The text on one line, with the name or the code point of each character that no font has."""
        words = []
        for word in text.split():
            if not all(map(self._is_known, word)):
                word = "".join(character for character in word if character not in _JOINERS)  # noqa: PLW2901
            parts = []
            for known, characters in groupby(word, self._is_known):
                run = "".join(characters)
                if not known:
                    self.missing |= set(run)
                    run = " ".join(map(_spelled, run))
                parts.append(run)
            words.append(" ".join(parts))
        return " ".join(words)

    def length(self, line: str) -> float:
        """Pixels that a line takes."""
        return sum(self._run_length(font, run) for font, run in self._runs(line))

    def draw(self, image: Image.Image, left: int, top: int, width: int, line: str) -> None:
        """Draw one line in black; one that begins in a script from right to left ends at the right edge.

        Args:
            image: RGB.
            left: of the line's place, in pixels.
            top: of the line's place.
            width: of the line's place.
            line: as of `readable`, at most `width` pixels long.
        """
        runs = list(self._runs(line))
        x = float(left)
        if _is_right_to_left(line):
            runs.reverse()
            x += width - self.length(line)
        for font, run in runs:
            self._draw_run(image, x, top + _BASELINE, font, run)
            x += self._run_length(font, run)

    def _is_known(self, character: str) -> bool:
        if character in _JOINERS:
            return True
        if not self._shapes and unicodedata.bidirectional(character) in ("R", "AL"):
            return False  # backwards and unjoined, nobody could read it
        return self._find(character) is not None

    def _find(self, character: str) -> int | None:
        """The index of the first font that has a character; fonts of the machine are looked for when one is needed."""
        if character not in self._font_of:
            found = next((at for at, font in enumerate(self._fonts) if _has(font, character)), None)
            if found is None:
                files = _files_with(character) if self._files is None else self._files
                for file in files:
                    font = _open(str(file))
                    if font is not None and _has(font, character):
                        self._fonts.append(font)
                        found = len(self._fonts) - 1
                        break
            self._font_of[character] = found
        return self._font_of[character]

    def _runs(self, line: str) -> Iterator[tuple[Font, str]]:
        """The line in pieces of one font each: one piece where a font has all of it, which then orders both directions."""
        wanted = {self._find(character) or 0 for character in line if character not in _JOINERS}
        for at in sorted(wanted, reverse=True):
            if all(_has(self._fonts[at], character) for character in line if character not in _JOINERS):
                yield self._fonts[at], line
                return
        fonts: list[int] = []
        for character in line:
            follows = character in _JOINERS or character.isspace() or unicodedata.combining(character)
            fonts.append(fonts[-1] if fonts and follows else self._find(character) or 0)
        for at, places in groupby(range(len(line)), fonts.__getitem__):
            yield self._fonts[at], "".join(line[place] for place in places)

    def _run_length(self, font: Font, run: str) -> float:
        return font.getlength(run) * _scale(font)

    def _draw_run(self, image: Image.Image, x: float, baseline: int, font: Font, run: str) -> None:
        if _scale(font) == 1:
            draw = ImageDraw.Draw(image)
            draw.text((x, baseline), run, fill="black", font=font, anchor="ls", embedded_color=True)
            return
        assert isinstance(font, ImageFont.FreeTypeFont)
        large = Image.new("RGBA", (max(1, round(font.getlength(run))), round(font.size * 1.25)), "#ffffff00")
        ImageDraw.Draw(large).text(
            (0, font.size), run, fill="black", font=font, anchor="ls", embedded_color=True
        )
        small = large.resize(
            (max(1, round(large.width * _scale(font))), round(large.height * _scale(font))),
            Image.Resampling.LANCZOS,
        )
        image.paste(small, (round(x), baseline - _SIZE), small)


def _scale(font: Font) -> float:
    """What a font that has no glyphs of the captions' size is to be shrunk by."""
    return _SIZE / font.size if isinstance(font, ImageFont.FreeTypeFont) else 1.0


def _has(font: Font, character: str) -> bool:
    """Whether a font draws something else than its box for what it does not have."""
    if character.isspace():
        return True
    glyph = _drawn(font, character)
    return glyph is not None and glyph != _drawn(font, _NO_CHARACTER)


@cache
def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes] | None:
    try:
        mask = font.getmask(character, mode="RGBA" if _scale(font) != 1 else "L")
        return mask.size, bytes(mask)
    except (OSError, ValueError):  # a damaged glyph
        return None


@cache
def _open(file: str) -> Font | None:
    """A font at the captions' size, or at the one that it knows; None where it is none that Pillow reads."""
    for size in (_SIZE, *_BITMAP_SIZES):
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            continue
    return None


def _files_with(character: str) -> Iterator[Path]:
    """Font files of this machine that may have a character, likely ones first."""
    if (program := shutil.which("fc-list")) is not None:
        command = [program, "--format", "%{file}\n", f":charset={ord(character):x}"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
            yield from sorted(map(Path, filter(None, listed.stdout.splitlines())), key=_plainness)
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            yield from _all_files()
        return
    yield from _all_files()


@cache
def _all_files() -> tuple[Path, ...]:
    folders = (Path(folder).expanduser() for folder in _FOLDERS if "~" not in folder or _has_home())
    files = (file for folder in folders if folder.is_dir() for file in folder.rglob("*"))
    return tuple(sorted((file for file in files if file.suffix in (".ttf", ".otf", ".ttc")), key=_plainness))


def _has_home() -> bool:
    try:
        return Path("~").expanduser().is_absolute()
    except RuntimeError:
        return False


def _plainness(file: Path) -> tuple[bool, int, str]:
    """Sorts upright fonts of common weight without serifs first."""
    name = file.stem.lower()
    styled = any(
        word in name for word in ("bold", "italic", "oblique", "mono", "serif", "light", "black", "thin")
    )
    return styled, len(name), str(file)


def _spelled(character: str) -> str:
    """A character in letters that every font has: [ice] for a picture, U+7ACB for the others."""
    name = unicodedata.name(character, "")
    return (
        f"[{name.lower()}]" if name and unicodedata.category(character) == "So" else f"U+{ord(character):04X}"
    )


def _is_right_to_left(line: str) -> bool:
    directions = map(unicodedata.bidirectional, line)
    return next((kind in ("R", "AL") for kind in directions if kind in ("L", "R", "AL")), False)


def wrapped(text: str, width: int, font: CaptionFont, most_lines: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is cut, and so is what would be too many lines.

    Scripts without spaces between words are broken between any two characters.
    """
    lines = [""]
    for piece, joint in _pieces(text):
        longer = f"{lines[-1]}{joint}{piece}" if lines[-1] else piece
        if font.length(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        lines[-1] = _cut(piece, width, font)
        if len(lines) > most_lines:
            return [*lines[: most_lines - 1], _cut(f"{lines[most_lines - 1]} …", width, font)]
    return lines


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """What a line is made of, each with what joins it to the one before."""
    for word in text.split():
        joint = " "
        for wide, characters in groupby(word, lambda c: unicodedata.east_asian_width(c) in "WF"):
            run = "".join(characters)
            for piece in run if wide else (run,):
                yield piece, joint
                joint = ""


def _cut(word: str, width: int, font: CaptionFont) -> str:
    """The word, or as much of its beginning as fits, with an ellipsis."""
    if font.length(word) <= width:
        return word
    word = word[:width]  # no letter is narrower than a pixel
    while word and font.length(f"{word}…") > width:
        word = word[:-1]
    return f"{word}…"
