"""How to notice that local or shipped model files were replaced."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.fetch import fetch, is_packaged


def fingerprints(files: Mapping[str, str | None]) -> dict[str, str]:
    """Tell local weights from others that are put in their place later.

    Sizes and times of change are compared, not contents: weights are too large to be read for that. The few that
    come with this package are read, as an installation gives them times of its own.

    Args:
        files: part of the model -> path, URL, Hugging Face id or None.

    Returns:
        Part -> a short text that changes with any of its files; only for what lies on this machine.
    """
    prints = {}
    for part, location in files.items():
        is_id = part == "text_encoder" and not (location or "").startswith((".", "/", "~"))
        if location is None or (not is_packaged(location) and ("://" in location or is_id)):
            continue
        try:
            prints[part] = _fingerprint(fetch(location), by_content=is_packaged(location))
        except (OSError, CheckpointError):  # on a cluster the driver's machine need not have the weights
            continue
    return prints


def _fingerprint(path: Path, *, by_content: bool) -> str:
    """Hash and total size of a file or of all visible files of a folder, told by content or by time of change."""
    sizes, lines = 0, []
    for file in _files_under(path):
        status = file.stat()
        sizes += status.st_size
        state = hashlib.blake2b(file.read_bytes()).hexdigest() if by_content else status.st_mtime_ns
        lines.append(f"{file.relative_to(path)}:{status.st_size}:{state}\n")
    digest = hashlib.blake2b("".join(lines).encode(errors="surrogateescape"), digest_size=4)
    return f"{digest.hexdigest()}, {sizes} bytes"


def _files_under(path: Path) -> Iterator[Path]:
    """A file itself, or the files of a folder, sorted; names that begin with a dot hold caches and the like."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(name.startswith(".") for name in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield file
