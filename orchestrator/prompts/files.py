"""Finding and reading prompt files: local or by URL, plain or compressed, one file, a folder or a glob."""

import bz2
import glob
import gzip
import io
import lzma
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from toprovar_batch.worker.errors import PromptSourceError
from toprovar_batch.worker.storage import locate, what_happened

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "txt",
    ".json": "mjhq",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "bz2": bz2.decompress,
    "xz": lzma.decompress,
    "zstd": lambda raw: pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read(),
}
_MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
LINE_END = re.compile(r"\r\n|\r|\n")
_BLOCK_BYTES = 8 << 20  # of a text that is read block by block
_STANDARD_INPUT = "/dev/stdin"


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One prompt file, found but not read yet.

    Attributes:
        filesystem: that holds it.
        path: within the file system.
        label: what the user calls it, for errors.
        is_stream: whether it is a pipe or the like, which can be read once and only from its begin.
    """

    filesystem: fsspec.AbstractFileSystem
    path: str
    label: str
    is_stream: bool = False

    @property
    def suffix(self) -> str:
        """Extension in lower case, without that of the compression; ".jsonl" for a.jsonl.gz?download=true."""
        return posixpath.splitext(_split_compression(self.path)[0])[1].lower()

    @property
    def compression(self) -> str | None:
        """Name of the compression, by the last extension."""
        return _split_compression(self.path)[1]

    def read(self) -> bytes:
        """All bytes, decompressed.

        Raises:
            PromptSourceError: the file cannot be read, or is not compressed as its extension says.
        """
        with self.open() as file:
            try:
                raw: bytes = file.read()
            except Exception as error:  # every file system raises errors of its own kind
                raise _unreadable(self.label, error) from error
        if self.compression is None:
            return raw
        try:
            return _DECOMPRESSORS[self.compression](raw)
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            problem = f"is not a whole {self.compression} file: {first_line(error)}"
            raise PromptSourceError(f"{self.label} {problem}") from error

    def open(self) -> IO[bytes]:
        """Open it for reading as it is, compressed or not.

        Raises:
            PromptSourceError: the file is missing or cannot be opened.
        """
        try:
            # fsspec looks for the end of a local file first, which a pipe does not have.
            if self.is_stream:
                return io.BufferedReader(io.FileIO(self.path))
            file: IO[bytes] = self.filesystem.open(self.path, "rb")
        except Exception as error:  # every file system raises errors of its own kind
            raise _unreadable(self.label, error) from error
        return file

    def line_blocks(self) -> Iterator[list[str]]:
        """The same lines as `lines`, many at a time; one that is not compressed is never in memory as a whole.

        Raises:
            PromptSourceError: as `text`, once the line is reached.
        """
        num_lines = 0
        for number, raw in enumerate(self._line_bytes()):
            if number == 0:
                self._refuse_other_kinds(raw)
            try:
                text = raw.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(self.label, num_lines, raw[: error.start]) from error
            lines = LINE_END.split(text)
            if not lines[-1]:
                lines.pop()  # what follows the last end of a line begins the next block
            num_lines += len(lines)
            yield lines

    def _line_bytes(self) -> Iterator[bytes]:
        """All bytes, cut behind ends of lines; at least one piece."""
        with io.BytesIO(self.read()) if self.compression else self.open() as file:
            rest = b""
            while True:
                try:
                    more = file.read(_BLOCK_BYTES)
                except Exception as error:  # every file system raises errors of its own kind
                    raise _unreadable(self.label, error) from error
                if not more:
                    break
                rest += more
                # A carriage return at the end may be the first half of a Windows line end.
                cut = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
                if cut:
                    yield rest[:cut]
                    rest = rest[cut:]
            yield rest

    def _refuse_other_kinds(self, raw: bytes) -> None:
        for magic, kind in _MAGIC.items():
            if raw.startswith(magic):
                raise PromptSourceError(f"{self.label} holds {kind} data, not {self.suffix or 'text'}")

    def text(self) -> str:
        """All of it as UTF-8 text, without a byte order mark.

        Raises:
            PromptSourceError: as `read`, or it is no UTF-8 text; names the line.
        """
        raw = self.read()
        self._refuse_other_kinds(raw)
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(self.label, 0, raw[: error.start]) from error

    def lines(self) -> list[str]:
        """All of its text, cut at the ends of lines of Unix, Windows and old Macs.

        Raises:
            PromptSourceError: as `text`.
        """
        # splitlines() would also cut at U+2028 and other characters that may stand in a prompt.
        return LINE_END.split(self.text())


def find_files(source: str) -> list[PromptFile]:
    """Resolve a prompt source into its files, sorted by path.

    Args:
        source: path or fsspec URL of a file, of a folder with prompt files in it, or a glob; `-` for standard input.

    Returns:
        At least one file.

    Raises:
        PromptSourceError: nothing is there, or its file system cannot be used.
    """
    if source == "-":
        return [PromptFile(LocalFileSystem(), _STANDARD_INPUT, "standard input", is_stream=True)]
    protocol = urlsplit(source).scheme
    try:
        filesystem, path = locate(source)
        paths = list(_resolve(filesystem, path, is_web=protocol in {"http", "https"}))
    except ImportError as error:
        raise PromptSourceError(f"{source}: {first_line(error)}") from error
    except Exception as error:  # every file system raises errors of its own kind
        raise _unreadable(source, error) from error
    if not paths:
        raise PromptSourceError(f"{source}: no prompt file is there (known: {', '.join(FORMATS)})")
    is_local = isinstance(filesystem, LocalFileSystem)
    if paths == [path]:
        return [PromptFile(filesystem, path, source, is_stream=is_local and not Path(path).is_file())]
    labels = {name: name if is_local else filesystem.unstrip_protocol(name) for name in paths}
    return [PromptFile(filesystem, name, labels[name]) for name in sorted(paths)]


def _resolve(filesystem: fsspec.AbstractFileSystem, path: str, *, is_web: bool) -> Iterator[str]:
    """Paths behind one path; a file whose name looks like a glob is taken as it is."""
    if is_web or filesystem.isfile(path):
        yield path
    elif filesystem.isdir(path):
        for name in filesystem.ls(path, detail=False):
            hidden = posixpath.basename(name).startswith((".", "_"))
            if not hidden and posixpath.splitext(_split_compression(name)[0])[1].lower() in FORMATS:
                yield name
    elif any(character in path for character in "*?["):
        pattern = _escape_folders(filesystem, path)
        yield from (name for name in filesystem.glob(pattern) if filesystem.isfile(name))
    elif isinstance(filesystem, LocalFileSystem) and Path(path).exists():
        yield path  # a pipe
    else:
        raise FileNotFoundError(path)


def _escape_folders(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """A glob below folders whose names look like globs: such a folder is taken as it is, like such a file."""
    names = path.split("/")
    for index, name in enumerate(names[:-1], start=1):
        if not glob.has_magic(name):
            continue
        if not filesystem.isdir("/".join(names[:index])):
            break
        names[index - 1] = glob.escape(name)
    return "/".join(names)


def _split_compression(path: str) -> tuple[str, str | None]:
    """Path without query and compression suffix, and the compression's name."""
    plain = path.partition("?")[0] if "://" in path else path
    stem, suffix = posixpath.splitext(plain)
    compression = _COMPRESSIONS.get(suffix.lower())
    return (stem, compression) if compression else (plain, None)


def _not_utf8(label: str, lines_before: int, raw: bytes) -> PromptSourceError:
    """Names the line behind `raw`, which comes after `lines_before` others."""
    line = lines_before + len(LINE_END.findall(raw.decode("latin-1"))) + 1
    return PromptSourceError(f"{label}, line {line}: not UTF-8 text")


def _unreadable(label: str, error: Exception) -> PromptSourceError:
    """One sentence for whatever a file system raised."""
    error = what_happened(error)
    if isinstance(error, FileNotFoundError):
        return PromptSourceError(f"{label}: the prompt file does not exist")
    if isinstance(error, PermissionError):
        return PromptSourceError(f"{label}: no permission to read the prompt file")
    kind = "" if type(error) in (ValueError, ImportError) else f"{type(error).__name__}: "
    return PromptSourceError(f"{label} cannot be read: {kind}{first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).splitlines()), "no details")


def describe_json(value: Any) -> str:
    """What kind of JSON value this is, in a user's words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
